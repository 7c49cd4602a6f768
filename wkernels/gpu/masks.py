"""Differences from the base with zeros where a mask keeps nothing: see ``wkernels.masks``."""

# Triton compiles no choice between values that are of different types
# ruff: noqa: SIM108

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from wkernels import masks
from wkernels.gpu import addresses
from wkernels.gpu.elements import FLOAT32, decode, load, row_pointer
from wkernels.gpu.runs import Runs
from wkernels.gpu.selection import bits_of, difference

GAMMA = tl.constexpr(masks.GAMMA)
MIX_1 = tl.constexpr(masks.MIX_1)
MIX_2 = tl.constexpr(masks.MIX_2)
UNUSED_BITS = tl.constexpr(64 - masks.CHANCE_BITS)
UNIT = tl.constexpr(2.0**-masks.CHANCE_BITS)

BY_ROW = tl.constexpr(1)
"""Draws with one chance for a row in a segment."""
BY_ELEMENT = tl.constexpr(2)
"""Draws with a chance for each element."""
UNBIASED = tl.constexpr(3)
"""The same, and what is kept is divided by it."""


@triton.jit
def _drawn(key, place):
    """SplitMix64's draw of each place, as a number in [0, 1)."""
    z = key.to(tl.uint64, bitcast=True) + (place + 1).to(tl.uint64) * GAMMA
    z = (z ^ (z >> 30)) * MIX_1
    z = (z ^ (z >> 27)) * MIX_2
    return ((z ^ (z >> 31)) >> UNUSED_BITS).to(tl.int32).to(tl.float32) * UNIT


@triton.jit
def _divided(x, chance):
    if x.dtype == tl.float32:
        x = tl.div_rn(x, chance)  # what / becomes in float32 is not rounded
    else:
        x = x / chance.to(x.dtype)
    return x


@triton.jit
def _offset(before, place):
    """A place in the tensor as an offset from ``place``; 32 bits take half of the registers."""
    return tl.minimum(tl.maximum(before - place, 0), 0x7FFFFFFF).to(tl.int32)


@triton.jit
def kept(
    x, i, scores, limits, chances, entry, n_entries, start, place, offsets, inside,
    SCORED: tl.constexpr, DRAWS: tl.constexpr, ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """``x``, row ``i``'s, where its mask keeps it, else zero.

    ``limits`` int64 ``[5, n_entries]``: the mask's tables of integers. ``chances``: of each entry,
    or the addresses of each row's. ``place``: the first element's, in its tensor.
    """
    if SCORED:
        row = row_pointer(scores, start, FLOAT32, ALIGNED)
        bits = bits_of(decode(load(row + offsets, inside, MASKED), FLOAT32, x.dtype))
    else:
        bits = bits_of(x)
    limit = limits + entry
    keep, drop = tl.load(limit).to(bits.dtype), tl.load(limit + 2 * n_entries).to(bits.dtype)
    keep_before = _offset(tl.load(limit + n_entries), place)
    drop_before = _offset(tl.load(limit + 3 * n_entries), place)
    wanted = (bits > keep) | ((bits == keep) & (offsets < keep_before))
    wanted = wanted & (bits <= drop) & ((bits != drop) | (offsets >= drop_before))
    if DRAWS == BY_ROW:
        drawn = _drawn(tl.load(limit + 4 * n_entries), place + offsets)
        wanted = wanted & (drawn < tl.load(chances + entry))
    elif DRAWS:
        drawn = _drawn(tl.load(limit + 4 * n_entries), place + offsets)
        row = row_pointer(tl.load(chances + i), start, FLOAT32, ALIGNED)
        chance = load(row + offsets, inside, MASKED)
        wanted = wanted & (drawn < chance)
        if DRAWS == UNBIASED:
            x = _divided(x, tl.where(wanted, chance, 1.0))
    return tl.where(wanted, x, 0.0)


@triton.jit
def masked(
    rows, i, base, scores, limits, chances, entry, n_entries, start, place, offsets, inside,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    SCORED: tl.constexpr, DRAWS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The difference of row ``i``, and what its mask keeps of it."""
    row = row_pointer(tl.load(rows + i), start, CODE, ALIGNED)
    x = difference(row, base, offsets, inside, CODE, BASE_CODE, COMPUTE, MASKED)
    return x, kept(
        x, i, scores, limits, chances, entry, n_entries, start, place, offsets, inside,
        SCORED, DRAWS, ALIGNED, MASKED,
    )  # fmt: skip


class Tables(NamedTuple):
    """A mask on the device, as kernels take it."""

    scores: int  # address, or 0
    limits: torch.Tensor
    chances: torch.Tensor
    n_entries: int
    fixed: dict[str, int]

    @classmethod
    def of(
        cls,
        mask: masks.Mask,
        runs: Runs,
        scores: torch.Tensor | None,
        chances: torch.Tensor | None = None,
        *,
        unbiased: bool = False,
    ) -> Tables:
        """``scores`` float32 ``[n]``, and ``chances`` ``[N, n]`` where elements have their own."""
        beyond = masks.BEYOND[runs.compute]
        limits = np.concatenate([
            np.minimum(mask.keep, beyond).ravel(), mask.keep_before.ravel(),
            np.minimum(mask.drop, beyond).ravel(), mask.drop_before.ravel(),
            mask.key.view(np.int64).ravel(),
        ])  # fmt: skip
        table = mask.chance.ravel()
        draws = BY_ROW.value if (table < 1).any() else 0
        if chances is not None:
            table = np.array(addresses.addresses_of(list(chances)), np.int64)
            draws = (UNBIASED if unbiased else BY_ELEMENT).value
        fixed = {"SCORED": scores is not None, "DRAWS": draws}
        return cls(
            0 if scores is None else scores.data_ptr(), runs.upload(limits), runs.upload(table),
            mask.keep.size, fixed,
        )  # fmt: skip

    @property
    def arguments(self) -> tuple[int, torch.Tensor, torch.Tensor, int]:
        return self[:4]
