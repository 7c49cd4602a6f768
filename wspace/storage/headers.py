"""The header of a safetensors file: a length, JSON, and where each tensor's bytes lie.

    8 bytes    length of the JSON, little-endian
    JSON       {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...,
                "__metadata__": {"key": "text"}}
    data       offsets count from here; tensors cover it without holes or overlaps

A file may lie about any of it, so everything is checked before a byte of data is read.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from wspace.errors import CheckpointError
from wspace.storage.checksums import checksum
from wspace.storage.opening import open_regular
from wspace.storage.remote import Location, RemotePath
from wspace.storage.stamps import Stamp

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
"""Every element type of the format, and its bits."""

KERNEL_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""The types that can be averaged, by their names in ``wkernels``. All others are only copied."""

CODES = {name: code for code, name in KERNEL_NAMES.items()}

MAX_HEADER = 100_000_000
"""The format's own limit, in bytes."""


class TensorRecord(NamedTuple):
    """Where a tensor lies in its file."""

    dtype: str  # a key of BITS
    shape: tuple[int, ...]
    start: int  # byte offset from the start of the file
    nbytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    tensors: dict[str, TensorRecord]  # in the order of their bytes
    metadata: dict[str, str]
    stamp: Stamp | None = None  # of the file, when it was read


def read_header(path: Location) -> Header:
    """The header of a safetensors file. Raises CheckpointError, naming the file and the place."""
    if isinstance(path, RemotePath):
        size, version = path.status()
        prefix = path.read(0, min(8, size))
        text = path.read(8, _length(prefix, size, path))
        stamp = Stamp(size, 0, checksum(prefix + text), version)
    else:
        try:
            with open_regular(path) as file:
                status = os.fstat(file.fileno())
                size = status.st_size
                prefix = file.read(8)
                text = file.read(_length(prefix, size, path))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        stamp = Stamp(size, status.st_mtime_ns, checksum(prefix + text))
    return replace(parse_header(text, size - 8 - len(text), path), stamp=stamp)


def _length(prefix: bytes, size: int, path: Location) -> int:
    """That of the JSON, from a file's first bytes."""
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(size - 8, MAX_HEADER):
        raise CheckpointError(
            f"{path}: header length {length} does not fit in a file of {size} bytes; "
            "the file is cut off or is not safetensors"
        )
    return length


def parse_header(text: bytes, n_data: int, path: Location) -> Header:
    """``text``: the JSON; ``n_data``: how many bytes follow it."""
    try:
        entries = _read_json(text)
    except _DuplicateKeyError as error:
        raise CheckpointError(f"{path}: header has the key {error} twice") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: header is not JSON: {str(error)[:100]}") from None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: header: expected an object, found {_kind(entries)}")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__: expected an object of texts")
    data_start = 8 + len(text)
    if not text.isascii() or b"\\u" in text:
        for name in entries:
            if not storable(name):
                raise CheckpointError(f"{path}: tensor {name!r:.200}: its name is not Unicode text")
    records = _records(entries, data_start, n_data, path)
    if _follow_one_another(records.values(), data_start):
        tensors = records
    else:
        tensors = dict(sorted(records.items(), key=lambda item: (item[1].start, item[1].nbytes)))
    expected, previous = data_start, "the header"
    for name, record in tensors.items() if tensors is not records else ():
        if record.start != expected:
            problem = "overlaps" if record.start < expected else "leaves a hole after"
            raise CheckpointError(
                f"{path}: tensor {name!r:.200} {problem} {previous}: it starts at byte "
                f"{record.start - data_start} of the data, expected {expected - data_start}"
            )
        expected, previous = record.start + record.nbytes, f"tensor {name!r:.200}"
    if tensors:
        last = next(reversed(tensors.values()))
        expected = last.start + last.nbytes
    if expected != data_start + n_data:
        raise CheckpointError(
            f"{path}: tensors end at byte {expected - data_start} of the data, but the file has "
            f"{n_data}; it is cut off or has bytes that belong to no tensor"
        )
    return Header(tensors, metadata)


