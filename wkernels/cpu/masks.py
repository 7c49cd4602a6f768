"""A block's differences from the base, with zeros where a mask keeps nothing."""

from __future__ import annotations

import numpy as np

from wkernels import masks
from wkernels.cpu.differences import TRIMS
from wkernels.cpu.elements import BFLOAT16, FLOAT16, FLOAT32, WIDTHS, read
from wkernels.cpu.jit import inner
from wkernels.cpu.pointers import Pointers
from wkernels.cpu.vectors import TURN

COLUMNS = 1024
"""Elements at a time."""

_GAMMA, _MIX_1, _MIX_2 = (np.uint64(n) for n in (masks.GAMMA, masks.MIX_1, masks.MIX_2))
_SHIFT = np.uint64(64 - masks.CHANCE_BITS)
_UNIT = np.float32(2.0**-masks.CHANCE_BITS)
_30, _27, _31 = (np.uint64(n) for n in (30, 27, 31))


@inner
def subtract(values, base):
    """``values -= base``; returns how many differences are NaN or Inf."""
    bad = np.int64(0)
    for k in range(values.size):
        values[k] -= base[k]
        bad += np.int64(not abs(values[k]) < np.inf)
    return bad


@inner
def magnitudes(values, sizes):
    for k in range(values.size):
        sizes[k] = abs(values[k])


@inner
def _keep_between(values, bits, low, high):
    """Zeros but where ``low < bits <= high``."""
    zero = values.dtype.type(0)
    for k in range(values.size):
        inside = (bits[k] > low) & (bits[k] <= high)
        values[k] = values[k] if inside else zero


@inner
def trim(values, bits, limits, position, keep, keep_before, drop, drop_before):
    """Keeps what is among the largest and no outlier; ``bits`` are those of the magnitudes.

    ``position``: the block's first element, counted from its tensor's start. ``limits`` is room
    for two integers of the type of ``bits``.
    """
    n = values.size
    # elements equal to a threshold are on one side of it up to a place, on the other after that
    first = min(max(keep_before - position, 0), n)
    second = min(max(drop_before - position, 0), n)
    start = 0
    for stop in (min(first, second), max(first, second), n):
        if stop > start:
            limits[0] = keep - 1 if start < first else keep
            limits[1] = drop - 1 if start < second else drop
            _keep_between(values[start:stop], bits[start:stop], limits[0], limits[1])
            start = stop


@inner
def _mixed(key, counter):
    z = key + (counter + np.uint64(1)) * _GAMMA
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return np.float32(np.int32((z ^ (z >> _31)) >> _SHIFT)) * _UNIT


@inner
def draw(values, position, key, chance):
    """Keeps each element with one chance."""
    zero = values.dtype.type(0)
    for k in range(values.size):
        drawn = _mixed(key, np.uint64(position + k)) < chance
        values[k] = values[k] if drawn else zero


@inner
def draw_each(values, position, key, chances, unbiased):
    """Keeps each element with its own chance, divided by it if ``unbiased``."""
    zero, one = values.dtype.type(0), values.dtype.type(1)
    for k in range(values.size):
        drawn = _mixed(key, np.uint64(position + k)) < chances[k]
        kept = values[k] / (chances[k] if unbiased else one)
        values[k] = kept if drawn else zero


NONE = Pointers(np.empty(0, np.int64), np.empty(0, np.int64))


def tables_of(mask: masks.Mask, compute) -> tuple:
    """As the kernels take them; places past the bits of a float32 are those of its infinity."""
    beyond = masks.BEYOND["float32" if compute is np.float32 else "float64"]
    keep, drop = np.minimum(mask.keep, beyond), np.minimum(mask.drop, beyond)
    trims = (keep != masks.NOTHING) | (drop != beyond)
    return trims, keep, mask.keep_before, drop, mask.drop_before, mask.key, mask.chance


_trim_bfloat16, _trim_float16, _trim_float32 = (
    TRIMS[name] for name in ("bfloat16", "float16", "float32")
)


@inner
def _trim_fast(code, row, n, base, limits, values):
    """How many differences it did: none where any is NaN or Inf, which are counted slowly."""
    n -= n % TURN
    finite = False
    if code == BFLOAT16:
        finite = _trim_bfloat16(row, n, base, limits, values, COLUMNS)
    elif code == FLOAT32:
        finite = _trim_float32(row, n, base, limits, values, COLUMNS)
    elif code == FLOAT16:
        finite = _trim_float16(row, n, base, limits, values, COLUMNS)
    return n if finite else 0


@inner
def _divided(position, n, before):
    """Whether the place ``before`` divides a block."""
    return position < before < position + n


@inner
def trimmed(
    i, segment, start, position, n, addresses, codes, scores, score_codes, trims, keep, keep_before,
    drop, drop_before, base, bits, sizes, limits, values,
):  # fmt: skip
    """Row ``i``'s difference in ``values``, with zeros where thresholds leave it out.

    Returns how many differences are NaN or Inf.
    """
    trims_it = trims[segment, i]
    after, until = keep_before[segment, i], drop_before[segment, i]
    divided = _divided(position, n, after) or _divided(position, n, until)
    done = 0
    if values.itemsize == 4 and not (trims_it and (scores.size or divided)):
        limits[0], limits[1] = -1, (1 << 31) - 1
        if trims_it:
            limits[0] = keep[segment, i] - (1 if position < after else 0)
            limits[1] = drop[segment, i] - (1 if position < until else 0)
        row = addresses[i] + start * WIDTHS[codes[i]]
        done = _trim_fast(
            codes[i], row, n, base.ctypes.data, limits.ctypes.data, values.ctypes.data
        )
    bad = np.int64(0)
    if done < n:
        rest = values[done:]
        read(codes[i], addresses[i], start + done, rest, COLUMNS)
        bad += subtract(rest, base[done:])
        if trims_it:
            if scores.size:
                j = i if scores.size > 1 else 0
                read(score_codes[j], scores[j], start + done, sizes[done:], COLUMNS)
                magnitudes(sizes[done:], sizes[done:])
            else:
                magnitudes(rest, sizes[done:])
            trim(
                rest, bits[done:], limits, position + done, keep[segment, i], after,
                drop[segment, i], until,
            )  # fmt: skip
    return bad


@inner
def drawn(
    i, segment, start, position, chances, chance_codes, key, chance, sizes, unbiased, values
):  # fmt: skip
    """Zeros in ``values``, row ``i``'s differences, where they are not drawn."""
    if chances.size:
        read(chance_codes[i], chances[i], start, sizes, COLUMNS)
        draw_each(values, position, key[segment, i], sizes, unbiased)
    elif chance[segment, i] < 1:
        draw(values, position, key[segment, i], chance[segment, i])


@inner
def masked(
    i, segment, start, position, n, addresses, codes, scores, score_codes, chances, chance_codes,
    trims, keep, keep_before, drop, drop_before, key, chance, base, bits, sizes, limits, unbiased,
    values,
):  # fmt: skip
    """Row ``i``'s masked difference in ``values``; returns how many are NaN or Inf before."""
    bad = trimmed(
        i, segment, start, position, n, addresses, codes, scores, score_codes, trims, keep,
        keep_before, drop, drop_before, base, bits, sizes, limits, values,
    )  # fmt: skip
    drawn(i, segment, start, position, chances, chance_codes, key, chance, sizes, unbiased, values)
    return bad
