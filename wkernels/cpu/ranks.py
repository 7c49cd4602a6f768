"""Chances by rank: the place of each magnitude in its line, without sorting what need not be.

The differences of 16-bit checkpoints have few bits: nearly all of a line's magnitudes are the first
number of a bucket, which is told by the upper half of their bits. Equal ones are counted in order,
and only the rest is sorted: what lies inside a bucket, or so far below the largest magnitude that
no bucket has it. Where that is much, as in float32, the line is sorted as a whole.

Counting equal ones is a chain: each has to wait for the count of the one before. So a line is
counted in ``PARTS`` that take turns, each with counts of its own, four to a word.
"""

from __future__ import annotations

import numpy as np

from wkernels.cpu.differences import bucket_keys, largest_bits
from wkernels.cpu.elements import read
from wkernels.cpu.jit import bare_kernel
from wkernels.cpu.masks import magnitudes, read_base, subtract
from wkernels.cpu.parallel import over_ranges
from wkernels.cpu.parts import inlined, inner
from wkernels.cpu.pointers import Pointers
from wkernels.cpu.selection import compute_type
from wkernels.cpu.vectors import TURN

BUCKETS = 1024
"""128 for each power of two below a line's largest magnitude; what is smaller is in the first."""

FEW = 64
"""So many numbers inside buckets are sorted by themselves."""

AGAIN = 31
"""Lines that are sorted after one of which more is inside buckets, until one is tried again."""

PARTS = 4
LONGEST = (1 << 16) - 1
"""Elements of a line whose counts fit: longer ones are sorted as a whole."""

_WITHIN = np.uint32(0xFFFF)
_1, _16, _32, _11 = np.uint16(1), np.uint32(16), np.uint64(32), np.uint64(11)
_ALL = np.uint64(0x0001_0001_0001_0001)
"""A count times this is that count in each part."""


