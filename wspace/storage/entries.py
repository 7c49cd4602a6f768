"""The entries of a safetensors header, checked: of which type, shape and place each tensor is."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from itertools import chain
from operator import sub
from typing import Any, NamedTuple

from wspace.errors import CheckpointError
from wspace.storage.remote import Location

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4, "C64": 64,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip
"""Every element type of the format, and its bits."""


class TensorRecord(NamedTuple):
    """Where a tensor lies in its file."""

    dtype: str  # a key of BITS
    shape: tuple[int, ...]
    start: int  # byte offset from the start of the file
    nbytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def records_of(
    entries: dict[str, Any], data_start: int, n_data: int, path: Location
) -> dict[str, TensorRecord]:
    """All of a header's entries, checked."""
    try:
        return _at_once(entries, data_start, n_data)
    except (KeyError, TypeError, ValueError):  # something is wrong: looked at one by one
        return {
            name: _record(entry, data_start, n_data, path, name) for name, entry in entries.items()
        }


def _at_once(entries: dict[str, Any], data_start: int, n_data: int) -> dict[str, TensorRecord]:
    """Column by column, as there may be a million; raises one of many errors if any is wrong."""
    values = entries.values()
    shapes = [entry["shape"] for entry in values]
    offsets = [entry["data_offsets"] for entry in values]
    places = list(chain.from_iterable(offsets))
    # by their types: True is equal to 1, and 1.0 too
    if not (
        {dict}.issuperset(map(type, values))
        and {list}.issuperset(map(type, chain(shapes, offsets)))
        and {int}.issuperset(map(type, chain(places, chain.from_iterable(shapes))))
        and {2}.issuperset(map(len, offsets))
    ):
        raise TypeError
    kinds = list(zip([entry["dtype"] for entry in values], map(tuple, shapes), strict=True))
    known = {kind: (*kind, _nbytes(*kind)) for kind in set(kinds)}
    begins, ends = places[::2], places[1::2]
    nbytes = [known[kind][2] for kind in kinds]
    if list(map(sub, ends, begins)) != nbytes or min(begins, default=0) < 0:
        raise ValueError
    if max(ends, default=0) > n_data:
        raise ValueError
    rows = [
        (*known[kind][:2], data_start + begin, n)
        for kind, begin, n in zip(kinds, begins, nbytes, strict=True)
    ]
    return dict(zip(entries, map(partial(tuple.__new__, TensorRecord), rows), strict=True))


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Raises KeyError or ValueError."""
    if not all(map(_natural, shape)):
        raise ValueError
    n_bits = _bits(dtype, shape)
    if n_bits is None or n_bits % 8:
        raise ValueError
    return n_bits // 8


def _bits(dtype: str, shape: Iterable[int]) -> int | None:
    """None: 2**63 bytes or more."""
    n_bits = BITS[dtype]
    for size in shape:
        n_bits *= size
        if n_bits >= 1 << 66:  # at once: the product of a long list would take minutes
            return None
    return n_bits


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
    n_bits = _bits(dtype, shape)
    if n_bits is None:
        raise wrong(f": {dtype} {shape!r:.80} takes 2**63 bytes or more")
    if (end - begin) * 8 != n_bits:
        raise wrong(
            f": {dtype} {shape!r:.80} takes {n_bits / 8:.15g} bytes, data_offsets give "
            f"{end - begin}"
        )
    return TensorRecord(dtype, tuple(shape), data_start + begin, end - begin)


_KEYS = {"dtype", "shape", "data_offsets"}


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
