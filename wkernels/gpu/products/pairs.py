"""Products and differences pair by pair: few rows, and direct differences, in float64."""

# Triton compiles neither starred tuples nor, in every version, a choice between loads
# ruff: noqa: RUF005

from __future__ import annotations

import triton
import triton.language as tl

from wkernels.gpu.elements import NONE, base_pointer, decode, load, row_pointer

OPS = ("dot", "l2", "l1")
DOT = tl.constexpr(0)
L2 = tl.constexpr(1)


@triton.jit
def _add_pairs(
    totals, raw, raw_base,
    OP: tl.constexpr, CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr,
    SAME: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The running sums of all pairs of the tile with the loaded elements added.

    ``raw`` are the rows, and unless they are the ``SAME`` the columns, each ``[threads, width]``:
    a thread adds its elements up on its own. More than two at a time take too many registers in
    float64, so wider ones are added half by half.
    """
    if raw[0].shape[1] > 2:
        half: tl.constexpr = raw[0].shape[1] // 2
        left, right = (), ()
        for k in tl.static_range(len(raw)):
            a, b = tl.split(tl.reshape(raw[k], (raw[k].shape[0], half, 2)))
            left, right = left + (a,), right + (b,)
        a, b = raw_base, raw_base
        if BASE_CODE != NONE:
            a, b = tl.split(tl.reshape(raw_base, (raw_base.shape[0], half, 2)))
        totals = _add_pairs(totals, left, a, OP, CODE, BASE_CODE, COMPUTE, SAME, TILE)
        added = _add_pairs(totals, right, b, OP, CODE, BASE_CODE, COMPUTE, SAME, TILE)
    else:
        deltas = ()
        for k in tl.static_range(len(raw)):
            x = decode(raw[k], CODE, COMPUTE)
            if BASE_CODE != NONE:
                x = x - decode(raw_base, BASE_CODE, COMPUTE)
            deltas = deltas + (x.to(tl.float64),)
        added = ()
        for pair in tl.static_range(TILE * TILE):
            total = totals[pair]
            if not SAME or pair // TILE <= pair % TILE:
                a = deltas[pair // TILE]
                b = deltas[pair % TILE + (0 if SAME else TILE)]
                if OP == DOT:
                    term = a * b
                elif OP == L2:
                    term = (a - b) * (a - b)
                else:
                    term = tl.abs(a - b)
                total = total + tl.sum(term, axis=1)
            added = added + (total,)
    return added


@triton.jit
def _pointers(rows, first, n_rows, start, CODE: tl.constexpr, ALIGNED: tl.constexpr,
              TILE: tl.constexpr):  # fmt: skip
    """Where a tile's rows are loaded from; a row past the last is the last."""
    pointers = ()
    for k in tl.static_range(TILE):
        address = tl.load(rows + tl.minimum(first + k, n_rows - 1))
        pointers = pointers + (row_pointer(address, start, CODE, ALIGNED),)
    return pointers


@triton.jit
def _pair_step(
    totals, pointers, base, here, length,
    OP: tl.constexpr, CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr,
    SAME: tl.constexpr, TILE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One step of elements: all rows are loaded before the first is used."""
    inside = here < length
    raw = ()
    for k in tl.static_range(len(pointers)):
        raw = raw + (load(pointers[k] + here, inside, MASKED),)
    raw_base = raw[0]
    if BASE_CODE != NONE:
        raw_base = load(base + here, inside, MASKED)
    return _add_pairs(totals, raw, raw_base, OP, CODE, BASE_CODE, COMPUTE, SAME, TILE)


@triton.jit(do_not_specialize=["columns", "base", "starts", "lengths", "n_rows", "n_columns",
                               "n_tiles"])  # fmt: skip
def pair_tiles(
    rows, columns, base, tiles, starts, lengths, partials, n_rows, n_columns, n_tiles,
    OP: tl.constexpr, CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr,
    ALIGNED: tl.constexpr, SAME: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
    THREADS: tl.constexpr,
):  # fmt: skip
    """:func:`dot_tiles`, pair by pair: small tiles of products, and direct differences."""
    program = tl.program_id(0)
    tile, block = program % n_tiles, program // n_tiles
    start = tl.load(starts + block)
    length = tl.load(lengths + block).to(tl.int32)
    i, j = tl.load(tiles + 2 * tile) * TILE, tl.load(tiles + 2 * tile + 1) * TILE
    # a row of this matrix is what one thread loads and adds up on its own
    width: tl.constexpr = STEP // THREADS
    here = tl.arange(0, THREADS)[:, None] * width + tl.arange(0, width)[None, :]
    # once for all steps: else the last one's would wait in registers meanwhile
    pointers = _pointers(rows, i, n_rows, start, CODE, ALIGNED, TILE)
    if not SAME:
        pointers = pointers + _pointers(columns, j, n_columns, start, CODE, ALIGNED, TILE)
    origin = base_pointer(base, start, BASE_CODE, ALIGNED)
    totals = ()
    for _ in tl.static_range(TILE * TILE):
        totals = totals + (tl.zeros((THREADS,), tl.float64),)
    full = length // STEP * STEP
    for step in range(0, full, STEP):
        totals = _pair_step(
            totals, pointers, origin, step + here, length,
            OP, CODE, BASE_CODE, COMPUTE, SAME, TILE, False,
        )  # fmt: skip
    for step in range(full, length, STEP):
        totals = _pair_step(
            totals, pointers, origin, step + here, length,
            OP, CODE, BASE_CODE, COMPUTE, SAME, TILE, True,
        )  # fmt: skip
    out = partials + program.to(tl.int64) * (TILE * TILE)
    for pair in tl.static_range(TILE * TILE):
        if not SAME or pair // TILE <= pair % TILE:
            tl.store(out + pair, tl.sum(totals[pair], axis=0))
