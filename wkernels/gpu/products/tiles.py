"""Products of a tile of pairs of rows by the matrix units."""

from __future__ import annotations

import triton
import triton.language as tl

from wkernels.gpu.elements import NONE, base_pointer, decode, load, row_pointer
from wkernels.gpu.products.engines import FLOAT64, WHOLE, add_products, operand, whole


@triton.jit
def _deltas(row, base, here, inside, row_inside, CODE: tl.constexpr, BASE_CODE: tl.constexpr,
            COMPUTE: tl.constexpr, ENGINE: tl.constexpr, RAGGED: tl.constexpr,
            MASKED: tl.constexpr):  # fmt: skip
    """``x - base`` in ``COMPUTE``, as the engine takes it; where not ``inside``, zero."""
    wanted = inside
    if RAGGED:  # rows past the last: not read, and their products nobody reads
        wanted = row_inside[:, None]
        if MASKED:
            wanted = wanted & inside
        else:  # a mask that is the same for all elements of a row leaves loads wide
            wanted = tl.broadcast_to(wanted, row_inside.shape[0], here.shape[1])
    raw = load(row + here, wanted, MASKED or RAGGED)
    if ENGINE == WHOLE:
        x = whole(raw, CODE)
    else:
        x = decode(raw, CODE, COMPUTE)
        if BASE_CODE != NONE:
            x = x - decode(load(base + here, inside, MASKED), BASE_CODE, COMPUTE)
        x = operand(x, ENGINE)
    return x


@triton.jit
def _dot_step(
    total, rows, columns, base, here, length, row_inside, column_inside,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ENGINE: tl.constexpr,
    SAME: tl.constexpr, RAGGED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    here = here[None, :]
    inside = here < length
    a = _deltas(
        rows, base, here, inside, row_inside, CODE, BASE_CODE, COMPUTE, ENGINE, RAGGED, MASKED
    )
    b = a
    if not SAME:
        b = _deltas(
            columns, base, here, inside, column_inside, CODE, BASE_CODE, COMPUTE, ENGINE, RAGGED,
            MASKED,
        )  # fmt: skip
    return add_products(total, a, b, ENGINE, SAME)


@triton.jit(do_not_specialize=["columns", "base", "starts", "lengths", "n_rows", "n_columns",
                               "n_tiles"])  # fmt: skip
def dot_tiles(
    rows, columns, base, tiles, starts, lengths, partials, n_rows, n_columns, n_tiles,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ENGINE: tl.constexpr,
    ALIGNED: tl.constexpr, SAME: tl.constexpr, RAGGED: tl.constexpr, TILE: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """One program: one tile of pairs over one block. Tiles of one block run next to each other."""
    program = tl.program_id(0)
    tile, block = program % n_tiles, program // n_tiles
    start = tl.load(starts + block)
    length = tl.load(lengths + block).to(tl.int32)
    index = tl.arange(0, TILE)
    i = tl.load(tiles + 2 * tile) * TILE + index
    j = tl.load(tiles + 2 * tile + 1) * TILE + index
    # the address of a row past the last is that of the last, so that every address is one
    a = tl.load(rows + tl.minimum(i, n_rows - 1))
    a = row_pointer(a, start, CODE, ALIGNED)[:, None]
    b = tl.load(columns + tl.minimum(j, n_columns - 1))
    b = row_pointer(b, start, CODE, ALIGNED)[:, None]
    origin = base_pointer(base, start, BASE_CODE, ALIGNED)
    here = tl.arange(0, STEP)
    if ENGINE == FLOAT64:
        total = tl.zeros((TILE, TILE), tl.float64)
    else:
        total = tl.zeros((TILE, TILE), tl.float32)
    full = length // STEP * STEP
    for step in range(0, full, STEP):
        total = _dot_step(
            total, a, b, origin, step + here, length, i < n_rows, j < n_columns,
            CODE, BASE_CODE, COMPUTE, ENGINE, SAME, RAGGED, False,
        )  # fmt: skip
    for step in tl.range(full, length, STEP, num_stages=1):  # once at most: nothing to overlap
        total = _dot_step(
            total, a, b, origin, step + here, length, i < n_rows, j < n_columns,
            CODE, BASE_CODE, COMPUTE, ENGINE, SAME, RAGGED, True,
        )  # fmt: skip
    out = partials + program.to(tl.int64) * (TILE * TILE)
    tl.store(out + index[:, None] * TILE + index[None, :], total.to(tl.float64))
