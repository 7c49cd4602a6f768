"""A block's differences from the base, with zeros where a mask keeps nothing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wkernels import masks
from wkernels.cpu.differences import TRIMS
from wkernels.cpu.draws import draw_bits, keep_drawn, keep_each, keep_each_unbiased
from wkernels.cpu.elements import BFLOAT16, FLOAT16, FLOAT32, WIDTHS, read
from wkernels.cpu.jit import array_at
from wkernels.cpu.parts import inlined, inner
from wkernels.cpu.pointers import Pointers
from wkernels.cpu.vectors import TURN

COLUMNS = 1024
"""Elements at a time."""

KEPT = -1
"""In place of a type's code, of chances: bytes, 1 where an element is kept, 0 where it is not."""

BITS = {np.float32: np.int32, np.float64: np.int64}
"""The integers whose order is that of the magnitudes of a type."""

_GAMMA, _MIX_1, _MIX_2 = (np.uint64(n) for n in (masks.GAMMA, masks.MIX_1, masks.MIX_2))
_SHIFT = np.uint64(64 - masks.CHANCE_BITS)
UNITS = 2.0**masks.CHANCE_BITS
"""A draw's bits times so many are below 1."""
_UNIT = np.float32(1 / UNITS)
_30, _27 = (np.uint64(n) for n in (30, 27))


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
def _draw(key, counter):
    z = key + (counter + np.uint64(1)) * _GAMMA
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    # the last step of SplitMix64, z ^ (z >> 31), leaves the upper bits as they are
    return np.int32(z >> _SHIFT)


@inner
def _mixed(key, counter):
    return np.float32(_draw(key, counter)) * _UNIT


@inner
def draws_of(position, key, out):
    """The upper ``CHANCE_BITS`` of the draws of elements from ``position`` on; int32."""
    done = out.size - out.size % TURN
    draw_bits(done, position, key, out.ctypes.data)
    for k in range(done, out.size):
        out[k] = _draw(key, np.uint64(position + k))


@inner
def limit_of(chance):
    """The upper bits of draws that are kept are below it."""
    return np.int32(np.ceil(np.float64(chance) * UNITS))


@inner
def draw(values, position, key, chance, out):
    """Keeps each element with one chance."""
    n, done = values.size, 0
    if values.itemsize == 4:
        done = n - n % TURN
        limit = limit_of(chance)
        keep_drawn(values.ctypes.data, done, position, key, limit, out.ctypes.data)
    zero = values.dtype.type(0)
    for k in range(done, n):
        drawn = _mixed(key, np.uint64(position + k)) < chance
        out[k] = values[k] if drawn else zero


@inner
def draw_each(values, position, key, chances, unbiased, out):
    """Keeps each element with its own chance, divided by it if ``unbiased``."""
    n, done = values.size, 0
    if values.itemsize == 4:
        done = n - n % TURN
        row, of_each, to = values.ctypes.data, chances.ctypes.data, out.ctypes.data
        if unbiased:
            keep_each_unbiased(row, done, position, key, of_each, to)
        else:
            keep_each(row, done, position, key, of_each, to)
    zero, one = values.dtype.type(0), values.dtype.type(1)
    for k in range(done, n):
        drawn = _mixed(key, np.uint64(position + k)) < chances[k]
        kept = values[k] / (chances[k] if unbiased else one)
        out[k] = kept if drawn else zero


@inner
def _keep(values, kept, out):
    zero = values.dtype.type(0)
    for k in range(values.size):
        out[k] = values[k] if kept[k] else zero


NONE = Pointers(np.empty(0, np.int64), np.empty(0, np.int64))


class Tables(NamedTuple):
    """A ``Mask`` as the kernels take it, and which of its thresholds leave anything out."""

    trims: np.ndarray
    keep: np.ndarray
    keep_before: np.ndarray
    drop: np.ndarray
    drop_before: np.ndarray
    key: np.ndarray
    chance: np.ndarray


def tables_of(mask: masks.Mask, compute) -> Tables:
    """Places past the bits of a float32 are those of its infinity."""
    beyond = masks.BEYOND["float32" if compute is np.float32 else "float64"]
    keep, drop = np.minimum(mask.keep, beyond), np.minimum(mask.drop, beyond)
    trims = (keep != masks.NOTHING) | (drop != beyond)
    return Tables(trims, keep, mask.keep_before, drop, mask.drop_before, mask.key, mask.chance)


class Areas(NamedTuple):
    """What a thread works in: ``COLUMNS`` elements of everything."""

    values: np.ndarray  # of each row
    base: np.ndarray
    other: np.ndarray  # of one row, before or after it is drawn
    bits: np.ndarray  # of magnitudes
    sizes: np.ndarray  # the same memory, as floats
    limits: np.ndarray  # room for two of the bits


