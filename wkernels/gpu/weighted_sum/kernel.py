"""The kernel of the weighted sum.

Each sum is one chain of fused multiply-adds, model by model from zero, and is rounded once at the
store; so its bits are those of the CPU path. ``tl.fma`` is written out: what the compiler makes of
``a * b + c`` differs between versions.
"""

# Triton compiles neither starred tuples nor, in every version, a choice between loads
# ruff: noqa: RUF005, SIM108

from __future__ import annotations

import triton
import triton.language as tl

from wkernels.gpu.elements import NONE, decode, load, row_pointer, store


@triton.jit
def _address(first, step, i, tensor, TABLE: tl.constexpr):
    """Where row ``i`` starts: in a table of addresses, or ``step`` bytes after the row before."""
    if TABLE:
        address = tl.load(first + i * step + tensor)
    else:
        address = first + i * step
    return address


@triton.jit
def _read(address, code, start, offsets, inside, CODE: tl.constexpr, COMPUTE: tl.constexpr,
          ALIGNED: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Elements of a row in ``COMPUTE``; its type is ``CODE``, or if that is none, ``code``."""
    if CODE != NONE:
        pointers = row_pointer(address, start, CODE, ALIGNED) + offsets
        x = decode(load(pointers, inside, MASKED), CODE, COMPUTE)
    else:
        x = tl.zeros(offsets.shape, COMPUTE)
        for known in tl.static_range(6):
            if code == known:
                pointers = row_pointer(address, start, known, ALIGNED) + offsets
                x = decode(load(pointers, inside, MASKED), known, COMPUTE)
    return x


@triton.jit
def _write(address, code, start, offsets, x, inside, CODE: tl.constexpr, ALIGNED: tl.constexpr,
           MASKED: tl.constexpr):  # fmt: skip
    """Round once and store; the type is ``CODE``, or if that is none, ``code``."""
    if CODE != NONE:
        store(address, start, offsets, x, inside, CODE, ALIGNED, MASKED)
    else:
        for known in tl.static_range(4):
            if code == known:
                store(address, start, offsets, x, inside, known, ALIGNED, MASKED)


@triton.jit
def _code(codes, i, CODE: tl.constexpr):
    if CODE != NONE:
        code = CODE
    else:
        code = tl.load(codes + i)
    return code


@triton.jit
def _mix_kept(
    rows, row_step, base, outs, out_step, out_codes, weights, n_mixes, tensor, start, stop,
    N_MODELS: tl.constexpr, ONE_MIX: tl.constexpr, ROW_CODES: tl.constexpr, BASE_CODE: tl.constexpr,
    OUT_CODE: tl.constexpr, COMPUTE: tl.constexpr, TABLE: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One block with every input in registers: read once, however many mixes there are."""
    offsets = tl.arange(0, BLOCK)
    inside = offsets < stop - start
    kept = ()
    for i in tl.static_range(N_MODELS):
        address = _address(rows, row_step, i, tensor, TABLE)
        pointers = row_pointer(address, start, ROW_CODES[i], ALIGNED) + offsets
        kept = kept + (load(pointers, inside, MASKED),)
    if BASE_CODE != NONE:
        address = _address(base, row_step, 0, tensor, TABLE)
        pointers = row_pointer(address, start, BASE_CODE, ALIGNED) + offsets
        origin = decode(load(pointers, inside, MASKED), BASE_CODE, COMPUTE)
    n_rounds = n_mixes
    if ONE_MIX:
        n_rounds = 1
    for j in range(n_rounds):
        total = tl.zeros((BLOCK,), COMPUTE)
        for i in tl.static_range(N_MODELS):
            x = decode(kept[i], ROW_CODES[i], COMPUTE)
            if BASE_CODE != NONE:
                x = x - origin
            total = tl.fma(x, tl.load(weights + j * N_MODELS + i), total)
        if BASE_CODE != NONE:
            total = origin + total
        address = _address(outs, out_step, j, tensor, TABLE)
        code = _code(out_codes, j, OUT_CODE)
        _write(address, code, start, offsets, total, inside, OUT_CODE, ALIGNED, MASKED)


@triton.jit
def _add_models(
    totals, rows, row_step, row_codes, origin, weights, n_models, n_mixes, first_mix, tensor,
    i, start, offsets, inside,
    BATCH: tl.constexpr, GROUP: tl.constexpr, ROW_CODE: tl.constexpr, BASE_CODE: tl.constexpr,
    COMPUTE: tl.constexpr, TABLE: tl.constexpr, ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The sums of ``GROUP`` mixes with models ``i`` to ``i + BATCH`` added, in that order."""
    loaded = ()
    for k in tl.static_range(BATCH):
        address = _address(rows, row_step, i + k, tensor, TABLE)
        code = _code(row_codes, i + k, ROW_CODE)
        x = _read(address, code, start, offsets, inside, ROW_CODE, COMPUTE, ALIGNED, MASKED)
        loaded = loaded + (x,)
    for k in tl.static_range(BATCH):
        x = loaded[k]
        if BASE_CODE != NONE:
            x = x - origin
        added = ()
        for g in tl.static_range(GROUP):
            mix = tl.minimum(first_mix + g, n_mixes - 1)
            weight = tl.load(weights + (mix * n_models + i + k))
            added = added + (tl.fma(x, weight, totals[g]),)
        totals = added
    return totals


@triton.jit
def _mix_in_batches(
    rows, row_step, row_codes, base, outs, out_step, out_codes, weights, n_models, n_mixes, tensor,
    start, stop,
    BATCH: tl.constexpr, GROUP: tl.constexpr, ROW_CODE: tl.constexpr, BASE_CODE: tl.constexpr,
    OUT_CODE: tl.constexpr, COMPUTE: tl.constexpr, TABLE: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One block with the sums of ``GROUP`` mixes in registers and the models passing by.

    More mixes than that read the block again, from the cache: HBM gives each element once.
    """
    offsets = tl.arange(0, BLOCK)
    inside = offsets < stop - start
    origin = tl.zeros((BLOCK,), COMPUTE)
    if BASE_CODE != NONE:
        address = _address(base, row_step, 0, tensor, TABLE)
        origin = _read(address, 0, start, offsets, inside, BASE_CODE, COMPUTE, ALIGNED, MASKED)
    in_batches = n_models // BATCH * BATCH
    for first_mix in range(0, n_mixes, GROUP):
        totals = ()
        for _ in tl.static_range(GROUP):
            totals = totals + (tl.zeros((BLOCK,), COMPUTE),)
        for i in range(0, in_batches, BATCH):
            totals = _add_models(
                totals, rows, row_step, row_codes, origin, weights, n_models, n_mixes, first_mix,
                tensor, i, start, offsets, inside,
                BATCH, GROUP, ROW_CODE, BASE_CODE, COMPUTE, TABLE, ALIGNED, MASKED,
            )  # fmt: skip
        for i in range(in_batches, n_models):
            totals = _add_models(
                totals, rows, row_step, row_codes, origin, weights, n_models, n_mixes, first_mix,
                tensor, i, start, offsets, inside,
                1, GROUP, ROW_CODE, BASE_CODE, COMPUTE, TABLE, ALIGNED, MASKED,
            )  # fmt: skip
        for g in tl.static_range(GROUP):
            mix = first_mix + g
            if mix < n_mixes:
                total = totals[g]
                if BASE_CODE != NONE:
                    total = origin + total
                address = _address(outs, out_step, mix, tensor, TABLE)
                code = _code(out_codes, mix, OUT_CODE)
                _write(address, code, start, offsets, total, inside, OUT_CODE, ALIGNED, MASKED)


@triton.jit
def _mix_block(
    rows, row_step, row_codes, base, outs, out_step, out_codes, weights, n_models, n_mixes, tensor,
    start, stop,
    N_MODELS: tl.constexpr, ONE_MIX: tl.constexpr, BATCH: tl.constexpr, GROUP: tl.constexpr,
    ROW_CODES: tl.constexpr, BASE_CODE: tl.constexpr, OUT_CODE: tl.constexpr,
    COMPUTE: tl.constexpr, TABLE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    if N_MODELS > 0:
        _mix_kept(
            rows, row_step, base, outs, out_step, out_codes, weights, n_mixes, tensor, start, stop,
            N_MODELS, ONE_MIX, ROW_CODES, BASE_CODE, OUT_CODE, COMPUTE, TABLE, ALIGNED, BLOCK,
            MASKED,
        )  # fmt: skip
    else:
        _mix_in_batches(
            rows, row_step, row_codes, base, outs, out_step, out_codes, weights, n_models, n_mixes,
            tensor, start, stop,
            BATCH, GROUP, ROW_CODES[0], BASE_CODE, OUT_CODE, COMPUTE, TABLE, ALIGNED, BLOCK, MASKED,
        )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "rows", "row_step", "row_codes", "base", "outs", "out_step", "out_codes",
        "n_models", "n_mixes", "length", "units", "first_units", "lengths",
    ]
)  # fmt: skip
def mix_rows(
    rows, row_step, row_codes, base, outs, out_step, out_codes, weights, n_models, n_mixes, length,
    units, first_units, lengths,
    N_MODELS: tl.constexpr, ONE_MIX: tl.constexpr, BATCH: tl.constexpr, GROUP: tl.constexpr,
    ROW_CODES: tl.constexpr, BASE_CODE: tl.constexpr, OUT_CODE: tl.constexpr,
    COMPUTE: tl.constexpr, TABLE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
    BLOCKS_A_UNIT: tl.constexpr,
):  # fmt: skip
    """One program: one block of ``BLOCK`` elements, all models, all mixes.

    ``rows``, ``base`` and ``outs`` are the address of their first row, each next one ``*_step``
    bytes on; or with ``TABLE`` pointers to int64 addresses, each next row ``*_step`` entries on.
    With ``BLOCKS_A_UNIT`` there are several tensors: ``units`` says which one a run of that many
    programs belongs to, ``first_units`` where its runs begin, ``lengths`` how long it is.
    """
    program = tl.program_id(0)
    # int64: n_models * length passes 2**31
    row_step = row_step.to(tl.int64)
    out_step = out_step.to(tl.int64)
    if BLOCKS_A_UNIT > 0:
        unit = program // BLOCKS_A_UNIT
        tensor = tl.load(units + unit)
        block = (unit - tl.load(first_units + tensor)) * BLOCKS_A_UNIT + program % BLOCKS_A_UNIT
        start = block.to(tl.int64) * BLOCK
        stop = tl.load(lengths + tensor)
    else:
        tensor = 0
        start = program.to(tl.int64) * BLOCK
        stop = length.to(tl.int64)
    # only the last block is masked: a mask on any length would make every load one element wide
    if start + BLOCK <= stop:
        _mix_block(
            rows, row_step, row_codes, base, outs, out_step, out_codes, weights, n_models, n_mixes,
            tensor, start, stop,
            N_MODELS, ONE_MIX, BATCH, GROUP, ROW_CODES, BASE_CODE, OUT_CODE, COMPUTE, TABLE,
            ALIGNED, BLOCK, False,
        )  # fmt: skip
    elif start < stop:
        _mix_block(
            rows, row_step, row_codes, base, outs, out_step, out_codes, weights, n_models, n_mixes,
            tensor, start, stop,
            N_MODELS, ONE_MIX, BATCH, GROUP, ROW_CODES, BASE_CODE, OUT_CODE, COMPUTE, TABLE,
            ALIGNED, BLOCK, True,
        )  # fmt: skip
