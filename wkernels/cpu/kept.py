"""Sums and counts of what masks keep, on the CPU."""

from __future__ import annotations

import numpy as np

from wkernels.cpu.blocks import add_in_order, blocks_of
from wkernels.cpu.differences import add_sizes, add_squares
from wkernels.cpu.draws import ADD_DRAWN
from wkernels.cpu.elements import BFLOAT16, FLOAT16, FLOAT32, WIDTHS, read
from wkernels.cpu.jit import bare_kernel
from wkernels.cpu.masks import (
    COLUMNS,
    NONE,
    areas_of,
    drawn,
    draws,
    limit_of,
    masked,
    read_base,
    subtract,
    tables_of,
    trimmed,
)
from wkernels.cpu.parallel import over_ranges
from wkernels.cpu.parts import inner
from wkernels.cpu.pointers import Pointers
from wkernels.cpu.selection import compute_type
from wkernels.cpu.vectors import TURN
from wkernels.masks import Mask

N_SUMS = 4
"""Of a row: sum of |d| of all elements, of those kept, of their squares, and how many are kept."""

SIZES, SQUARES, COUNTS = 1, 2, 4
"""Which of them are wanted: the first two, the third, the fourth; may be added."""


def kept_sums(
    rows: Pointers,
    base: Pointers,
    segments: np.ndarray,
    firsts: np.ndarray,
    mask: Mask,
    sums: np.ndarray,
    *,
    scores: Pointers = NONE,
    chances: Pointers = NONE,
    wanted: int = SIZES + SQUARES + COUNTS,
    threads: int,
) -> None:
    """Adds to ``sums[s, i]`` the ``N_SUMS`` sums of row ``i`` in segment ``s``, in float64.

    Those that are not ``wanted`` stay as they are.
    ``firsts`` int64 ``[S]``: each segment's first element, counted from its tensor's start. The
    other arguments are those of :func:`joined`.
    """
    compute = compute_type(rows, base)
    blocks = blocks_of(segments)
    partial = np.zeros((len(blocks.ranges), len(rows), N_SUMS))
    positions = firsts - segments[:, 0]
    tables = tables_of(mask, compute)

    def work(start: int, stop: int) -> None:
        columns = np.empty((N_SUMS, COLUMNS))
        _sum_kept(
            rows, base, scores, chances, *blocks, positions, start, stop, tables, wanted,
            areas_of(1, compute), columns, partial,
        )  # fmt: skip

    over_ranges(work, len(blocks.ranges), step=1, threads=threads, least=4)
    add_in_order(partial, blocks.segments, sums)


def agreements(
    rows: Pointers,
    base: Pointers,
    segments: np.ndarray,
    firsts: np.ndarray,
    mask: Mask,
    counts: np.ndarray,
    *,
    threads: int,
) -> None:
    """Adds to ``counts[s, i]`` (int64 ``[S, N, 2]``) how many kept differences of row ``i`` are
    not 0 where other rows have such ones too, and where none has."""
    compute = compute_type(rows, base)
    blocks = blocks_of(segments)
    partial = np.zeros((len(blocks.ranges), len(rows), 2), np.int64)
    positions = firsts - segments[:, 0]
    tables = tables_of(mask, compute)

    def work(start: int, stop: int) -> None:
        _count_agreements(
            rows, base, *blocks, positions, start, stop, tables, areas_of(len(rows), compute),
            np.empty(COLUMNS, np.int32), NONE, partial,
        )  # fmt: skip

    over_ranges(work, len(blocks.ranges), step=1, threads=threads, least=4)
    add_in_order(partial, blocks.segments, counts)


@inner
def _differences(rows, i, start, base, values):
    read(rows.codes[i], rows.addresses[i], start, values, COLUMNS)
    subtract(values, base)


@inner
def _add_sizes(values, absolute):
    n, done = values.size, 0
    if values.itemsize == 4:
        done = n - n % TURN
        add_sizes(values.ctypes.data, done, absolute.ctypes.data)
    for k in range(done, n):
        absolute[k] += np.float64(abs(values[k]))


_drawn_bfloat16, _drawn_float16, _drawn_float32 = (
    ADD_DRAWN[name] for name in ("bfloat16", "float16", "float32")
)


@inner
def _add_drawn(code, row, n, base, position, key, chance, columns):
    """Sizes of a row's differences, and of those that one chance keeps; of how many of ``n``."""
    n -= n % TURN
    limit, sizes, kept = limit_of(chance), columns[0].ctypes.data, columns[1].ctypes.data
    if code == BFLOAT16:
        _drawn_bfloat16(row, n, base, position, key, limit, sizes, kept, COLUMNS)
    elif code == FLOAT32:
        _drawn_float32(row, n, base, position, key, limit, sizes, kept, COLUMNS)
    elif code == FLOAT16:
        _drawn_float16(row, n, base, position, key, limit, sizes, kept, COLUMNS)
    else:
        return 0
    return n


