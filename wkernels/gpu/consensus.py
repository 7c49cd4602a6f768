"""Masked differences joined with a sign election and a division: ``wkernels.masks`` in one read."""

# Triton compiles no choice between values that are of different types
# ruff: noqa: SIM108

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from wkernels import dtypes, masks
from wkernels.gpu import addresses, chips, elements
from wkernels.gpu.elements import NONE, decode, load, row_pointer, store
from wkernels.gpu.selection import magnitude_bits

GAMMA = tl.constexpr(masks.GAMMA)
MIX_1 = tl.constexpr(masks.MIX_1)
MIX_2 = tl.constexpr(masks.MIX_2)
UNUSED_BITS = tl.constexpr(64 - masks.CHANCE_BITS)
UNIT = tl.constexpr(2.0**-masks.CHANCE_BITS)
SIGNS = tl.constexpr(masks.ELECT["signs"])


@triton.jit
def _drawn(key, place):
    """SplitMix64's draw of each place, as a number in [0, 1)."""
    z = key.to(tl.uint64, bitcast=True) + (place + 1).to(tl.uint64) * GAMMA
    z = (z ^ (z >> 30)) * MIX_1
    z = (z ^ (z >> 27)) * MIX_2
    return ((z ^ (z >> 31)) >> UNUSED_BITS).to(tl.int32).to(tl.float32) * UNIT


