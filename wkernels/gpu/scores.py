"""What elements are ranked by, where it is not their own magnitude; and blends of two rows."""

# Triton compiles no choice between values that are of different types
# ruff: noqa: SIM108

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from wkernels import dtypes
from wkernels.gpu import addresses, blocks, chips, configs, elements
from wkernels.gpu.elements import FLOAT32, base_pointer, decode, load, row_pointer, store
from wkernels.gpu.runs import Runs
from wkernels.gpu.selection import difference

LEAST = tl.constexpr(1e-6)
"""A magnitude of a difference that is divided by, at least."""
SOFTENING = tl.constexpr(1e-8)
"""Added to each number of a softmax."""


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
    runs = Runs.of(rows, base, np.array([[0, len(out)]]), None, out, kernel="variances")
    if not runs.n:
        return
    with addresses.on_device_of(out):
        row_variances[(runs.n,)](*runs.arguments, out.data_ptr(), **runs.fixed)


@triton.jit
def _pair(row, base, here, inside, CODE: tl.constexpr, BASE_CODE: tl.constexpr,
          COMPUTE: tl.constexpr):  # fmt: skip
    """A row's elements and the base's."""
    return (
        decode(load(row + here, inside, True), CODE, COMPUTE),
        decode(load(base + here, inside, True), BASE_CODE, COMPUTE),
    )


@triton.jit
def _powers(x, origin, top, base_top, inside):
    """Of e, in float64, of both less their largest; zeros where not ``inside``."""
    p = tl.exp(x.to(tl.float64) - top)
    q = tl.exp(origin.to(tl.float64) - base_top)
    return tl.where(inside, p, 0.0), tl.where(inside, q, 0.0)


@triton.jit(do_not_specialize=["row", "base", "n_lines", "out"])
def line_importances(
    row, base, lines, n_lines, out,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    EVEN: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: a line, which passes by four times, three of them from the cache.

    ``lines``: int64, the first element of each, then their lengths."""
    start = tl.load(lines + tl.program_id(0))
    length = tl.multiple_of(tl.load(lines + n_lines + tl.program_id(0)).to(tl.int32), EVEN)
    row = row_pointer(row, start, CODE, ALIGNED)
    base = row_pointer(base, start, BASE_CODE, ALIGNED)
    offsets = tl.arange(0, STEP)
    lowest = tl.full((STEP,), float("-inf"), COMPUTE)
    tops, base_tops = lowest, lowest
    for step in range(0, length, STEP):
        here = step + offsets
        x, origin = _pair(row, base, here, here < length, CODE, BASE_CODE, COMPUTE)
        tops = tl.maximum(tops, tl.where(here < length, x, lowest))
        base_tops = tl.maximum(base_tops, tl.where(here < length, origin, lowest))
    top = tl.max(tops, axis=0).to(tl.float64)
    base_top = tl.max(base_tops, axis=0).to(tl.float64)
    sums, base_sums = tl.zeros((STEP,), tl.float64), tl.zeros((STEP,), tl.float64)
    for step in range(0, length, STEP):
        here = step + offsets
        x, origin = _pair(row, base, here, here < length, CODE, BASE_CODE, COMPUTE)
        p, q = _powers(x, origin, top, base_top, here < length)
        sums, base_sums = sums + p, base_sums + q
    total, base_total = tl.sum(sums, axis=0), tl.sum(base_sums, axis=0)
    divergences = tl.zeros((STEP,), tl.float64)
    for step in range(0, length, STEP):
        here = step + offsets
        x, origin = _pair(row, base, here, here < length, CODE, BASE_CODE, COMPUTE)
        p, q = _powers(x, origin, top, base_top, here < length)
        p, q = p / total + SOFTENING, q / base_total + SOFTENING
        divergences += tl.where(here < length, p * tl.log(p / q), 0.0)
    divergence = tl.sum(divergences, axis=0)
    for step in range(0, length, STEP):
        here = step + offsets
        x, origin = _pair(row, base, here, here < length, CODE, BASE_CODE, COMPUTE)
        found = tl.abs(x - origin).to(tl.float64) * divergence
        store(out, start, here, found, here < length, FLOAT32, ALIGNED, True)


def importances(
    row: torch.Tensor, base: torch.Tensor, segments: np.ndarray, lengths: np.ndarray,
    out: torch.Tensor,
) -> None:  # fmt: skip
    """``out[k]`` (float32): ``|row - base|`` times how far its line's softmax is from the base's.

    Segment ``s`` is cut into lines of ``lengths[s]`` elements. ``p`` and ``q``: the softmax of the
    row's and of the base's line, each plus 1e-8; the factor is ``sum p ln(p / q)`` over the line,
    in float64: before the rounding to float32 it is the CPU path's but for rounding in float64.
    Bytes: the row and the base once, and three times from the cache; the output once.
    """
    starts, sizes, _ = blocks.cut(segments, lengths)
    if not len(starts):
        return
    codes = addresses.codes_of([row, base])
    itemsize = min(row.element_size(), base.element_size())
    compute = dtypes.compute_type(addresses.type_name(row), addresses.type_name(base))
    even, chip = addresses.alignment(lengths), chips.current()
    config = configs.choosing(chip.family, "importances", itemsize=itemsize, lanes=chip.lanes)
    with addresses.on_device_of(out):
        line_importances[(len(starts),)](
            row.data_ptr(), base.data_ptr(),
            addresses.to_device(np.concatenate([starts, sizes]), out.device), len(starts),
            out.data_ptr(), CODE=codes[0], BASE_CODE=codes[1],
            COMPUTE=elements.FLOAT_TYPES[compute],
            ALIGNED=int(np.gcd(blocks.alignment([row, base, out], segments), even * itemsize)),
            EVEN=even, STEP=config.step, num_warps=config.num_warps,
            enable_fp_fusion=False,
        )  # fmt: skip


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
    runs = Runs.of([row], base, segments, None, out, kernel="pull")
    if not runs.n:
        return 0
    with addresses.on_device_of(out):
        pull_row[(runs.n,)](
            *runs.arguments, runs.upload(reach.astype(runs.compute)), out.data_ptr(),
            OUT_CODE=addresses.codes_of([out])[0], **runs.fixed,
        )  # fmt: skip
    return int((~torch.isfinite(out[segments.min() : segments.max()])).sum())