def rank_chances(
    row: Pointers,
    base: Pointers,
    n: int,
    shape: tuple[int, int, int],
    density: float,
    epsilon: float,
    out: np.ndarray,
    *,
    threads: int,
) -> None:
    """``out[k]`` (float32): the chance of an element to be kept, by its rank in its line.

    The row is seen as ``shape`` (outer, length, inner); lines run along ``length``. Ranks are those
    of the magnitudes of ``row - base``, smallest first, equal ones in the order of their places,
    scaled to 0 ... 1 (0.5 in lines of one element): ``density + epsilon * (2 * rank - 1)``.
    """
    compute = compute_type(row, base)
    outer, length, depth = shape
    assert outer * length * depth == n
    scaled = np.zeros(1) if length == 1 else 2.0 * np.arange(length) / (length - 1) - 1.0
    table = (density + epsilon * scaled).astype(np.float32)

    def work(start: int, stop: int) -> None:
        sizes = np.empty(length * depth, np.float32)
        counts = np.empty(BUCKETS, np.uint64)
        _rank_chances(
            row, base, depth, start, stop, table, *np.zeros((2, length * depth), compute), sizes,
            sizes.view(np.uint32), np.empty(length, np.uint32), np.empty(length, np.uint16),
            *np.empty((2, length), np.uint64), counts, counts.view(np.uint16),
            np.empty(BUCKETS, np.uint16), np.empty((3, 2048), np.int64), out,
        )  # fmt: skip

    least = max(1, (1 << 14) // max(length, 1))
    over_ranges(work, outer * depth, step=1, threads=threads, least=least)


@bare_kernel
def _rank_chances(
    row, origin, depth, first, last, table, values, base, sizes, bits, gathered, keys, packed,
    spare, counts, parts, inside, digits, out,
):  # fmt: skip
    length = table.size
    lines = length * depth
    loaded = np.int64(-1)
    hopeless = 0 if length <= LONGEST else last  # lines that are sorted without a look at them
    for line in range(first, last):
        outer, place = line // depth, line % depth
        if outer != loaded:
            read(row.codes[0], row.addresses[0], outer * lines, values, lines)
            read_base(origin, outer * lines, lines, base)
            subtract(values, base)
            magnitudes(values, sizes)
            loaded = outer
        if depth > 1:
            for k in range(length):
                gathered[k] = bits[k * depth + place]
        line_bits = gathered if depth > 1 else bits
        target = out[outer * lines + place :]
        if hopeless > 0:
            hopeless -= 1
        else:
            _bucket(line_bits, keys)
            n_within = _count(keys, parts, packed)
            if n_within <= FEW:
                _add_up(keys, counts, inside, packed[:n_within])
                _rank_few(line_bits, keys, parts, packed[:n_within], table, depth, target)
                continue
            hopeless = AGAIN
        _sort(line_bits, spare, packed, digits)
        for rank in range(length):
            target[_index(packed[rank]) * depth] = table[rank]


@inner
def _pack(bits, k):
    """In the order of magnitudes, equal ones in that of their places."""
    return (np.uint64(bits) << _32) | np.uint64(k)


@inner
def _index(packed):
    return np.int64(packed & np.uint64(0xFFFFFFFF))


@inner
def _bucket(bits, keys):
    """``2 * bucket`` of numbers that a bucket begins with (0 in the first), 1 more of others."""
    whole = bits.size - bits.size % TURN
    largest = largest_bits(bits.ctypes.data, whole)
    for k in range(whole, bits.size):
        largest = max(largest, np.int32(bits[k]))
    lowest = np.int32((largest >> 16) - (BUCKETS - 1))
    bucket_keys(bits.ctypes.data, whole, lowest, keys.ctypes.data)
    for k in range(whole, bits.size):
        bucket = max(np.int64(bits[k] >> _16) - lowest, 0)
        begins = bits[k] & _WITHIN == 0 if bucket > 0 else bits[k] == 0
        keys[k] = np.uint16(2 * bucket + (0 if begins else 1))


@inner
def _count(keys, parts, within):
    """``parts[PARTS * bucket + part]``: how many elements of a part are what the bucket begins
    with. Returns how many are not; their places are at the start of ``within``."""
    parts[:] = 0
    n_within = np.int64(0)
    step = keys.size // PARTS
    for turn in range(step):
        for part in range(PARTS):
            n_within = _count_one(keys, turn + part * step, part, parts, within, n_within)
    for k in range(PARTS * step, keys.size):
        n_within = _count_one(keys, k, PARTS - 1, parts, within, n_within)
    return n_within


@inlined
def _count_one(keys, k, part, parts, within, n_within):
    odd = keys[k] & _1
    parts[_place(keys[k], part)] += _1 - odd
    within[n_within] = np.uint64(k)
    return n_within + np.int64(odd)


@inner
def _place(key, part):
    return PARTS * (np.int64(key) >> 1) + part


@inner
def _add_up(keys, counts, inside, within):
    """``counts``: of each part, how many elements come before its first of a bucket."""
    inside[:] = 0
    for j in range(within.size):
        inside[np.int64(keys[within[j]]) >> 1] += _1
    total = np.uint64(0)
    for bucket in range(counts.size):
        if counts[bucket] or inside[bucket]:  # most are empty
            until = counts[bucket] * _ALL  # of each part and those before it
            counts[bucket] = total * _ALL + (until << _16)
            total += (until >> np.uint64(48)) + np.uint64(inside[bucket])


@inlined
def _rank_one(keys, k, part, parts, table, depth, target):
    place = _place(keys[k], part)
    rank = parts[place]
    parts[place] = rank + (_1 - (keys[k] & _1))
    target[k * depth] = table[rank]


@inlined
def _rank_few(bits, keys, parts, within, table, depth, target):
    step = keys.size // PARTS
    for turn in range(step):
        for part in range(PARTS):
            _rank_one(keys, turn + part * step, part, parts, table, depth, target)
    for k in range(PARTS * step, keys.size):
        _rank_one(keys, k, PARTS - 1, parts, table, depth, target)
    for j in range(within.size):
        within[j] = _pack(bits[_index(within[j])], _index(within[j]))
    _insert(within)
    for j in range(within.size):  # after all that its bucket begins with
        k = _index(within[j])
        place = _place(keys[k], PARTS - 1)
        rank = parts[place]
        parts[place] = rank + _1
        target[k * depth] = table[rank]


@inner
def _insert(packed):
    """Sorts by insertion."""
    for rank in range(1, packed.size):
        item = packed[rank]
        at = rank
        while at > 0 and packed[at - 1] > item:
            packed[at] = packed[at - 1]
            at -= 1
        packed[at] = item


@inner
def _sort(bits, spare, packed, counts):
    """``packed``: all of a line, ascending, by a stable radix sort."""
    digit = np.uint64(2047)
    counts[:] = 0
    for k in range(bits.size):
        key = np.uint64(bits[k])
        spare[k] = _pack(bits[k], k)
        for d in range(3):
            counts[d, np.int64((key >> (_11 * np.uint64(d))) & digit)] += 1
    for d in range(3):
        total = 0
        for b in range(2048):
            count = counts[d, b]
            counts[d, b] = total
            total += count
        shift = _32 + _11 * np.uint64(d)
        source, target = (spare, packed) if d != 1 else (packed, spare)
        for k in range(bits.size):
            b = np.int64((source[k] >> shift) & digit)
            target[counts[d, b]] = source[k]
            counts[d, b] += 1
