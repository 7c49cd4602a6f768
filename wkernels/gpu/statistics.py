"""Power sums, largest absolute value and counts of each row: ``wkernels.moments`` in one read."""

# Triton compiles neither starred tuples nor, in every version, a choice between loads
# ruff: noqa: RUF005

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from wkernels import dtypes, moments
from wkernels.gpu import addresses, blocks, chips, configs, elements
from wkernels.gpu.blocks import add_in_order
from wkernels.gpu.elements import NONE, base_pointer, decode, load, row_pointer

SUM = tl.constexpr(moments.SUM)
SUM2 = tl.constexpr(moments.SUM2)
SUM3 = tl.constexpr(moments.SUM3)
SUM4 = tl.constexpr(moments.SUM4)
MAX_ABS = tl.constexpr(moments.MAX_ABS)
NON_FINITE = tl.constexpr(moments.NON_FINITE)
CHANGED = tl.constexpr(moments.CHANGED)
N = tl.constexpr(moments.N)
WIDTH = tl.constexpr(8)
"""Values a row and a block take in the workspace: N and one unused."""


@triton.jit
def _add_values(sums, raw, raw_base, CODE: tl.constexpr, BASE_CODE: tl.constexpr,
                COMPUTE: tl.constexpr):  # fmt: skip
    """The running sums with one step of elements added; absent elements are zeros in both rows."""
    sum1, sum2, sum3, sum4, largest, non_finite, changed = sums
    x = decode(raw, CODE, COMPUTE)
    if BASE_CODE != NONE:
        changed += (x != decode(raw_base, BASE_CODE, COMPUTE)).to(tl.int32)
    finite = tl.abs(x) < float("inf")
    non_finite += tl.where(finite, 0, 1)
    x = tl.where(finite, x, 0.0)
    largest = tl.maximum(largest, tl.abs(x))
    x = x.to(tl.float64)
    square = x * x
    return (
        sum1 + x,
        sum2 + square,
        tl.fma(square, x, sum3),
        tl.fma(square, square, sum4),
        largest,
        non_finite,
        changed,
    )


