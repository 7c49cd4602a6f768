"""Sums and counts of what masks keep."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from wkernels.gpu import addresses, blocks
from wkernels.gpu.configs.shapes import SUM_COLUMNS
from wkernels.gpu.elements import base_pointer
from wkernels.gpu.masks import Tables, masked
from wkernels.gpu.runs import Runs
from wkernels.masks import Mask

N_SUMS = 4
"""Of a row: sum of |d| of all elements, of those kept, of their squares, and how many are kept."""
HALVINGS = tl.constexpr(SUM_COLUMNS.bit_length() - 1)


@triton.jit
def _add_kept(
    sums, rows, i, base, scores, limits, chances, entry, n_entries, start, place, offsets, length,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    SCORED: tl.constexpr, DRAWS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The running sums with one step of elements added; absent elements are zeros."""
    absolute, kept_absolute, square, count = sums
    x, kept = masked(
        rows, i, base, scores, limits, chances, entry, n_entries, start, place, offsets,
        offsets < length, CODE, BASE_CODE, COMPUTE, ALIGNED, SCORED, DRAWS, MASKED,
    )  # fmt: skip
    size = tl.abs(kept).to(tl.float64)
    return (
        absolute + tl.abs(x).to(tl.float64),
        kept_absolute + size,
        square + size * size,
        count + (kept != 0).to(tl.int32),
    )


