"""The entries of a safetensors header, checked: of which type, shape and place each tensor is."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from functools import partial
from itertools import accumulate, chain
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


def plain_records(text: str, data_start: int, n_data: int) -> dict[str, TensorRecord] | None:
    """The entries of a header in the form that safetensors writes; None for ``records_of`` to tell.

    ``text``: the entries alone, ``"name":{"dtype":"BF16",...},...``, without a backslash. Column by
    column, as there may be a million: each must be where the one before ends.
    """
    encoded = text.encode()
    if len(encoded.translate(None, _CONTROL)) < len(encoded):
        return None  # JSON has none of these as they are
    found = _PLAIN.findall(text)
    if len("".join(chain.from_iterable(found))) + _AROUND * len(found) != len(text) + 1:
        return None  # something lies between entries, or there is none
    names, kinds, begins, ends = zip(*found, strict=True)
    try:
        known = {kind: _kind(**json.loads(f"{{{kind}}}")) for kind in set(kinds)}
    except (KeyError, ValueError, RecursionError):
        return None
    dtypes, shapes, nbytes = zip(*map(known.__getitem__, kinds), strict=True)
    places = list(accumulate(nbytes, initial=0))
    written = tuple(map(str, places))
    if begins != written[:-1] or ends != written[1:] or places[-1] != n_data:
        return None
    starts = map(data_start.__add__, places)
    rows = zip(dtypes, shapes, starts, nbytes)  # noqa: B905 - one place more: the end
    records = dict(zip(names, map(partial(tuple.__new__, TensorRecord), rows), strict=True))
    return records if len(records) == len(names) else None


_CONTROL = bytes(range(32))

_PLAIN = re.compile(
    r'"([^"]*)":\{("dtype":"[^"]*","shape":\[[^]"]*\]),"data_offsets":\[([^,"]*),([^]"]*)\]\}(?:,|\Z)'
)
_AROUND = len('"":{,"data_offsets":[,]},')
"""Letters of an entry besides what is found."""


def _kind(dtype: str, shape: list[int]) -> tuple[str, tuple[int, ...], int]:
    """Type, shape and bytes; raises KeyError or ValueError."""
    if not all(map(_natural, shape)):
        raise ValueError
    n_bits = _bits(dtype, shape)
    if n_bits is None or n_bits % 8:
        raise ValueError
    return dtype, tuple(shape), n_bits // 8


def records_of(
    entries: dict[str, Any], data_start: int, n_data: int, path: Location
) -> dict[str, TensorRecord]:
    """All of a header's entries, checked one by one."""
    return {name: _record(entry, data_start, n_data, path, name) for name, entry in entries.items()}


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