def _read_json(text: bytes) -> Any:
    """The JSON, in which no key is given twice.

    A hook for every object takes as long as all the rest, so it is left out where the colons tell
    as much: one for each tensor and three inside it, which each must have. More are a key given
    twice, or in a name.
    """
    decoded = text.decode("utf-8")
    entries = json.loads(decoded)
    if isinstance(entries, dict):
        tensors = decoded
        metadata = _METADATA.search(decoded)
        if metadata:
            _, end = _STRICT.raw_decode(decoded, metadata.end())
            tensors = decoded[: metadata.start()] + decoded[end:]
        if tensors.count(":") == 4 * (len(entries) - ("__metadata__" in entries)):
            return entries
    return _STRICT.decode(decoded)


def _records(
    entries: dict[str, Any], data_start: int, n_data: int, path: Location
) -> dict[str, TensorRecord]:
    """All of a header's entries, checked. Of a type and shape that were there before, in short."""
    records: dict[str, TensorRecord] = {}
    known: dict[tuple, TensorRecord] = {}
    for name, entry in entries.items():
        try:
            dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            like = known[dtype, *shape]
            if (
                type(begin) is int is type(end)
                and 0 <= begin <= end <= n_data
                and end - begin == like.nbytes
                and type(shape) is list is type(entry["data_offsets"])
                and _INTEGERS.issuperset(map(type, shape))
            ):
                start = data_start + begin
                records[name] = TensorRecord(like.dtype, like.shape, start, like.nbytes)
                continue
        except (KeyError, TypeError, ValueError):  # new, or wrong: looked at more closely
            pass
        record = _record(entry, data_start, n_data, path, name)
        records[name] = known[record.dtype, *record.shape] = record
    return records


def _follow_one_another(records: Iterable[TensorRecord], start: int) -> bool:
    for record in records:
        if record.start != start:
            return False
        start += record.nbytes
    return True


def _record(entry: Any, data_start: int, n_data: int, path: Location, name: str) -> TensorRecord:
    def wrong(problem: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {name!r:.200}{problem}")

    if not isinstance(entry, dict) or not entry.keys() >= _KEYS:
        raise wrong(": expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise wrong(f": unknown dtype {dtype!r:.80}; known are {', '.join(BITS)}")
    if not isinstance(shape, list) or not all(map(_natural, shape)):
        raise wrong(f": shape: expected a list of sizes, found {shape!r:.80}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_natural, offsets)):
        raise wrong(f": data_offsets: expected two byte offsets, found {offsets!r:.80}")
    begin, end = offsets
    if not begin <= end <= n_data:
        raise wrong(f": data_offsets {offsets} lie outside the {n_data} bytes of data")
    n_bits = BITS[dtype]
    for size in shape:
        n_bits *= size
        if n_bits >= 1 << 66:  # at once: the product of a long list would take minutes
            raise wrong(f": {dtype} {shape!r:.80} takes 2**63 bytes or more")
    if (end - begin) * 8 != n_bits:
        raise wrong(
            f": {dtype} {shape!r:.80} takes {n_bits / 8:.15g} bytes, data_offsets give "
            f"{end - begin}"
        )
    return TensorRecord(dtype, tuple(shape), data_start + begin, end - begin)


_INTEGERS = {int}  # True is none here, though it is equal to 1
_KEYS = {"dtype", "shape", "data_offsets"}


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def storable(name: str) -> bool:
    """Whether a header can have a tensor of this name."""
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape
        return False
    return name != "__metadata__"


class _DuplicateKeyError(ValueError):
    pass


_METADATA = re.compile(r'"__metadata__"\s*:\s*')


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise _DuplicateKeyError(repr(name))
        result[name] = value
    return result


_STRICT = json.JSONDecoder(object_pairs_hook=_unique_keys)


def _kind(value: Any) -> str:
    return {list: "an array", str: "a text", type(None): "null"}.get(type(value), "a number")


def render_header(tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]):
    """The bytes of a header, and the byte at which each tensor starts in the file.

    ``tensors``: name -> (dtype, shape), in the order of their data. Padded with spaces so that the
    data start at a multiple of 4096 bytes.
    """
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    starts, position = {}, 0
    for name, (dtype, shape) in tensors.items():
        nbytes = math.prod(shape) * BITS[dtype] // 8
        starts[name] = position
        entries[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [position, position + nbytes],
        }
        position += nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % 4096)
    data_start = 8 + len(text)
    header = len(text).to_bytes(8, "little") + text
    return (
        header,
        {name: data_start + start for name, start in starts.items()},
        data_start + position,
    )
