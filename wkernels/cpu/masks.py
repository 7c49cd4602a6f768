"""A block's differences from the base, with zeros where a mask keeps nothing."""

from __future__ import annotations

import numpy as np

from wkernels import masks
from wkernels.cpu.elements import read
from wkernels.cpu.jit import inner
from wkernels.cpu.pointers import Pointers

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


@inner
def masked(
    i, segment, start, position, n, addresses, codes, scores, score_codes, chances, chance_codes,
    trims, keep, keep_before, drop, drop_before, key, chance, base, bits, sizes, limits, unbiased,
    values,
):  # fmt: skip
    """Row ``i``'s masked difference in ``values``; returns how many are NaN or Inf before."""
    read(codes[i], addresses[i], start, values, COLUMNS)
    bad = subtract(values, base)
    if trims[segment, i]:
        if scores.size:
            j = i if scores.size > 1 else 0
            read(score_codes[j], scores[j], start, sizes, COLUMNS)
            magnitudes(sizes, sizes)
        else:
            magnitudes(values, sizes)
        trim(
            values, bits, limits, position, keep[segment, i], keep_before[segment, i],
            drop[segment, i], drop_before[segment, i],
        )  # fmt: skip
    if chances.size:
        read(chance_codes[i], chances[i], start, sizes, COLUMNS)
        draw_each(values, position, key[segment, i], sizes, unbiased)
    elif chance[segment, i] < 1:
        draw(values, position, key[segment, i], chance[segment, i])
    return bad