@inner
def _add_squares(values, square):
    n, done = values.size, 0
    if values.itemsize == 4:
        done = n - n % TURN
        add_squares(values.ctypes.data, done, square.ctypes.data)
    for k in range(done, n):
        size = np.float64(abs(values[k]))
        square[k] += size * size


@inner
def _add_counts(values, count):
    for k in range(values.size):
        count[k] += np.float64(values[k] != 0)


@inner
def _halved(columns):
    """The sum of ``COLUMNS`` numbers, halves onto halves."""
    half = columns.size // 2
    while half:
        for k in range(half):
            columns[k] += columns[k + half]
        half //= 2
    return columns[0]


@bare_kernel
def _sum_kept(
    rows, base, scores, chances, ranges, owners, positions, first, last, tables, wanted, areas,
    columns, partial,
):  # fmt: skip
    sizes = wanted & SIZES != 0
    asked = (sizes, sizes, wanted & SQUARES != 0, wanted & COUNTS != 0)
    for block in range(first, last):
        segment = owners[block]
        for i in range(rows.codes.size):  # one after the other: their columns fit into the cache
            for j in range(N_SUMS):
                if asked[j]:
                    columns[j, :] = 0
            trims = tables.trims[segment, i]
            # as dare: each with one chance, and no matter how large
            plain = wanted == SIZES and not trims and not chances.codes.size
            plain &= areas.values.itemsize == 4 and draws(i, segment, chances, tables)
            code, address = rows.codes[i], rows.addresses[i]
            key, chance = tables.key[segment, i], tables.chance[segment, i]
            for run in range(ranges[block, 0], ranges[block, 1], COLUMNS):
                n, done = min(COLUMNS, ranges[block, 1] - run), 0
                read_base(base, run, n, areas.base)
                if plain:
                    row = address + run * WIDTHS[code]
                    place = positions[segment] + run
                    origin = areas.base.ctypes.data
                    done = _add_drawn(code, row, n, origin, place, key, chance, columns)
                    if done == n:
                        continue
                start, n = run + done, n - done
                place = positions[segment] + start
                values, origins = areas.values[0, :n], areas.base[done:]
                if wanted & SIZES and trims:
                    _differences(rows, i, start, origins, values)
                    _add_sizes(values, columns[0, done:])
                trimmed(
                    i, segment, start, place, rows, scores, tables, origins, areas.bits,
                    areas.sizes, areas.limits, values,
                )  # fmt: skip
                if wanted & SIZES and not trims:
                    _add_sizes(values, columns[0, done:])
                if draws(i, segment, chances, tables):
                    chosen = areas.other[:n]
                    drawn(
                        i, segment, start, place, chances, tables, areas.sizes, False, values,
                        chosen,
                    )  # fmt: skip
                    values = chosen
                if wanted & SIZES:
                    _add_sizes(values, columns[1, done:])
                if wanted & SQUARES:
                    _add_squares(values, columns[2])
                if wanted & COUNTS:
                    _add_counts(values, columns[3])
            for j in range(N_SUMS):
                if asked[j]:
                    partial[block, i, j] = _halved(columns[j])


@inner
def count_kept(values, kept):
    for k in range(values.size):
        kept[k] += np.int32(values[k] != 0)


@inner
def _split_kept(values, kept, totals):
    shared = np.int64(0)
    alone = np.int64(0)
    for k in range(values.size):
        shared += np.int64((values[k] != 0) & (kept[k] > 1))
        alone += np.int64((values[k] != 0) & (kept[k] == 1))
    totals[0] += shared
    totals[1] += alone


@bare_kernel
def _count_agreements(
    rows, base, ranges, owners, positions, first, last, tables, areas, kept, none, partial
):
    n_rows = rows.codes.size
    for block in range(first, last):
        segment = owners[block]
        for start in range(ranges[block, 0], ranges[block, 1], COLUMNS):
            n = min(COLUMNS, ranges[block, 1] - start)
            read_base(base, start, n, areas.base)
            place = positions[segment] + start
            kept[:n] = 0
            for i in range(n_rows):
                masked(i, segment, start, place, n, rows, none, none, tables, areas, False)
                count_kept(areas.values[i, :n], kept)
            for i in range(n_rows):
                _split_kept(areas.values[i, :n], kept, partial[block, i])
