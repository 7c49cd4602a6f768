"""What elements are ranked by, where it is not their own magnitude; and blends of two rows."""

# Triton compiles no choice between values that are of different types
# ruff: noqa: SIM108

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from wkernels.gpu import addresses
from wkernels.gpu.elements import FLOAT32, base_pointer, decode, load, row_pointer, store
from wkernels.gpu.runs import Runs
from wkernels.gpu.selection import difference

LEAST = tl.constexpr(1e-6)
"""A magnitude of a difference that is divided by, at least."""


@triton.jit
def _variance_step(
    rows, base, out, n_rows, start, offsets, length,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    inside = offsets < length
    mean = tl.zeros(offsets.shape, tl.float64)
    for i in range(n_rows):
        row = row_pointer(tl.load(rows + i), start, CODE, ALIGNED)
        x = difference(row, base, offsets, inside, CODE, BASE_CODE, COMPUTE, MASKED)
        mean += x.to(tl.float64)
    count = n_rows.to(tl.float64)
    mean = mean / count
    square = tl.zeros(offsets.shape, tl.float64)
    for i in range(n_rows):
        row = row_pointer(tl.load(rows + i), start, CODE, ALIGNED)
        x = difference(row, base, offsets, inside, CODE, BASE_CODE, COMPUTE, MASKED)
        off = x.to(tl.float64) - mean
        square += off * off
    store(out, start, offsets, square / count, inside, FLOAT32, ALIGNED, MASKED)


@triton.jit(do_not_specialize=["base", "n_rows", "n_runs", "out"])
def row_variances(
    rows, base, runs, n_rows, n_runs, out,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """One program: a run of all rows, which pass by twice, the second time from the cache."""
    run = tl.program_id(0)
    start, length = tl.load(runs + run), tl.load(runs + n_runs + run).to(tl.int32)
    origin = base_pointer(base, start, BASE_CODE, ALIGNED)
    offsets = tl.arange(0, STEP)
    if length == STEP:
        _variance_step(
            rows, origin, out, n_rows, start, offsets, length, CODE, BASE_CODE, COMPUTE, ALIGNED,
            False,
        )  # fmt: skip
    else:
        _variance_step(
            rows, origin, out, n_rows, start, offsets, length, CODE, BASE_CODE, COMPUTE, ALIGNED,
            True,
        )  # fmt: skip


def variances(rows: Sequence[torch.Tensor], base: torch.Tensor | None, out: torch.Tensor) -> None:
    """``out[k]`` (float32): the population variance over the rows of their differences.

    In float64, rows in order. Bytes: each row, the base and the output once.
    """
    # a float64 division of each of more than 4 elements would spill
    runs = Runs.of(rows, base, np.array([[0, len(out)]]), None, out, elements_a_thread=4)
    if not runs.n:
        return
    with addresses.on_device_of(out):
        row_variances[(runs.n,)](*runs.arguments, out.data_ptr(), **runs.fixed)


@triton.jit
def _pull_step(
    row, base, out, reach, start, offsets, length,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, OUT_CODE: tl.constexpr, COMPUTE: tl.constexpr,
    ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    inside = offsets < length
    x = decode(load(row + offsets, inside, MASKED), CODE, COMPUTE)
    origin = decode(load(base + offsets, inside, MASKED), BASE_CODE, COMPUTE)
    d = x - origin
    size = tl.maximum(tl.abs(d), tl.full(d.shape, LEAST, COMPUTE))
    if tl.float32 == COMPUTE:
        share = tl.div_rn(reach + tl.zeros_like(size), size)
    else:
        share = reach / size
    share = tl.minimum(tl.maximum(share, 0.0), 1.0)
    # all of the difference is the row itself, bit for bit
    pulled = tl.where(share == 1, x, origin + share * d)
    store(out, start, offsets, pulled, inside, OUT_CODE, ALIGNED, MASKED)


@triton.jit(do_not_specialize=["base", "n_rows", "n_runs", "out"])
def pull_row(
    rows, base, runs, n_rows, n_runs, reaches, out,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, OUT_CODE: tl.constexpr, COMPUTE: tl.constexpr,
    ALIGNED: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    run = tl.program_id(0)
    start, length = tl.load(runs + run), tl.load(runs + n_runs + run).to(tl.int32)
    reach = tl.load(reaches + tl.load(runs + 2 * n_runs + run))
    row = row_pointer(tl.load(rows), start, CODE, ALIGNED)
    origin = row_pointer(base, start, BASE_CODE, ALIGNED)
    offsets = tl.arange(0, STEP)
    if length == STEP:
        _pull_step(
            row, origin, out, reach, start, offsets, length, CODE, BASE_CODE, OUT_CODE, COMPUTE,
            ALIGNED, False,
        )  # fmt: skip
    else:
        _pull_step(
            row, origin, out, reach, start, offsets, length, CODE, BASE_CODE, OUT_CODE, COMPUTE,
            ALIGNED, True,
        )  # fmt: skip


def pulled(
    row: torch.Tensor, base: torch.Tensor, segments: np.ndarray, reach: np.ndarray,
    out: torch.Tensor,
) -> int:  # fmt: skip
    """``out = base + clip(t / max(|d|, 1e-6), 0, 1) * d`` with ``d = row - base``, ``t`` of each
    segment in ``reach`` (float64 ``[S]``). Returns how many outputs are NaN or Inf.

    The bits are those of the CPU path. Bytes: the row, the base and the output once.
    """
    runs = Runs.of([row], base, segments, None, out)
    if not runs.n:
        return 0
    with addresses.on_device_of(out):
        pull_row[(runs.n,)](
            *runs.arguments, runs.upload(reach.astype(runs.compute)), out.data_ptr(),
            OUT_CODE=addresses.codes_of([out])[0], **runs.fixed,
        )  # fmt: skip
    return int((~torch.isfinite(out[segments.min() : segments.max()])).sum())