@triton.jit
def _masked(
    rows, base, limits, chances, i, n_rows, start, offsets, inside,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    DRAWS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The differences of row ``i``, with zeros where its mask keeps nothing."""
    row = row_pointer(tl.load(rows + i), start, CODE, ALIGNED)
    x, bits = magnitude_bits(row, base, offsets, inside, CODE, BASE_CODE, COMPUTE, MASKED)
    bits = bits.to(tl.int64)
    place = start + offsets
    keep, keep_before = tl.load(limits + i), tl.load(limits + n_rows + i)
    drop, drop_before = tl.load(limits + 2 * n_rows + i), tl.load(limits + 3 * n_rows + i)
    kept = (bits > keep) | ((bits == keep) & (place < keep_before))
    kept = kept & (bits <= drop) & ((bits != drop) | (place >= drop_before))
    if DRAWS:
        drawn = _drawn(tl.load(limits + 4 * n_rows + i), place)
        kept = kept & (drawn < tl.load(chances + i))
    return tl.where(kept, x, 0.0)


@triton.jit
def _elected(
    rows, base, limits, chances, votes, undecided, n_rows, start, offsets, inside,
    ELECT: tl.constexpr, CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr,
    ALIGNED: tl.constexpr, DRAWS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The sign that the rows elect; votes are added in float64, where those that cancel are 0."""
    poll = tl.zeros(offsets.shape, tl.float64)
    for i in range(n_rows):
        x = _masked(
            rows, base, limits, chances, i, n_rows, start, offsets, inside,
            CODE, BASE_CODE, COMPUTE, ALIGNED, DRAWS, MASKED,
        )  # fmt: skip
        vote = tl.load(votes + i).to(tl.float64) * x.to(tl.float64)
        if ELECT == SIGNS:
            poll += tl.where(vote > 0, 1.0, 0.0).to(tl.float64)
            poll -= tl.where(vote < 0, 1.0, 0.0).to(tl.float64)
        else:
            poll += vote
    sign = tl.where(poll > 0, 1.0, tl.where(poll < 0, -1.0, undecided))
    return sign.to(COMPUTE)


@triton.jit
def _agreeing(x, vote, elected, ELECT: tl.constexpr):
    """Zeros where the row's vote is not for the elected sign; a NaN stays."""
    if ELECT != 0:
        sign = tl.where(vote > 0, 1.0, tl.where(vote < 0, -1.0, 0.0)).to(x.dtype)
        x = tl.where(x * (sign * elected) <= 0, 0.0, x)
    return x


@triton.jit
def _join_block(
    rows, base, out, limits, chances, numbers, n_rows, start, stop,
    ELECT: tl.constexpr, DIVIDE: tl.constexpr, LONE: tl.constexpr, DRAWS: tl.constexpr,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, OUT_CODE: tl.constexpr, COMPUTE: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """``numbers``: scale, least share and undecided sign, then each row's factor, vote, share and
    lone factor."""
    offsets = tl.arange(0, BLOCK)
    inside = offsets < stop - start
    origin = base
    if BASE_CODE != NONE:
        origin = row_pointer(base, start, BASE_CODE, ALIGNED)
    scale, least, undecided = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2)
    factors = numbers + 3
    votes, shares, lone = factors + n_rows, factors + 2 * n_rows, factors + 3 * n_rows
    elected = tl.zeros((BLOCK,), COMPUTE)
    if ELECT != 0:
        elected = _elected(
            rows, origin, limits, chances, votes, undecided, n_rows, start, offsets, inside,
            ELECT, CODE, BASE_CODE, COMPUTE, ALIGNED, DRAWS, MASKED,
        )  # fmt: skip
    total, share = tl.zeros((BLOCK,), COMPUTE), tl.zeros((BLOCK,), COMPUTE)
    n_kept = tl.zeros((BLOCK,), tl.int32)
    for i in range(n_rows):
        x = _masked(
            rows, origin, limits, chances, i, n_rows, start, offsets, inside,
            CODE, BASE_CODE, COMPUTE, ALIGNED, DRAWS, MASKED,
        )  # fmt: skip
        x = _agreeing(x, tl.load(votes + i), elected, ELECT)
        if LONE:
            n_kept += (x != 0).to(tl.int32)
        else:
            total = tl.fma(x, tl.load(factors + i), total)
        if DIVIDE:
            share += tl.where(x != 0, tl.load(shares + i), 0.0)
    if LONE:
        for i in range(n_rows):
            x = _masked(
                rows, origin, limits, chances, i, n_rows, start, offsets, inside,
                CODE, BASE_CODE, COMPUTE, ALIGNED, DRAWS, MASKED,
            )  # fmt: skip
            x = _agreeing(x, tl.load(votes + i), elected, ELECT)
            one = tl.full((BLOCK,), 1.0, COMPUTE)
            total = tl.fma(x, tl.where(n_kept == 1, tl.load(lone + i), one), total)
    if DIVIDE:
        share = tl.where(least > 0, tl.maximum(share, least), share)
        share = tl.where(share != 0, share, 1.0)
        if tl.float32 == COMPUTE:
            total = tl.div_rn(total, share)  # what / becomes in float32 is not rounded
        else:
            total = total / share
    shift = tl.zeros((BLOCK,), COMPUTE)
    if BASE_CODE != NONE:
        shift = decode(load(origin + offsets, inside, MASKED), BASE_CODE, COMPUTE)
    total = tl.fma(total, scale, shift)
    store(out, start, offsets, total, inside, OUT_CODE, ALIGNED, MASKED)


@triton.jit(do_not_specialize=["base", "out", "n_rows", "n"])
def join_rows(
    rows, base, out, limits, chances, numbers, n_rows, n,
    ELECT: tl.constexpr, DIVIDE: tl.constexpr, LONE: tl.constexpr, DRAWS: tl.constexpr,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, OUT_CODE: tl.constexpr, COMPUTE: tl.constexpr,
    ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: one block of elements of all rows, which pass by once for the election and once
    for the sum; the second time they come from the cache."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    stop = n.to(tl.int64)
    if start + BLOCK <= stop:
        _join_block(
            rows, base, out, limits, chances, numbers, n_rows, start, stop,
            ELECT, DIVIDE, LONE, DRAWS, CODE, BASE_CODE, OUT_CODE, COMPUTE, ALIGNED, BLOCK, False,
        )  # fmt: skip
    else:
        _join_block(
            rows, base, out, limits, chances, numbers, n_rows, start, stop,
            ELECT, DIVIDE, LONE, DRAWS, CODE, BASE_CODE, OUT_CODE, COMPUTE, ALIGNED, BLOCK, True,
        )  # fmt: skip


def joined(
    rows: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    mask: masks.Mask,
    joint: masks.Joint,
    out: torch.Tensor,
) -> None:
    """``base + scale * sum_i factor_i d_i / shares`` over the kept differences that agree.

    ``mask`` and ``joint`` have one segment, the whole row; see ``wkernels.masks``. Rows of
    different dtypes are first converted, exactly, to float32 or float64. The bits are those of the
    CPU path: the same operations in the same order, element by element.
    Bytes: each row, the base and the output once.
    """
    n = rows[0].numel()
    if not n:
        return
    based = [] if base is None else [base]
    name = dtypes.compute_type(*map(addresses.type_name, [*rows, *based]))
    if len(set(addresses.codes_of(rows))) > 1:
        rows = [row.to(getattr(torch, name)) for row in rows]
    beyond = masks.BEYOND[name]
    limits = np.concatenate([
        np.minimum(mask.keep[0], beyond), mask.keep_before[0], np.minimum(mask.drop[0], beyond),
        mask.drop_before[0], mask.key[0].view(np.int64),
    ])  # fmt: skip
    lone = joint.factor if joint.lone is None else joint.lone
    numbers = np.concatenate([
        [joint.scale[0], joint.least, joint.undecided],
        joint.factor[0], joint.vote[0], joint.share[0], lone[0],
    ])  # fmt: skip
    device = out.device
    itemsize = min(tensor.element_size() for tensor in [*rows, *based])
    with addresses.on_device_of(out):
        block = 16 // itemsize * chips.current().lanes * 4
        join_rows[(triton.cdiv(n, block),)](
            addresses.to_device(np.asarray(addresses.addresses_of(rows)), device),
            0 if base is None else base.data_ptr(), out.data_ptr(),
            addresses.to_device(limits, device), addresses.to_device(mask.chance[0], device),
            addresses.to_device(numbers.astype(name), device), len(rows), n,
            ELECT=masks.ELECT[joint.elect], DIVIDE=joint.divide, LONE=joint.lone is not None,
            DRAWS=bool((mask.chance < 1).any()), CODE=addresses.codes_of(rows)[0],
            BASE_CODE=addresses.codes_of(based)[0] if based else elements.NONE.value,
            OUT_CODE=addresses.codes_of([out])[0], COMPUTE=elements.FLOAT_TYPES[name],
            ALIGNED=addresses.alignment(addresses.addresses_of([*rows, *based, out])),
            BLOCK=block, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