@triton.jit
def _add_steps(
    sums, row, base, offsets, length,
    N_STEPS: tl.constexpr, STEP: tl.constexpr, CODE: tl.constexpr, BASE_CODE: tl.constexpr,
    COMPUTE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """``N_STEPS`` steps, all loaded before the first is added."""
    kept, kept_base = (), ()
    for k in tl.static_range(N_STEPS):
        here = offsets + k * STEP
        kept = kept + (load(row + here, here < length, MASKED),)
        if BASE_CODE != NONE:
            kept_base = kept_base + (load(base + here, here < length, MASKED),)
        else:
            kept_base = kept_base + (0,)
    for k in tl.static_range(N_STEPS):
        sums = _add_values(sums, kept[k], kept_base[k], CODE, BASE_CODE, COMPUTE)
    return sums


@triton.jit(do_not_specialize=["base", "starts", "lengths", "n_rows"])
def sum_blocks(
    rows, base, starts, lengths, partials, n_rows,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    N_STEPS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: one row, one block of elements. Rows of one block run next to each other."""
    program = tl.program_id(0)
    block = program // n_rows
    start = tl.load(starts + block)
    length = tl.load(lengths + block).to(tl.int32)
    row = row_pointer(tl.load(rows + program % n_rows), start, CODE, ALIGNED)
    origin = base_pointer(base, start, BASE_CODE, ALIGNED)
    offsets = tl.arange(0, STEP)
    zero, none = tl.zeros((STEP,), tl.float64), tl.zeros((STEP,), tl.int32)
    sums = (zero, zero, zero, zero, tl.zeros((STEP,), COMPUTE), none, none)
    full = length // (N_STEPS * STEP) * (N_STEPS * STEP)
    for step in range(0, full, N_STEPS * STEP):
        sums = _add_steps(
            sums, row, origin, step + offsets, length,
            N_STEPS, STEP, CODE, BASE_CODE, COMPUTE, False,
        )  # fmt: skip
    for step in range(full, length, STEP):
        sums = _add_steps(
            sums, row, origin, step + offsets, length, 1, STEP, CODE, BASE_CODE, COMPUTE, True
        )
    sum1, sum2, sum3, sum4, largest, non_finite, changed = sums
    out = partials + program.to(tl.int64) * WIDTH
    tl.store(out + SUM, tl.sum(sum1, axis=0))
    tl.store(out + SUM2, tl.sum(sum2, axis=0))
    tl.store(out + SUM3, tl.sum(sum3, axis=0))
    tl.store(out + SUM4, tl.sum(sum4, axis=0))
    tl.store(out + MAX_ABS, tl.max(largest, axis=0).to(tl.float64))
    tl.store(out + NON_FINITE, tl.sum(non_finite, axis=0).to(tl.float64))
    tl.store(out + CHANGED, tl.sum(changed, axis=0).to(tl.float64))


@triton.jit(do_not_specialize=["spans", "n_rows"])
def add_blocks(partials, out, spans, n_rows, AT_ONCE: tl.constexpr, ROWS: tl.constexpr):
    """One program: ``ROWS`` rows of one segment, their blocks added in order."""
    parts = tl.cdiv(n_rows, ROWS)
    span = spans + 3 * (tl.program_id(0) // parts)
    segment, first, last = tl.load(span), tl.load(span + 1), tl.load(span + 2)
    values = tl.arange(0, ROWS * WIDTH)
    row, column = tl.program_id(0) % parts * ROWS + values // WIDTH, values % WIDTH
    wanted = (row < n_rows) & (column < N)
    target = out + (segment * n_rows + row) * N + column
    total = tl.load(target, mask=wanted, other=0.0)
    total = add_in_order(
        total, partials + row * WIDTH + column, n_rows.to(tl.int64) * WIDTH, first, last, wanted,
        column == MAX_ABS, AT_ONCE,
    )  # fmt: skip
    tl.store(target, total, mask=wanted)


def launch(
    rows: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    segments: np.ndarray,
    sums: torch.Tensor,
) -> None:
    """Adds to ``sums [n_segments, n_rows, moments.N]`` the columns of ``wkernels.moments``.

    Rows and base ``[n]``; ``segments`` int64 ``[n_segments, 2]``, first and past-the-last elements.
    Sums and powers of the finite elements in float64; an element is changed where it compares
    unequal to the base's, so NaN always is. Bytes: each row once, the base once a row, from the
    cache but for the first. Workspace: at most twice ``blocks.WORKSPACE_BYTES``.
    """
    by_type = {}
    for row, code in enumerate(addresses.codes_of(rows)):
        by_type.setdefault(code, []).append(row)
    if len(by_type) > 1:  # a launch for each type; the other rows' sums are not touched
        for members in by_type.values():
            part = sums[:, members].contiguous()
            launch([rows[row] for row in members], base, segments, part)
            sums[:, members] = part
        return
    device, n_rows = sums.device, len(rows)
    code = addresses.codes_of(rows)[0]
    based = [] if base is None else [base]
    base_code = addresses.codes_of(based)[0] if based else elements.NONE.value
    compute_name = dtypes.compute_type(*map(addresses.type_name, [rows[0], *based]))
    itemsize = min(tensor.element_size() for tensor in [rows[0], *based])
    chip = chips.current()
    config = configs.statistics(chip.family, itemsize=itemsize, lanes=chip.lanes)
    alignment = blocks.alignment([*rows, *based], segments)
    row_table = addresses.to_device(np.asarray(addresses.addresses_of(rows)), device)

    def compute(group: blocks.Launch) -> None:
        sum_blocks[(group.n_blocks * n_rows,)](
            row_table, 0 if base is None else base.data_ptr(), group.starts, group.lengths,
            group.partials, n_rows, CODE=code, BASE_CODE=base_code,
            COMPUTE=elements.FLOAT_TYPES[compute_name], ALIGNED=alignment, N_STEPS=config.n_steps,
            STEP=config.step, num_warps=config.num_warps, enable_fp_fusion=False,
        )  # fmt: skip

    def add(group: blocks.Launch) -> None:
        add_blocks[(group.n_spans * triton.cdiv(n_rows, config.rows_added),)](
            group.partials, sums, group.spans, n_rows, AT_ONCE=group.added_at_once,
            ROWS=config.rows_added, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip

    blocks.run(segments, n_rows * WIDTH.value, sums, compute, add)
