"""Masked differences joined with a sign election and a division: ``wkernels.masks`` in one read."""

# Triton compiles no choice between values that are of different types
# ruff: noqa: SIM108

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from wkernels import masks
from wkernels.gpu import addresses, elements
from wkernels.gpu.elements import NONE, base_pointer, decode, load, store
from wkernels.gpu.masks import Tables, masked
from wkernels.gpu.runs import Runs

SIGNS = tl.constexpr(masks.ELECT["signs"])


@triton.jit
def _elected(
    rows, base, scores, limits, chances, n_entries, first, votes, undecided, n_rows, start, place,
    offsets, inside,
    ELECT: tl.constexpr, CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr,
    ALIGNED: tl.constexpr, SCORED: tl.constexpr, DRAWS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The sign that the rows elect, and its balance, in which what is undecided does not count.

    Votes are added in float64, where those that cancel are 0.
    """
    poll = tl.zeros(offsets.shape, tl.float64)
    for i in range(n_rows):
        _, x = masked(
            rows, i, base, scores, limits, chances, first + i, n_entries, start, place, offsets,
            inside, CODE, BASE_CODE, COMPUTE, ALIGNED, SCORED, DRAWS, MASKED,
        )  # fmt: skip
        vote = tl.load(votes + i).to(tl.float64) * x.to(tl.float64)
        if ELECT == SIGNS:
            poll += tl.where(vote > 0, 1.0, 0.0).to(tl.float64)
            poll -= tl.where(vote < 0, 1.0, 0.0).to(tl.float64)
        else:
            poll += vote
    sign = tl.where(poll > 0, 1.0, tl.where(poll < 0, -1.0, undecided))
    return sign.to(COMPUTE), tl.where(poll > 0, 1, 0) - tl.where(poll < 0, 1, 0)


@triton.jit
def _agreeing(x, vote, elected, ELECT: tl.constexpr):
    """Zeros where the row's vote is not for the elected sign; a NaN stays."""
    if ELECT != 0:
        sign = tl.where(vote > 0, 1.0, tl.where(vote < 0, -1.0, 0.0)).to(x.dtype)
        x = tl.where(x * (sign * elected) <= 0, 0.0, x)
    return x


@triton.jit
def _join_step(
    rows, base, out, scores, limits, chances, n_entries, numbers, segment, n_segments,
    n_rows, start, place, offsets, length,
    ELECT: tl.constexpr, DIVIDE: tl.constexpr, LONE: tl.constexpr, SCORED: tl.constexpr,
    DRAWS: tl.constexpr, CODE: tl.constexpr, BASE_CODE: tl.constexpr, OUT_CODE: tl.constexpr,
    COMPUTE: tl.constexpr, ALIGNED: tl.constexpr, STEP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """How many differences are NaN or Inf, and without an output the elected signs.

    ``numbers``: the least share and the undecided sign, each segment's scale, then each row's
    factor, vote, share and lone factor in each segment.
    """
    inside = offsets < length
    bad, balance = tl.zeros((STEP,), tl.int32), tl.zeros((STEP,), tl.int32)
    first = segment * n_rows
    least, undecided = tl.load(numbers), tl.load(numbers + 1)
    scale = tl.load(numbers + 2 + segment)
    factors = numbers + 2 + n_segments + first
    votes, shares = factors + n_entries, factors + 2 * n_entries
    lone = factors + 3 * n_entries
    elected = tl.zeros((STEP,), COMPUTE)
    if ELECT != 0:
        elected, signs = _elected(
            rows, base, scores, limits, chances, n_entries, first, votes, undecided, n_rows, start,
            place, offsets, inside,
            ELECT, CODE, BASE_CODE, COMPUTE, ALIGNED, SCORED, DRAWS, MASKED,
        )  # fmt: skip
        if OUT_CODE == NONE:
            balance += signs
    total, share = tl.zeros((STEP,), COMPUTE), tl.zeros((STEP,), COMPUTE)
    n_kept = tl.zeros((STEP,), tl.int32)
    for i in range(n_rows):
        d, x = masked(
            rows, i, base, scores, limits, chances, first + i, n_entries, start, place, offsets,
            inside, CODE, BASE_CODE, COMPUTE, ALIGNED, SCORED, DRAWS, MASKED,
        )  # fmt: skip
        bad += tl.where(tl.abs(d) < float("inf"), 0, 1)
        x = _agreeing(x, tl.load(votes + i), elected, ELECT)
        if LONE:
            n_kept += (x != 0).to(tl.int32)
        else:
            total = tl.fma(x, tl.load(factors + i), total)
        if DIVIDE:
            share += tl.where(x != 0, tl.load(shares + i), 0.0)
    if LONE:
        n_bad = tl.sum(bad, axis=0)  # here, that it takes no registers from now on
        for i in range(n_rows):
            _, x = masked(
                rows, i, base, scores, limits, chances, first + i, n_entries, start, place,
                offsets, inside, CODE, BASE_CODE, COMPUTE, ALIGNED, SCORED, DRAWS, MASKED,
            )  # fmt: skip
            x = _agreeing(x, tl.load(votes + i), elected, ELECT)
            one = tl.full((STEP,), 1.0, COMPUTE)
            total = tl.fma(x, tl.where(n_kept == 1, tl.load(lone + i), one), total)
    if DIVIDE:
        share = tl.where(least > 0, tl.maximum(share, least), share)
        share = tl.where(share != 0, share, 1.0)
        if tl.float32 == COMPUTE:
            total = tl.div_rn(total, share)  # what / becomes in float32 is not rounded
        else:
            total = total / share
    if OUT_CODE != NONE:
        shift = tl.zeros((STEP,), COMPUTE)
        if BASE_CODE != NONE:
            shift = decode(load(base + offsets, inside, MASKED), BASE_CODE, COMPUTE)
        total = tl.fma(total, scale, shift)
        store(out, start, offsets, total, inside, OUT_CODE, ALIGNED, MASKED)
    if not LONE:
        n_bad = tl.sum(bad, axis=0)
    return n_bad, tl.sum(balance, axis=0)


@triton.jit(do_not_specialize=["base", "n_rows", "n_runs", "scores", "n_entries", "out",
                               "n_segments"])  # fmt: skip
def join_rows(
    rows, base, runs, n_rows, n_runs, scores, limits, chances, n_entries, out, numbers, n_segments,
    partials,
    ELECT: tl.constexpr, DIVIDE: tl.constexpr, LONE: tl.constexpr, SCORED: tl.constexpr,
    DRAWS: tl.constexpr, CODE: tl.constexpr, BASE_CODE: tl.constexpr, OUT_CODE: tl.constexpr,
    COMPUTE: tl.constexpr, ALIGNED: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: a run of all rows, which pass by once for the election and once for the sum; the
    second time they come from the cache."""
    run = tl.program_id(0)
    start, place = tl.load(runs + run), tl.load(runs + 3 * n_runs + run)
    length = tl.load(runs + n_runs + run).to(tl.int32)
    segment = tl.load(runs + 2 * n_runs + run)
    origin = base_pointer(base, start, BASE_CODE, ALIGNED)
    offsets = tl.arange(0, STEP)
    if length == STEP:
        bad, balance = _join_step(
            rows, origin, out, scores, limits, chances, n_entries, numbers, segment, n_segments,
            n_rows, start, place, offsets, length,
            ELECT, DIVIDE, LONE, SCORED, DRAWS, CODE, BASE_CODE, OUT_CODE, COMPUTE, ALIGNED, STEP,
            False,
        )  # fmt: skip
    else:
        bad, balance = _join_step(
            rows, origin, out, scores, limits, chances, n_entries, numbers, segment, n_segments,
            n_rows, start, place, offsets, length,
            ELECT, DIVIDE, LONE, SCORED, DRAWS, CODE, BASE_CODE, OUT_CODE, COMPUTE, ALIGNED, STEP,
            True,
        )  # fmt: skip
    tl.store(partials + 2 * run, bad)
    if OUT_CODE == NONE:
        tl.store(partials + 2 * run + 1, balance)


def joined(
    rows: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    segments: np.ndarray,
    firsts: np.ndarray,
    mask: masks.Mask,
    joint: masks.Joint,
    out: torch.Tensor | None,
    *,
    scores: torch.Tensor | None = None,
    chances: torch.Tensor | None = None,
    unbiased: bool = False,
    balance: np.ndarray | None = None,
) -> int:
    """``base + scale * sum_i factor_i d_i / shares`` over the kept differences that agree.

    Or, without ``out``, what is elected: its signs are added to ``balance``, float64 ``[S]``.

    Rows ``[n]``, in segments ``[S, 2]`` which begin at ``firsts`` in their tensors; tables of
    ``mask`` and ``joint`` ``[S, N]``; ``scores`` and ``chances`` as in
    :func:`wkernels.gpu.kept.kept_sums`, and ``unbiased``: what is kept is divided by its chance.
    Returns how many differences, and elements of ``out`` in the segments' range, are NaN or Inf.
    The bits are those of the CPU path: the same operations in the same order, element by element.
    Bytes: each row, the base and the output once.
    """
    others = [] if chances is None else list(chances)
    runs = Runs.of(rows, base, segments, firsts, scores, out, *others, kernel="join")
    if not runs.n:
        return 0
    tables = Tables.of(mask, runs, scores, chances, unbiased=unbiased)
    lone = joint.factor if joint.lone is None else joint.lone
    each = [table.ravel() for table in (joint.factor, joint.vote, joint.share, lone)]
    numbers = np.concatenate([[joint.least, joint.undecided], joint.scale, *each])
    partials = rows[0].new_empty((runs.n, 2), dtype=torch.int32)
    with addresses.on_device_of(partials):
        join_rows[(runs.n,)](
            *runs.arguments, *tables.arguments, 0 if out is None else out.data_ptr(),
            runs.upload(numbers.astype(runs.compute)), len(segments), partials,
            ELECT=masks.ELECT[joint.elect], DIVIDE=joint.divide, LONE=joint.lone is not None,
            OUT_CODE=elements.NONE.value if out is None else addresses.codes_of([out])[0],
            **tables.fixed, **runs.fixed,
        )  # fmt: skip
    if balance is not None:
        runs.add_up(partials[:, 1], balance)
    n_bad = int(partials[:, 0].sum())
    if out is not None:
        n_bad += int((~torch.isfinite(out[segments.min() : segments.max()])).sum())
    return n_bad