@triton.jit
def _halved(columns):
    """The sum of all columns, halves onto halves."""
    for _ in tl.static_range(HALVINGS):
        columns = tl.sum(tl.reshape(columns, (2, columns.shape[0] // 2)), axis=0)
    return columns


@triton.jit(do_not_specialize=["base", "n_rows", "n_runs", "scores", "n_entries"])
def sum_kept(
    rows, base, runs, n_rows, n_runs, scores, limits, chances, n_entries, partials,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    SCORED: tl.constexpr, DRAWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: a run of one row."""
    run, i = tl.program_id(0) // n_rows, tl.program_id(0) % n_rows
    start, place = tl.load(runs + run), tl.load(runs + 3 * n_runs + run)
    length = tl.load(runs + n_runs + run).to(tl.int32)
    entry = tl.load(runs + 2 * n_runs + run) * n_rows + i
    origin = base_pointer(base, start, BASE_CODE, ALIGNED)
    offsets = tl.arange(0, STEP)
    zero = tl.zeros((STEP,), tl.float64)
    sums = (zero, zero, zero, tl.zeros((STEP,), tl.int32))
    full = length // STEP * STEP
    for step in range(0, full, STEP):
        sums = _add_kept(
            sums, rows, i, origin, scores, limits, chances, entry, n_entries, start, place,
            step + offsets, length, CODE, BASE_CODE, COMPUTE, ALIGNED, SCORED, DRAWS, False,
        )  # fmt: skip
    for step in range(full, length, STEP):
        sums = _add_kept(
            sums, rows, i, origin, scores, limits, chances, entry, n_entries, start, place,
            step + offsets, length, CODE, BASE_CODE, COMPUTE, ALIGNED, SCORED, DRAWS, True,
        )  # fmt: skip
    absolute, kept_absolute, square, count = sums
    out = partials + tl.program_id(0).to(tl.int64) * 4 + tl.arange(0, 1)
    tl.store(out, _halved(absolute))
    tl.store(out + 1, _halved(kept_absolute))
    tl.store(out + 2, _halved(square))
    tl.store(out + 3, tl.sum(count, axis=0).to(tl.float64))


def kept_sums(
    rows: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    segments: np.ndarray,
    firsts: np.ndarray,
    mask: Mask,
    sums: np.ndarray,
    *,
    scores: torch.Tensor | None = None,
    chances: torch.Tensor | None = None,
) -> None:
    """Adds to ``sums[s, i]``, float64 ``[S, N, N_SUMS]``, the sums of row ``i`` in segment ``s``.

    ``firsts`` int64 ``[S]``: each segment's first element, counted from its tensor's start.
    ``scores``: float32 ``[n]``, whose magnitudes the thresholds are for, if not the differences'.
    ``chances``: float32 ``[N, n]``, each element's own, if the mask has none.
    In float64, in the order of the CPU path: so are the bits. Those of the runs are added on the
    host. Bytes: each row once, the base and the scores once a row, from the cache but for the
    first.
    """
    others = [] if chances is None else list(chances)
    runs = Runs.of(
        rows, base, segments, firsts, scores, *others, kernel="sums", length=blocks.BLOCK
    )
    if not runs.n:
        return
    tables = Tables.of(mask, runs, scores, chances)
    partials = rows[0].new_empty((runs.n, len(rows), N_SUMS), dtype=torch.float64)
    fixed = runs.fixed | {"STEP": SUM_COLUMNS}
    with addresses.on_device_of(partials):
        sum_kept[(runs.n * len(rows),)](
            *runs.arguments, *tables.arguments, partials, **tables.fixed, **fixed
        )
    np.add.at(sums, runs.owners, partials.cpu().numpy())  # one after the other


@triton.jit
def _count_step(
    rows, base, limits, chances, n_entries, first, n_rows, start, place, offsets, length, counts,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    SCORED: tl.constexpr, DRAWS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    inside = offsets < length
    n_kept = tl.zeros(offsets.shape, tl.int32)
    for i in range(n_rows):
        _, x = masked(
            rows, i, base, 0, limits, chances, first + i, n_entries, start, place, offsets, inside,
            CODE, BASE_CODE, COMPUTE, ALIGNED, SCORED, DRAWS, MASKED,
        )  # fmt: skip
        n_kept += (x != 0).to(tl.int32)
    for i in range(n_rows):
        _, x = masked(
            rows, i, base, 0, limits, chances, first + i, n_entries, start, place, offsets, inside,
            CODE, BASE_CODE, COMPUTE, ALIGNED, SCORED, DRAWS, MASKED,
        )  # fmt: skip
        shared = tl.sum(((x != 0) & (n_kept > 1)).to(tl.int32), axis=0)
        alone = tl.sum(((x != 0) & (n_kept == 1)).to(tl.int32), axis=0)
        tl.store(counts + 2 * i, shared)
        tl.store(counts + 2 * i + 1, alone)


@triton.jit(do_not_specialize=["base", "n_rows", "n_runs", "scores", "n_entries"])
def count_agreements(
    rows, base, runs, n_rows, n_runs, scores, limits, chances, n_entries, counts,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    SCORED: tl.constexpr, DRAWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: a run of all rows, which pass by twice, the second time from the cache."""
    run = tl.program_id(0)
    start, place = tl.load(runs + run), tl.load(runs + 3 * n_runs + run)
    length = tl.load(runs + n_runs + run).to(tl.int32)
    first = tl.load(runs + 2 * n_runs + run) * n_rows
    origin = base_pointer(base, start, BASE_CODE, ALIGNED)
    offsets = tl.arange(0, STEP)
    counts += run.to(tl.int64) * n_rows * 2
    if length == STEP:
        _count_step(
            rows, origin, limits, chances, n_entries, first, n_rows, start, place, offsets, length,
            counts, CODE, BASE_CODE, COMPUTE, ALIGNED, SCORED, DRAWS, False,
        )  # fmt: skip
    else:
        _count_step(
            rows, origin, limits, chances, n_entries, first, n_rows, start, place, offsets, length,
            counts, CODE, BASE_CODE, COMPUTE, ALIGNED, SCORED, DRAWS, True,
        )  # fmt: skip


def agreements(
    rows: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    segments: np.ndarray,
    firsts: np.ndarray,
    mask: Mask,
    counts: np.ndarray,
) -> None:
    """Adds to ``counts[s, i]`` (int64 ``[S, N, 2]``) how many kept differences of row ``i`` are
    not 0 where other rows have such ones too, and where none has. Bytes: rows and base once."""
    runs = Runs.of(rows, base, segments, firsts, kernel="agreements")
    if not runs.n:
        return
    tables = Tables.of(mask, runs, None)
    partials = rows[0].new_empty((runs.n, len(rows), 2), dtype=torch.int32)
    with addresses.on_device_of(partials):
        count_agreements[(runs.n,)](
            *runs.arguments, *tables.arguments, partials, **tables.fixed, **runs.fixed
        )
    runs.add_up(partials, counts)
