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
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from wspace.errors import CheckpointError
from wspace.storage.checksums import checksum
from wspace.storage.entries import BITS, TensorRecord, plain_records, records_of
from wspace.storage.opening import open_regular
from wspace.storage.remote import Location, RemotePath
from wspace.storage.stamps import Stamp

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


@dataclass(frozen=True)
class Header:
    tensors: dict[str, TensorRecord]  # in the order of their bytes
    metadata: dict[str, str]
    stamp: Stamp | None = None  # of the file, when it was read


class RawHeader(NamedTuple):
    """A header as a file has it, not looked at yet."""

    path: Location
    text: bytes
    stamp: Stamp

    def told(self) -> tuple[tuple[int, int, str], dict[str, str] | None]:
        """What headers that tell of the same tensors share, and the metadata, which may differ.

        Metadata that do not come first are None, and shared too.
        """
        plain = plain_parts(self.text)
        digest = checksum(plain.entries.encode()) if plain else self.stamp.digest
        return (self.stamp.size, len(self.text), digest), plain and plain.metadata

    def parsed(self) -> Header:
        """Raises CheckpointError, naming the file and the place."""
        n_data = self.stamp.size - 8 - len(self.text)
        return replace(parse_header(self.text, n_data, self.path), stamp=self.stamp)


def read_header(path: Location) -> Header:
    """The header of a safetensors file. Raises CheckpointError, naming the file and the place."""
    return read_raw(path).parsed()


def read_raw(path: Location) -> RawHeader:
    """Its bytes alone. Raises CheckpointError if there are not so many, or none."""
    if isinstance(path, RemotePath):
        size, version = path.status()
        prefix = path.read(0, min(8, size))
        text = path.read(8, _length(prefix, size, path))
        return RawHeader(path, text, Stamp(size, 0, checksum(prefix + text), version))
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            prefix = file.read(8)
            text = file.read(_length(prefix, size, path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return RawHeader(path, text, Stamp(size, status.st_mtime_ns, checksum(prefix + text)))


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
    plain = plain_parts(text)
    tensors = plain_records(plain.entries, 8 + len(text), n_data) if plain else None
    return Header(tensors, plain.metadata) if plain and tensors else _parse_any(text, n_data, path)


class Plain(NamedTuple):
    """A header whose metadata, if any, come first, as safetensors writes it."""

    metadata: dict[str, str]
    entries: str  # of tensors, not looked at yet; nothing in them is escaped


def plain_parts(text: bytes) -> Plain | None:
    """None where it has another form, or what it is cannot be told."""
    if not text.startswith(b"{"):
        return None
    try:
        decoded = text.decode("utf-8").rstrip(" ")
        metadata, start = {}, 1
        if decoded.startswith(_METADATA):
            metadata, end = _STRICT.raw_decode(decoded, len(_METADATA))
            start = end + 1
    except (ValueError, RecursionError):
        return None
    if not (start == 1 or decoded[start - 1 : start] == ",") or not decoded.endswith("}"):
        return None
    entries = decoded[start:-1]
    if "\\" in entries or '"__metadata__"' in entries or not _are_texts(metadata):
        return None
    return Plain(metadata, entries)


def _parse_any(text: bytes, n_data: int, path: Location) -> Header:
    """Any header, entry by entry: the one that says what is wrong."""
    try:
        entries = _STRICT.decode(text.decode("utf-8"))
    except _DuplicateKeyError as error:
        raise CheckpointError(f"{path}: header has the key {error} twice") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: header is not JSON: {str(error)[:100]}") from None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: header: expected an object, found {_kind(entries)}")
    metadata = entries.pop("__metadata__", {})
    if not _are_texts(metadata):
        raise CheckpointError(f"{path}: __metadata__: expected an object of texts")
    data_start = 8 + len(text)
    if not text.isascii() or b"\\u" in text:
        for name in entries:
            if not storable(name):
                raise CheckpointError(f"{path}: tensor {name!r:.200}: its name is not Unicode text")
    records = records_of(entries, data_start, n_data, path)
    _refuse_constants(text, path)
    tensors = dict(sorted(records.items(), key=lambda item: (item[1].start, item[1].nbytes)))
    expected, previous = data_start, "the header"
    for name, record in tensors.items():
        if record.start != expected:
            problem = "overlaps" if record.start < expected else "leaves a hole after"
            raise CheckpointError(
                f"{path}: tensor {name!r:.200} {problem} {previous}: it starts at byte "
                f"{record.start - data_start} of the data, expected {expected - data_start}"
            )
        expected, previous = record.start + record.nbytes, f"tensor {name!r:.200}"
    if expected != data_start + n_data:
        raise CheckpointError(
            f"{path}: tensors end at byte {expected - data_start} of the data, but the file has "
            f"{n_data}; it is cut off or has bytes that belong to no tensor"
        )
    return Header(tensors, metadata)


def _refuse_constants(text: bytes, path: Location) -> None:
    """What Python's JSON alone takes for numbers: there may be some in what is not looked at."""

    def refuse(constant: str) -> None:
        raise CheckpointError(f"{path}: header is not JSON: it has {constant} for a value")

    if b"NaN" in text or b"Infinity" in text:
        json.loads(text, parse_constant=refuse)


def storable(name: str) -> bool:
    """Whether a header can have a tensor of this name."""
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape
        return False
    return name != "__metadata__"


class _DuplicateKeyError(ValueError):
    pass


_METADATA = '{"__metadata__":'


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise _DuplicateKeyError(repr(name))
        result[name] = value
    return result


_STRICT = json.JSONDecoder(object_pairs_hook=_unique_keys)


def _are_texts(metadata: Any) -> bool:
    return isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())


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
