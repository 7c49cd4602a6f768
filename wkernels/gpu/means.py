"""Means whose weights differ from element to element."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from wkernels.gpu import addresses
from wkernels.gpu.elements import decode, load, row_pointer, store
from wkernels.gpu.runs import Runs


@triton.jit
def _mean_step(
    rows, out, weights, floor, wrong, n_models, start, offsets, length,
    CODE: tl.constexpr, PRECISION_CODE: tl.constexpr, OUT_CODE: tl.constexpr,
    ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    inside = offsets < length
    top = tl.zeros(offsets.shape, tl.float64)
    bottom, even = top, top
    for i in range(n_models):
        row = row_pointer(tl.load(rows + i), start, CODE, ALIGNED)
        x = decode(load(row + offsets, inside, MASKED), CODE, tl.float64)
        row = row_pointer(tl.load(rows + n_models + i), start, PRECISION_CODE, ALIGNED)
        precision = decode(load(row + offsets, inside, MASKED), PRECISION_CODE, tl.float64)
        unfit = tl.where((precision >= 0) & (precision < float("inf")), 0, 1)
        tl.store(wrong + i, tl.sum(unfit, axis=0))
        weight = tl.load(weights + i)
        share = weight * tl.maximum(precision, floor)
        top += share * x
        bottom += share
        even += weight * x
    mean = tl.where(bottom > 0, top / tl.where(bottom > 0, bottom, 1.0), even)
    store(out, start, offsets, mean, inside, OUT_CODE, ALIGNED, MASKED)


@triton.jit(do_not_specialize=["n_models", "n_runs", "out", "n_segments"])
def mean_rows(
    rows, runs, n_models, n_runs, numbers, n_segments, wrong, out,
    CODE: tl.constexpr, PRECISION_CODE: tl.constexpr, OUT_CODE: tl.constexpr,
    ALIGNED: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: a run of all rows. ``numbers`` float64: each segment's floor, then each row's
    share of the weights in each segment."""
    run = tl.program_id(0)
    start, length = tl.load(runs + run), tl.load(runs + n_runs + run).to(tl.int32)
    segment = tl.load(runs + 2 * n_runs + run)
    weights = numbers + n_segments + segment * n_models
    floor = tl.load(numbers + segment)
    wrong += run.to(tl.int64) * n_models
    offsets = tl.arange(0, STEP)
    if length == STEP:
        _mean_step(
            rows, out, weights, floor, wrong, n_models, start, offsets, length,
            CODE, PRECISION_CODE, OUT_CODE, ALIGNED, False,
        )  # fmt: skip
    else:
        _mean_step(
            rows, out, weights, floor, wrong, n_models, start, offsets, length,
            CODE, PRECISION_CODE, OUT_CODE, ALIGNED, True,
        )  # fmt: skip


def precision_mean(
    rows: Sequence[torch.Tensor],
    precisions: Sequence[torch.Tensor],
    segments: np.ndarray,
    weights: np.ndarray,
    floors: np.ndarray,
    out: torch.Tensor,
    wrong: np.ndarray,
) -> int:
    """``out = sum_i w_i f_i x_i / sum_i w_i f_i``, ``f_i`` the precision or the floor, if larger.

    Meaning, arguments and bits are those of ``wkernels.cpu.precision_mean``: ``wrong`` gets the
    counts of precisions that are none; returns how many outputs are NaN or Inf.
    Bytes: each row, each precision and the output once.
    """
    # each kind of one type; Runs would convert all to one
    rows, precisions = _of_one_type(rows), _of_one_type(precisions)
    runs = Runs.of(rows, None, segments, None, out, *precisions, kernel="mean")
    if not runs.n:
        return 0
    table = np.asarray(addresses.addresses_of([*rows, *precisions]), np.int64)
    shares = weights / weights.sum(axis=1, keepdims=True)
    numbers = np.concatenate([floors, shares.ravel()])
    found = rows[0].new_empty((runs.n, len(rows)), dtype=torch.int32)
    with addresses.on_device_of(out):
        mean_rows[(runs.n,)](
            runs.upload(table), runs.table[len(rows) :], len(rows), runs.n,
            runs.upload(numbers), len(segments), found, out.data_ptr(),
            CODE=addresses.codes_of(rows)[0], PRECISION_CODE=addresses.codes_of(precisions)[0],
            OUT_CODE=addresses.codes_of([out])[0], ALIGNED=runs.fixed["ALIGNED"], STEP=runs.step,
            num_warps=runs.fixed["num_warps"], enable_fp_fusion=False,
        )  # fmt: skip
    runs.add_up(found, wrong)
    return int((~torch.isfinite(out[segments.min() : segments.max()])).sum())


def _of_one_type(rows: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    if len({row.dtype for row in rows}) == 1:
        return rows
    wide = any(row.dtype == torch.float64 for row in rows)
    return [row.to(torch.float64 if wide else torch.float32) for row in rows]
