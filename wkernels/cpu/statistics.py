"""Power sums, extremes and counts of rows on the CPU, in one read."""

from __future__ import annotations

import numpy as np

from wkernels.cpu.blocks import add_in_order, blocks_of
from wkernels.cpu.elements import read
from wkernels.cpu.jit import kernel
from wkernels.cpu.parallel import over_ranges
from wkernels.cpu.parts import inner
from wkernels.cpu.pointers import Pointers
from wkernels.moments import CHANGED, MAX_ABS, NON_FINITE, SUM, SUM2, SUM3, SUM4, N

COLUMNS = 1024
LANES = 8


def row_moments(
    rows: Pointers, base: Pointers, segments: np.ndarray, sums: np.ndarray, *, threads: int
) -> None:
    """Adds to ``sums[s, i]`` the columns of ``wkernels.moments`` for row ``i`` in segment ``s``.

    ``segments``: int64 ``[n_segments, 2]``; ``sums``: float64 ``[n_segments, n_rows, N]``; its
    column ``MAX_ABS`` is a maximum instead.
    """
    blocks = blocks_of(segments)
    wide = rows.compute is np.float64 or base.compute is np.float64
    like = np.empty(0, np.float64 if wide else np.float32)
    partial = np.zeros((len(blocks.ranges), len(rows), N))

    def work(start: int, stop: int) -> None:
        _blocks(*rows, *base, blocks.ranges, start, stop, like, partial)

    over_ranges(work, len(blocks.ranges), step=1, threads=threads, least=4)
    largest = sums[:, :, MAX_ABS].copy()
    np.maximum.at(largest, blocks.segments, partial[:, :, MAX_ABS])
    add_in_order(partial, blocks.segments, sums)
    sums[:, :, MAX_ABS] = largest


@inner
def _accumulate(values, totals, largest):
    """Adds the powers of the finite values to ``totals [4, LANES]``; returns how many are not."""
    bad = np.int64(0)
    for k in range(0, values.size, LANES):
        for lane in range(LANES):
            value = np.float64(values[k + lane])
            size = abs(value)
            finite = size < np.inf
            bad += np.int64(not finite)
            value = value if finite else 0.0
            size = size if finite else 0.0
            square = value * value
            totals[0, lane] += value
            totals[1, lane] += square
            totals[2, lane] += square * value
            totals[3, lane] += square * square
            largest[lane] = size if size > largest[lane] else largest[lane]
    return bad


@inner
def _count_changed(values, base):
    changed = np.int64(0)
    for k in range(values.size):
        changed += np.int64(values[k] != base[k])
    return changed


@kernel
def _blocks(addresses, codes, base_address, base_code, ranges, first, last, like, partial):
    based = base_address.size == 1
    values = np.empty(COLUMNS, like.dtype)
    base = np.empty(COLUMNS, like.dtype)
    totals = np.empty((4, LANES))
    largest = np.empty(LANES)
    for block in range(first, last):
        for i in range(addresses.size):
            totals[:] = 0
            largest[:] = 0
            sums = partial[block, i]
            for start in range(ranges[block, 0], ranges[block, 1], COLUMNS):
                n = min(COLUMNS, ranges[block, 1] - start)
                read(codes[i], addresses[i], start, values[:n], COLUMNS)
                if based:
                    read(base_code[0], base_address[0], start, base[:n], COLUMNS)
                    sums[CHANGED] += _count_changed(values[:n], base[:n])
                width = -(-n // LANES) * LANES
                values[n:width] = 0
                sums[NON_FINITE] += _accumulate(values[:width], totals, largest)
            sums[SUM] = totals[0].sum()
            sums[SUM2] = totals[1].sum()
            sums[SUM3] = totals[2].sum()
            sums[SUM4] = totals[3].sum()
            sums[MAX_ABS] = largest.max()