def areas_of(n_rows: int, compute) -> Areas:
    bits = np.empty(COLUMNS, BITS[compute])
    return Areas(
        np.empty((n_rows, COLUMNS), compute), np.zeros(COLUMNS, compute),
        np.empty(COLUMNS, compute), bits, bits.view(compute), np.empty(2, BITS[compute]),
    )  # fmt: skip


def _trimming(scored):
    """``function(code, row, n, base, scores, limits, values)``: how many differences it did; 0
    where any is NaN or Inf, which are counted slowly."""
    bfloat16, float16, float32 = (
        TRIMS[name, scored] for name in ("bfloat16", "float16", "float32")
    )

    @inner
    def run(code, row, n, base, scores, limits, values):
        n -= n % TURN
        finite = False
        if code == BFLOAT16:
            finite = bfloat16(row, n, base, scores, limits, values, COLUMNS)
        elif code == FLOAT32:
            finite = float32(row, n, base, scores, limits, values, COLUMNS)
        elif code == FLOAT16:
            finite = float16(row, n, base, scores, limits, values, COLUMNS)
        return n if finite else 0

    return run


_trim_fast, _trim_fast_by_scores = _trimming(False), _trimming(True)


@inner
def _divided(position, n, before):
    """Whether the place ``before`` divides a block."""
    return position < before < position + n


@inlined
def trimmed(i, segment, start, position, rows, scores, tables, base, bits, sizes, limits, values):
    """Row ``i``'s difference in ``values``, with zeros where thresholds leave it out.

    Returns how many differences are NaN or Inf.
    """
    n = values.size
    trims = tables.trims[segment, i]
    keep, drop = tables.keep[segment, i], tables.drop[segment, i]
    after, until = tables.keep_before[segment, i], tables.drop_before[segment, i]
    divided = _divided(position, n, after) or _divided(position, n, until)
    code, address = rows.codes[i], rows.addresses[i]
    scored = trims and scores.codes.size > 0
    j = i if scores.codes.size > 1 else 0
    done = 0
    if values.itemsize == 4 and not (trims and divided):
        limits[0], limits[1] = -1, (1 << 31) - 1
        if trims:
            limits[0] = keep - (1 if position < after else 0)
            limits[1] = drop - (1 if position < until else 0)
        row, edges, out = address + start * WIDTHS[code], limits.ctypes.data, values.ctypes.data
        if not scored:
            done = _trim_fast(code, row, n, base.ctypes.data, 0, edges, out)
        elif scores.codes[j] == FLOAT32:
            score = scores.addresses[j] + 4 * start
            done = _trim_fast_by_scores(code, row, n, base.ctypes.data, score, edges, out)
    bad = np.int64(0)
    if done < n:
        rest = values[done:]
        read(code, address, start + done, rest, COLUMNS)
        bad += subtract(rest, base[done:n])
        if trims:
            if scored:
                read(scores.codes[j], scores.addresses[j], start + done, sizes[done:n], COLUMNS)
                magnitudes(sizes[done:n], sizes[done:n])
            else:
                magnitudes(rest, sizes[done:n])
            trim(rest, bits[done:n], limits, position + done, keep, after, drop, until)
    return bad


@inner
def draws(i, segment, chances, tables):
    """Whether any of row ``i`` may be left out by chance."""
    return chances.codes.size > 0 or tables.chance[segment, i] < 1


@inlined
def drawn(i, segment, start, position, chances, tables, sizes, unbiased, values, out):
    """``out``: row ``i``'s differences, with zeros where they are not drawn."""
    key = tables.key[segment, i]
    n = values.size
    if chances.codes.size and chances.codes[i] == KEPT:
        _keep(values, array_at(chances.addresses[i] + start, n, np.uint8), out)
    elif chances.codes.size:
        read(chances.codes[i], chances.addresses[i], start, sizes[:n], COLUMNS)
        draw_each(values, position, key, sizes[:n], unbiased, out)
    else:
        draw(values, position, key, tables.chance[segment, i], out)


@inlined
def masked(i, segment, start, position, n, rows, scores, chances, tables, areas, unbiased):
    """Row ``i``'s masked difference in its area; returns how many are NaN or Inf before."""
    values = areas.values[i, :n]
    chosen = draws(i, segment, chances, tables)
    trim_to = areas.other[:n] if chosen else values
    bad = trimmed(
        i, segment, start, position, rows, scores, tables, areas.base, areas.bits, areas.sizes,
        areas.limits, trim_to,
    )  # fmt: skip
    if chosen:
        drawn(i, segment, start, position, chances, tables, areas.sizes, unbiased, trim_to, values)
    return bad


@inlined
def read_base(base, start, n, values):
    """The base's elements, if there is one; ``values`` stay 0 if there is none."""
    if base.codes.size == 1:
        read(base.codes[0], base.addresses[0], start, values[:n], COLUMNS)
