"""Ranks in a line of magnitudes: counted where many are equal, sorted where few are.

The differences of 16-bit checkpoints have few bits: nearly all of a line's magnitudes are the first
number of a bucket, which is told by the upper half of their bits. Equal ones are counted in order,
and only the rest is sorted: what lies inside a bucket, or so far below the largest magnitude that
no bucket has it.

Counting equal ones is a chain: each has to wait for the count of the one before. So a line is
counted in ``PARTS`` that take turns, each with counts of its own, four to a word.
"""

from __future__ import annotations

import numpy as np

from wkernels.cpu.differences import bucket_keys, largest_bits
from wkernels.cpu.parts import inlined, inner
from wkernels.cpu.vectors import TURN

BUCKETS = 1024
"""128 for each power of two below a line's largest magnitude; what is smaller is in the first."""

TOGETHER = 16
"""Buckets that are looked at together, whether they are empty."""

PARTS = 4
LONGEST = (1 << 16) - 1
"""Elements of a line whose counts fit."""

_WITHIN = np.uint32(0xFFFF)
_1, ONE = np.uint16(1), np.uint64(1)
_16, _32, _11 = np.uint32(16), np.uint64(32), np.uint64(11)
_ALL = np.uint64(0x0001_0001_0001_0001)
"""A count times this is that count in each part."""


@inner
def _pack(bits, k):
    """In the order of magnitudes, equal ones in that of their places."""
    return (np.uint64(bits) << _32) | np.uint64(k)


@inner
def index_of(packed):
    return np.int64(packed & np.uint64(0xFFFFFFFF))


@inner
def bucket_of_each(bits, keys):
    """``8 * bucket`` of numbers that a bucket begins with (0 in the first), 1 more of others."""
    whole = bits.size - bits.size % TURN
    largest = largest_bits(bits.ctypes.data, whole)
    for k in range(whole, bits.size):
        largest = max(largest, np.int32(bits[k]))
    lowest = np.int32((largest >> 16) - (BUCKETS - 1))
    bucket_keys(bits.ctypes.data, whole, lowest, keys.ctypes.data)
    for k in range(whole, bits.size):
        bucket = max(np.int64(bits[k] >> _16) - lowest, 0)
        begins = bits[k] & _WITHIN == 0 if bucket > 0 else bits[k] == 0
        keys[k] = np.uint16(8 * bucket + (0 if begins else 1))


@inner
def count(keys, earlier, parts, within):
    """``parts[PARTS * bucket + part]``: how many elements of a part are what the bucket begins
    with; ``earlier``: how many such ones of its part are before each element.

    Returns how many elements are no such ones; their places are at the start of ``within``."""
    parts[:] = 0
    n_within = np.uint64(0)
    step, n_parts = np.uint64(keys.size // PARTS), np.uint64(PARTS)
    for turn in range(step):
        for part in range(n_parts):
            n_within = _count_one(keys, turn + part * step, part, earlier, parts, within, n_within)
    for k in range(n_parts * step, np.uint64(keys.size)):
        n_within = _count_one(keys, k, n_parts - ONE, earlier, parts, within, n_within)
    return np.int64(n_within)


@inlined
def _count_one(keys, k, part, earlier, parts, within, n_within):
    """Numbers without a sign: an index that may be negative takes longer."""
    odd, place = keys[k] & _1, place_of(keys[k], part)
    earlier[k] = parts[place]
    parts[place] = earlier[k] + (_1 - odd)
    within[n_within] = k
    return n_within + np.uint64(odd)


@inlined
def place_of(key, part):
    """``PARTS * bucket + part``."""
    return (np.uint64(key) >> ONE) + part


@inner
def add_up(bits, keys, counts, within, ranks):
    """``counts``: of each part, how many elements come before its first of a bucket.

    ``within``: the places of elements inside buckets; they are put in the order of their ``ranks``.
    """
    for j in range(within.size):
        within[j] = _pack(bits[index_of(within[j])], index_of(within[j]))
    _shell(within)
    total, j = np.uint64(0), 0
    for first in range(0, counts.size, TOGETHER):
        some = np.uint64(0)
        for bucket in range(first, first + TOGETHER):
            some |= counts[bucket]
        if not some:  # as in most
            continue
        for bucket in range(first, first + TOGETHER):
            if counts[bucket]:
                while j < within.size and keys[index_of(within[j])] >> 3 < bucket:
                    ranks[j] = total
                    total += ONE
                    j += 1
                until = counts[bucket] * _ALL  # of each part and those before it
                counts[bucket] = total * _ALL + (until << _16)
                total += until >> np.uint64(48)
    while j < within.size:
        ranks[j] = total
        total += ONE
        j += 1


@inner
def _shell(packed):
    """Sorts few, in place."""
    for gap in (100, 23, 5, 1):
        for rank in range(gap, packed.size):
            item = packed[rank]
            at = rank
            while at >= gap and packed[at - gap] > item:
                packed[at] = packed[at - gap]
                at -= gap
            packed[at] = item


@inner
def sort(bits, spare, packed, counts):
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
