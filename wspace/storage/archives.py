"""The zip archive of a ``.bin`` or ``.pt`` file, looked at before torch's loader opens it.

``torch.save`` stores every entry as it is. One that is compressed can be a thousand times as long
as the file; entries that share bytes can be more than it in all; and a pickle of a few hundred
bytes can hold tuples of tuples that no time is enough to hash. torch's loader would try.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from pathlib import Path

from wspace.errors import CheckpointError
from wspace.storage.opening import MAX_TEXT, open_regular

MAX_STEPS = 10_000_000
"""Of a pickle: fifty make a tensor."""

MAX_LEAVES = 20_000_000
"""Of all tuples that keys may be, with the tuples in them, each as often as it is there. A
tensor's have twenty."""

_END = struct.Struct("<4s4H2LH")  # the last bytes of a zip archive that has no comment
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = 20
_HEADER = 30  # bytes, and a name, before those of an entry


def check_archive(path: Path) -> None:
    """Raises CheckpointError for an archive that ``torch.save`` does not write, or no file at all.

    A file that begins as none is left to torch, which refuses it.
    """
    try:
        with open_regular(path) as file:
            if file.read(4) != b"PK\3\4":
                return
            size = file.seek(0, 2)
            start = _directory(file, size)
            with zipfile.ZipFile(file) as archive:
                if archive.start_dir != start:
                    raise zipfile.BadZipFile("its directory is not where its end says")
                _check_entries(archive.infolist(), start, path)
                for entry in archive.infolist():
                    if entry.filename.endswith("/data.pkl"):
                        _check_pickle(archive.read(entry), path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except CheckpointError:
        raise
    except Exception as error:  # zipfile and pickletools raise many kinds for files that lie
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path}: is no archive of torch.save: {reason}") from None


def _directory(file, size: int) -> int:
    """Where the end of the archive says that its directory is: zipfile would look for others."""
    file.seek(max(0, size - _END.size))
    signature, *_, start, comment = _END.unpack(file.read(_END.size))
    if signature != b"PK\5\6" or comment:
        raise zipfile.BadZipFile("expected the end of the archive in the file's last 22 bytes")
    if start == 0xFFFFFFFF:
        file.seek(max(0, size - _END.size - _LOCATOR64 - _END64.size))
        *_, start = _END64.unpack(file.read(_END64.size))
    return start


def _check_entries(entries: list[zipfile.ZipInfo], stop: int, path: Path) -> None:
    """``stop``: the byte at which what comes after the entries begins."""
    for entry in sorted(entries, key=lambda entry: -entry.header_offset):
        name = f"{path}: entry {entry.filename!r:.80}"
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise CheckpointError(
                f"{name} is compressed, {entry.compress_size} bytes for {entry.file_size}; "
                "expected it stored as it is, as torch.save does"
            )
        if entry.header_offset + _HEADER + entry.file_size > stop:
            raise CheckpointError(
                f"{name} has {entry.file_size} bytes from byte {entry.header_offset} on; expected "
                f"it to end before byte {stop}, where other things are"
            )
        stop = entry.header_offset
        if "/data/" not in entry.filename and entry.file_size > MAX_TEXT:
            raise CheckpointError(
                f"{name} has {entry.file_size} bytes, expected at most {MAX_TEXT} besides tensors"
            )


_TUPLES = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_HASHING = {"SETITEM", "SETITEMS", "ADDITEMS", "DICT"}


def _check_pickle(content: bytes, path: Path) -> None:
    """Follow the sizes of tuples: a key is hashed leaf by leaf, however often a leaf is shared."""
    stack: list[int] = []  # leaves of each object; 0: a mark
    memo: dict[int, int] = {}
    hashed = 0
    for step, (code, argument, _) in enumerate(pickletools.genops(content)):
        if step >= MAX_STEPS:
            raise CheckpointError(f"{path}: its pickle has more than {MAX_STEPS} steps")
        if code.name.endswith("PUT") or code.name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = stack[-1]
            continue
        if code.name.endswith("GET"):
            stack.append(memo[argument or 0])
            continue
        if code.name == "MARK":
            stack.append(0)
            continue
        taken: list[int] = []
        if pickletools.markobject in code.stack_before:
            while leaves := stack.pop():
                taken.append(leaves)
            below = code.stack_before.index(pickletools.markobject)
        else:
            below = len(code.stack_before)
        for _ in range(below):
            taken.append(stack.pop())
        leaves = sum(taken) + 1 if code.name in _TUPLES else 1
        if code.name == "REDUCE":  # what it makes may be its arguments again
            leaves = max(taken)
        if code.name in _HASHING:
            hashed += sum(taken)
        if max(leaves, hashed) > MAX_LEAVES:
            raise CheckpointError(f"{path}: its pickle has tuples of over {MAX_LEAVES} objects")
        stack += [leaves] * len(code.stack_after)
