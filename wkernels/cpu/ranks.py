"""What an element's rank in its line decides: its chance to be kept, or whether it is drawn.

Lines are ranked as ``ranking`` tells; where that does not help, as in float32, they are sorted.
Most draws are below the least chance of all ranks, or not below the largest: only between those do
ranks have to be looked up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wkernels.cpu.draws import decide
from wkernels.cpu.elements import read
from wkernels.cpu.jit import bare_kernel
from wkernels.cpu.masks import UNITS, draws_of, magnitudes, read_base, subtract
from wkernels.cpu.parallel import over_ranges
from wkernels.cpu.parts import inlined, inner
from wkernels.cpu.pointers import Pointers
from wkernels.cpu.ranking import (
    BUCKETS,
    LONGEST,
    ONE,
    PARTS,
    add_up,
    bucket_of_each,
    count,
    index_of,
    place_of,
    sort,
)
from wkernels.cpu.selection import compute_type
from wkernels.cpu.vectors import TURN

FEW = 256
"""So many numbers inside buckets are sorted by themselves."""

AGAIN = 31
"""Lines that are sorted after one of which more is inside buckets, until one is tried again."""


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
    table = _chances(shape[1], density, epsilon)
    _over_lines(row, base, n, shape, table, np.uint64(0), 0, out, threads)


def drawn_by_rank(
    row: Pointers,
    base: Pointers,
    n: int,
    shape: tuple[int, int, int],
    density: float,
    epsilon: float,
    key: np.uint64,
    first: int,
    out: np.ndarray,
    *,
    threads: int,
) -> None:
    """``out[k]`` (uint8): 1 if element ``first + k``'s draw is below :func:`rank_chances`, else 0.

    ``key``: of the draws; see ``masks.Mask``.
    """
    chances = _chances(shape[1], density, epsilon)
    # a draw is below a chance where its bits, as an integer, are below this
    table = np.ceil(chances.astype(np.float64) * UNITS).astype(np.int32)
    _over_lines(row, base, n, shape, table, key, first, out, threads)


def _chances(length: int, density: float, epsilon: float) -> np.ndarray:
    scaled = np.zeros(1) if length == 1 else 2.0 * np.arange(length) / (length - 1) - 1.0
    return (density + epsilon * scaled).astype(np.float32)


class Areas(NamedTuple):
    """What a thread works in."""

    values: np.ndarray  # of the lines that lie between each other
    base: np.ndarray
    sizes: np.ndarray
    bits: np.ndarray  # the same memory, as integers
    drawn: np.ndarray
    gathered: np.ndarray  # of one line, from here on
    keys: np.ndarray
    earlier: np.ndarray
    undecided: np.ndarray
    packed: np.ndarray
    spare: np.ndarray
    counts: np.ndarray  # of buckets, from here on
    parts: np.ndarray  # the same memory, a number for each part
    digits: np.ndarray


AREA_BYTES = 52
"""For each element of the lines that lie between each other, at most."""


def _areas(length: int, depth: int, compute) -> Areas:
    sizes, counts = np.empty(length * depth, np.float32), np.empty(BUCKETS, np.uint64)
    return Areas(
        *np.zeros((2, length * depth), compute), sizes, sizes.view(np.uint32),
        np.empty(length * depth, np.int32), np.empty(length, np.uint32),
        *np.empty((2, length), np.uint16), np.empty(length, np.uint32),
        *np.empty((2, length), np.uint64), counts, counts.view(np.uint16),
        np.empty((3, 2048), np.int64),
    )  # fmt: skip


def _over_lines(
    row: Pointers, base: Pointers, n: int, shape: tuple[int, int, int], table: np.ndarray,
    key: np.uint64, position: int, out: np.ndarray, threads: int,
) -> None:  # fmt: skip
    compute = compute_type(row, base)
    outer, length, depth = shape
    assert outer * length * depth == n

    def work(start: int, stop: int) -> None:
        areas = _areas(length, depth, compute)
        _rank_lines(row, base, depth, start, stop, table, key, position, areas, out)

    least = max(1, (1 << 14) // max(length, 1))
    over_ranges(work, outer * depth, step=1, threads=threads, least=least)


@bare_kernel
def _rank_lines(row, origin, depth, first, last, table, key, position, areas, out):
    """``out``: bytes, and ``table`` integers, where draws are decided; else chances."""
    length = table.size
    lines = length * depth
    lowest, highest = table[0], table[0]
    for rank in range(length):
        lowest, highest = min(lowest, table[rank]), max(highest, table[rank])
    bits, keys, packed, parts, drawn = (
        areas.bits, areas.keys, areas.packed, areas.parts, areas.drawn,
    )  # fmt: skip
    loaded = np.int64(-1)
    hopeless = 0 if length <= LONGEST else last  # lines that are sorted without a look at them
    for line in range(first, last):
        outer, place = line // depth, line % depth
        if outer != loaded:
            read(row.codes[0], row.addresses[0], outer * lines, areas.values, lines)
            read_base(origin, outer * lines, lines, areas.base)
            subtract(areas.values, areas.base)
            magnitudes(areas.values, areas.sizes)
            if out.itemsize == 1:
                draws_of(position + outer * lines, key, drawn)
            loaded = outer
        if depth > 1:
            for k in range(length):
                areas.gathered[k] = bits[k * depth + place]
        line_bits = areas.gathered if depth > 1 else bits
        target, draws = out[outer * lines + place :], drawn[place:]
        if hopeless > 0:
            hopeless -= 1
        else:
            bucket_of_each(line_bits, keys)
            n_within = count(keys, areas.earlier, parts, packed)
            if n_within <= FEW:
                within, ranks = packed[:n_within], areas.spare
                add_up(line_bits, keys, areas.counts, within, ranks)
                if out.itemsize == 1:
                    n = _decide(draws, lowest, highest, length, depth, target, areas.undecided)
                    _put_all(table, areas, areas.undecided[:n], draws, depth, target)
                else:
                    for k in range(length):
                        areas.undecided[k] = k
                    _put_all(table, areas, areas.undecided, draws, depth, target)
                for j in range(n_within):
                    _put(table, ranks[j], draws, index_of(within[j]) * depth, target)
                continue
            hopeless = AGAIN
        sort(line_bits, areas.spare, packed, areas.digits)
        for rank in range(length):
            _put(table, rank, draws, index_of(packed[rank]) * depth, target)


@inner
def _put_all(table, areas, places, draws, depth, target):
    """Of elements, in order, as if a bucket began with each."""
    step, n_parts = np.uint64(areas.keys.size // PARTS), np.uint64(PARTS)
    j = 0
    for part in range(n_parts):
        until = (part + ONE) * step if part + ONE < n_parts else np.uint64(areas.keys.size)
        while j < places.size and places[j] < until:
            k = np.uint64(places[j])
            rank = areas.parts[place_of(areas.keys[k], part)] + areas.earlier[k]
            _put(table, rank, draws, k * np.uint64(depth), target)
            j += 1


@inlined
def _put(table, rank, draws, place, target):
    if target.itemsize == 1:
        target[place] = draws[place] < table[rank]
    else:
        target[place] = table[rank]


@inner
def _decide(draws, lowest, highest, length, depth, target, undecided):
    """What is below all limits is kept; returns how many are below some. ``undecided``: those."""
    n, done = np.int64(0), 0
    if depth == 1:
        done = length - length % TURN
        n = decide(
            draws.ctypes.data, done, lowest, highest, target.ctypes.data, undecided.ctypes.data
        )
    for k in range(done, length):
        drawn = draws[k * depth]
        target[k * depth] = drawn < lowest
        if lowest <= drawn < highest:
            undecided[n] = np.uint32(k)
            n += 1
    return n
