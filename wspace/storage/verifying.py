"""Reading an output again, to see whether it still is what was written.

``checksums`` in an output's ``wspace.json``:

    algorithm, block    see ``wspace.storage.checksums``
    tensors             of each tensor's bytes
    files               of each file; of a shard its header alone, as its tensors have their own
    record              of the text of ``wspace.json``, with zeros in place of this
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from wspace.errors import CheckpointError
from wspace.storage.checksums import ALGORITHM, BLOCK, checksum, checksum_of_blocks, is_sealed
from wspace.storage.headers import Header, TensorRecord, read_header
from wspace.storage.opening import open_regular, read_text
from wspace.storage.remote import FAR_REQUEST, Location, RemotePath, location

FIELDS = {"algorithm", "block", "tensors", "files", "record"}


class Damage(NamedTuple):
    """A tensor or file that is not as it was written."""

    kind: str  # "tensor" or "file"
    name: str
    file: str
    problem: str


@dataclass(frozen=True)
class Verification:
    """``tensors``, ``files`` and ``nbytes`` count what was read again."""

    path: Location
    tensors: int
    files: int
    nbytes: int
    damages: tuple[Damage, ...]

    @property
    def ok(self) -> bool:
        return not self.damages


def verify(path: str | Location) -> Verification:
    """Read an output again and compare every tensor and file with the checksums of its making.

    ``path``: a folder or its URL. One read of the output; no memory to speak of. Files that
    were added since are not looked at. Raises CheckpointError where there is nothing to compare
    with.
    """
    path = location(path)
    tensors, files = _expected(path)
    found: dict[str, tuple[Location, TensorRecord]] = {}
    damages: list[Damage] = []
    nbytes = 0
    for name, expected in files.items():
        file = path / name
        try:
            if file.suffix == ".safetensors":
                header = read_header(file)
                found |= {tensor: (file, record) for tensor, record in header.tensors.items()}
                same, size = _header_digest(header) == expected, 0
            else:
                content = _content(file)
                same, size = checksum(content) == expected, len(content)
            nbytes += size
        except OSError as error:
            damages.append(Damage("file", name, name, f"cannot be read: {error.strerror}"))
        except CheckpointError as error:
            problem = str(error).removeprefix(f"{file}: ")
            damages.append(Damage("file", name, name, problem))
        else:
            if not same:
                what = "its header" if file.suffix == ".safetensors" else "it"
                damages.append(Damage("file", name, name, f"{what} has another checksum"))
    for name in tensors.keys() - found.keys():
        damages.append(Damage("tensor", name, "", "is in no file that can be read"))
    for name in found.keys() - tensors.keys():
        damages.append(Damage("tensor", name, found[name][0].name, "was not written with it"))
    both = [name for name in tensors if name in found]
    with ThreadPoolExecutor(4, thread_name_prefix="wspace-verify") as pool:
        problems = pool.map(lambda name: _problem(*found[name], tensors[name]), both)
        for name, problem in zip(both, problems, strict=True):
            nbytes += found[name][1].nbytes
            if problem:
                damages.append(Damage("tensor", name, found[name][0].name, problem))
    return Verification(path, len(tensors), len(files), nbytes, tuple(damages))


def _expected(path: Location) -> tuple[dict[str, str], dict[str, str]]:
    """Checksums of tensors and of files."""
    record = path / "wspace.json"
    try:
        text = read_text(record)
        checksums = json.loads(text).get("checksums")
    except OSError as error:
        raise CheckpointError(
            f"{path}: not an output of wspace: {record.name} cannot be read: {error.strerror}"
        ) from error
    except (ValueError, RecursionError, AttributeError):
        raise CheckpointError(f"{record}: expected a JSON object; it is damaged") from None
    if checksums is None:
        raise CheckpointError(f"{record}: has no checksums; an older version of wspace made it")
    try:
        kind = (checksums["algorithm"], checksums["block"])
        parts = [
            {str(name): str(value) for name, value in checksums[part].items()}
            for part in ("tensors", "files")
        ]
    except (TypeError, KeyError, AttributeError):
        raise CheckpointError(f"{record}: its checksums are damaged") from None
    sealed = checksums.get("record")  # older versions wrote none
    if checksums.keys() - FIELDS or (sealed is not None and not is_sealed(text, str(sealed))):
        raise CheckpointError(f"{record}: its text has another checksum; it is damaged")
    if kind != (ALGORITHM, BLOCK):
        raise CheckpointError(
            f"{record}: checksums of kind {kind}; this version knows {(ALGORITHM, BLOCK)}"
        )
    for name in parts[1]:
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{record}: {name!r} is not a file name in this folder")
    return parts[0], parts[1]


def _header_digest(header: Header) -> str:
    return header.stamp.digest if header.stamp else ""


def _content(file: Location) -> bytes:
    if isinstance(file, RemotePath):
        return file.read_bytes()
    with open_regular(file) as opened:
        return opened.read()


def _problem(file: Location, record: TensorRecord, expected: str) -> str | None:
    try:
        found = checksum_of_blocks(_block_checksums(file, record))
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except CheckpointError as error:
        return str(error).removeprefix(f"{file}: ")
    return None if found == expected else "its bytes have another checksum"


def _block_checksums(file: Location, record: TensorRecord) -> Iterator[str]:
    if isinstance(file, RemotePath):
        for start in range(0, record.nbytes, FAR_REQUEST):
            part = file.read(record.start + start, min(FAR_REQUEST, record.nbytes - start))
            yield from (checksum(part[k : k + BLOCK]) for k in range(0, len(part), BLOCK))
        return
    with file.open("rb", buffering=0) as opened:
        opened.seek(record.start)
        buffer = memoryview(bytearray(min(BLOCK, record.nbytes)))
        for start in range(0, record.nbytes, BLOCK):
            view = buffer[: min(BLOCK, record.nbytes - start)]
            got = 0
            while got < len(view) and (more := opened.readinto(view[got:])):
                got += more
            yield checksum(view[:got])
