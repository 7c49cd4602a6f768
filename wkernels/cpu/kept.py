"""Sums and counts of what masks keep, on the CPU."""

from __future__ import annotations

import numpy as np

from wkernels.cpu.blocks import add_in_order, blocks_of
from wkernels.cpu.elements import read
from wkernels.cpu.jit import inner, kernel
from wkernels.cpu.masks import COLUMNS, NONE, drawn, masked, subtract, tables_of, trimmed
from wkernels.cpu.parallel import over_ranges
from wkernels.cpu.pointers import Pointers
from wkernels.cpu.selection import BITS, compute_type
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
    like, bits = np.empty(0, compute), np.empty(0, BITS[compute])
    blocks = blocks_of(segments)
    partial = np.zeros((len(blocks.ranges), len(rows), N_SUMS))
    positions = firsts - segments[:, 0]
    tables = tables_of(mask, compute)

    def work(start: int, stop: int) -> None:
        _sum_kept(
            *rows, *base, *scores, *chances, blocks.ranges, blocks.segments, positions, start, stop,
            *tables, wanted, like, bits, partial,
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
    like, bits = np.empty(0, compute), np.empty(0, BITS[compute])
    blocks = blocks_of(segments)
    partial = np.zeros((len(blocks.ranges), len(rows), 2), np.int64)
    positions = firsts - segments[:, 0]
    tables = tables_of(mask, compute)

    def work(start: int, stop: int) -> None:
        _count_agreements(
            *rows, *base, *NONE, *NONE, blocks.ranges, blocks.segments, positions, start, stop,
            *tables, like, bits, partial,
        )  # fmt: skip

    over_ranges(work, len(blocks.ranges), step=1, threads=threads, least=4)
    add_in_order(partial, blocks.segments, counts)


@inner
def _add_sizes(values, absolute):
    for k in range(values.size):
        absolute[k] += np.float64(abs(values[k]))


@inner
def _add_squares(values, square):
    for k in range(values.size):
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


@kernel
def _sum_kept(
    addresses, codes, base_address, base_code, scores, score_codes, chances, chance_codes, ranges,
    owners, positions, first, last, trims, keep, keep_before, drop, drop_before, key, chance,
    wanted, like, bits_like, partial,
):  # fmt: skip
    values = np.empty(COLUMNS, like.dtype)
    base = np.zeros(COLUMNS, like.dtype)
    bits = np.empty(COLUMNS, bits_like.dtype)
    limits = np.empty(2, bits_like.dtype)
    sizes = bits.view(like.dtype)
    columns = np.zeros((addresses.size, N_SUMS, COLUMNS))
    for block in range(first, last):
        segment = owners[block]
        columns[:] = 0
        for start in range(ranges[block, 0], ranges[block, 1], COLUMNS):
            n = min(COLUMNS, ranges[block, 1] - start)
            if base_address.size == 1:
                read(base_code[0], base_address[0], start, base[:n], COLUMNS)
            place = positions[segment] + start
            for i in range(addresses.size):
                all_sizes = wanted & SIZES
                if all_sizes and trims[segment, i]:
                    read(codes[i], addresses[i], start, values[:n], COLUMNS)
                    subtract(values[:n], base[:n])
                    _add_sizes(values[:n], columns[i, 0, :n])
                    all_sizes = 0
                trimmed(
                    i, segment, start, place, n, addresses, codes, scores, score_codes, trims, keep,
                    keep_before, drop, drop_before, base[:n], bits[:n], sizes[:n], limits,
                    values[:n],
                )  # fmt: skip
                if all_sizes:
                    _add_sizes(values[:n], columns[i, 0, :n])
                drawn(
                    i, segment, start, place, chances, chance_codes, key, chance, sizes[:n], False,
                    values[:n],
                )  # fmt: skip
                if wanted & SIZES:
                    _add_sizes(values[:n], columns[i, 1, :n])
                if wanted & SQUARES:
                    _add_squares(values[:n], columns[i, 2, :n])
                if wanted & COUNTS:
                    _add_counts(values[:n], columns[i, 3, :n])
        for i in range(addresses.size):
            for j in range(N_SUMS):
                partial[block, i, j] = _halved(columns[i, j])


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


@kernel
def _count_agreements(
    addresses, codes, base_address, base_code, scores, score_codes, chances, chance_codes, ranges,
    owners, positions, first, last, trims, keep, keep_before, drop, drop_before, key, chance, like,
    bits_like, partial,
):  # fmt: skip
    n_rows = addresses.size
    values = np.empty((n_rows, COLUMNS), like.dtype)
    base = np.zeros(COLUMNS, like.dtype)
    bits = np.empty(COLUMNS, bits_like.dtype)
    limits = np.empty(2, bits_like.dtype)
    kept = np.empty(COLUMNS, np.int32)
    sizes = bits.view(like.dtype)
    for block in range(first, last):
        segment = owners[block]
        for start in range(ranges[block, 0], ranges[block, 1], COLUMNS):
            n = min(COLUMNS, ranges[block, 1] - start)
            if base_address.size == 1:
                read(base_code[0], base_address[0], start, base[:n], COLUMNS)
            kept[:n] = 0
            for i in range(n_rows):
                masked(
                    i, segment, start, positions[segment] + start, n, addresses, codes, scores,
                    score_codes, chances, chance_codes, trims, keep, keep_before, drop, drop_before,
                    key, chance, base[:n], bits[:n], sizes[:n], limits, False, values[i, :n],
                )  # fmt: skip
                count_kept(values[i, :n], kept[:n])
            for i in range(n_rows):
                _split_kept(values[i, :n], kept[:n], partial[block, i])
