"""Products and differences of all pairs of rows: Gram matrices and distances, in float64."""

# Triton compiles neither starred tuples nor, in every version, a choice between loads
# ruff: noqa: RUF005

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from wkernels import dtypes
from wkernels.gpu import addresses, blocks, chips, configs, elements
from wkernels.gpu.blocks import add_in_order
from wkernels.gpu.elements import NONE, decode, load, row_pointer

OPS = ("dot", "l2", "l1")
DOT = tl.constexpr(0)
L2 = tl.constexpr(1)


@triton.jit
def _deltas(row, base, here, inside, CODE: tl.constexpr, BASE_CODE: tl.constexpr,
            COMPUTE: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """``x - base`` in ``COMPUTE``, then exactly in float64; where not ``inside``, zero."""
    x = decode(load(row + here, inside, MASKED), CODE, COMPUTE)
    if BASE_CODE != NONE:
        x = x - decode(load(base + here, inside, MASKED), BASE_CODE, COMPUTE)
    return x.to(tl.float64)


@triton.jit
def _opaque(x):
    """``x``, as the sum over an axis of one.

    Triton 3.6 follows the operands of a float64 ``tl.dot`` back to the load, and fails where that
    is narrower than 32 bits; it does not follow them through a reduction.
    """
    return tl.sum(x[None, :, :], axis=0)


@triton.jit
def _dot_step(
    total, rows, columns, base, here, length,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, SAME: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    here = here[None, :]
    inside = here < length
    a = _opaque(_deltas(rows, base, here, inside, CODE, BASE_CODE, COMPUTE, MASKED))
    b = a
    if not SAME:
        b = _opaque(_deltas(columns, base, here, inside, CODE, BASE_CODE, COMPUTE, MASKED))
    return tl.dot(a, tl.trans(b), total, out_dtype=tl.float64)


@triton.jit(do_not_specialize=["columns", "base", "starts", "lengths", "n_rows", "n_columns",
                               "n_tiles"])  # fmt: skip
def dot_tiles(
    rows, columns, base, tiles, starts, lengths, partials, n_rows, n_columns, n_tiles,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    SAME: tl.constexpr, TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: one tile of pairs over one block. Tiles of one block run next to each other."""
    program = tl.program_id(0)
    tile, block = program % n_tiles, program // n_tiles
    start = tl.load(starts + block)
    length = tl.load(lengths + block).to(tl.int32)
    index = tl.arange(0, TILE)
    # past the last row: the last row again, whose products nobody reads
    i = tl.minimum(tl.load(tiles + 2 * tile) * TILE + index, n_rows - 1)
    j = tl.minimum(tl.load(tiles + 2 * tile + 1) * TILE + index, n_columns - 1)
    a = row_pointer(tl.load(rows + i), start, CODE, ALIGNED)[:, None]
    b = row_pointer(tl.load(columns + j), start, CODE, ALIGNED)[:, None]
    origin = a
    if BASE_CODE != NONE:
        origin = row_pointer(base, start, BASE_CODE, ALIGNED)
    here = tl.arange(0, STEP)
    total = tl.zeros((TILE, TILE), tl.float64)
    full = length // STEP * STEP
    for step in range(0, full, STEP):
        total = _dot_step(
            total, a, b, origin, step + here, length, CODE, BASE_CODE, COMPUTE, SAME, False
        )
    for step in tl.range(full, length, STEP, num_stages=1):  # once at most: nothing to overlap
        total = _dot_step(
            total, a, b, origin, step + here, length, CODE, BASE_CODE, COMPUTE, SAME, True
        )
    out = partials + program.to(tl.int64) * (TILE * TILE)
    tl.store(out + index[:, None] * TILE + index[None, :], total)


@triton.jit
def _add_pairs(
    totals, raw, raw_base,
    OP: tl.constexpr, CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr,
    SAME: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The running sums of all pairs of the tile with the loaded elements added.

    ``raw`` are the rows, and unless they are the ``SAME`` the columns, each ``[threads, width]``:
    a thread adds its elements up on its own. More than four at a time would not fit registers
    in float64, so wider ones are added in two halves.
    """
    if raw[0].shape[1] > 4:
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
def _pair_step(
    totals, rows, columns, base, first_row, first_column, n_rows, n_columns, start, here, length,
    OP: tl.constexpr, CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr,
    ALIGNED: tl.constexpr, SAME: tl.constexpr, TILE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One step of elements: all rows are loaded before the first is used."""
    inside = here < length
    raw = ()
    for k in tl.static_range(TILE):
        row = tl.load(rows + tl.minimum(first_row + k, n_rows - 1))
        raw = raw + (load(row_pointer(row, start, CODE, ALIGNED) + here, inside, MASKED),)
    if not SAME:
        for k in tl.static_range(TILE):
            row = tl.load(columns + tl.minimum(first_column + k, n_columns - 1))
            raw = raw + (load(row_pointer(row, start, CODE, ALIGNED) + here, inside, MASKED),)
    raw_base = raw[0]
    if BASE_CODE != NONE:
        raw_base = load(row_pointer(base, start, BASE_CODE, ALIGNED) + here, inside, MASKED)
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
    totals = ()
    for _ in tl.static_range(TILE * TILE):
        totals = totals + (tl.zeros((THREADS,), tl.float64),)
    full = length // STEP * STEP
    for step in range(0, full, STEP):
        totals = _pair_step(
            totals, rows, columns, base, i, j, n_rows, n_columns, start, step + here, length,
            OP, CODE, BASE_CODE, COMPUTE, ALIGNED, SAME, TILE, False,
        )  # fmt: skip
    for step in range(full, length, STEP):
        totals = _pair_step(
            totals, rows, columns, base, i, j, n_rows, n_columns, start, step + here, length,
            OP, CODE, BASE_CODE, COMPUTE, ALIGNED, SAME, TILE, True,
        )  # fmt: skip
    out = partials + program.to(tl.int64) * (TILE * TILE)
    for pair in tl.static_range(TILE * TILE):
        if not SAME or pair // TILE <= pair % TILE:
            tl.store(out + pair, tl.sum(totals[pair], axis=0))


@triton.jit(do_not_specialize=["spans", "n_rows", "n_columns", "n_tiles"])
def add_tiles(
    partials, out, tiles, spans, n_rows, n_columns, n_tiles,
    SQUARE: tl.constexpr, TILE: tl.constexpr, AT_ONCE: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    """One program: ``PAIRS`` pairs of one tile and one segment, their blocks added in order."""
    parts: tl.constexpr = TILE * TILE // PAIRS
    program = tl.program_id(0)
    span = spans + 3 * (program // (n_tiles * parts))
    segment, first, last = tl.load(span), tl.load(span + 1), tl.load(span + 2)
    tile = program // parts % n_tiles
    pair = program % parts * PAIRS + tl.arange(0, PAIRS)
    i = tl.load(tiles + 2 * tile) * TILE + pair // TILE
    j = tl.load(tiles + 2 * tile + 1) * TILE + pair % TILE
    wanted = (i < n_rows) & (j < n_columns)
    if SQUARE:
        wanted = wanted & (i <= j)
    out += segment * n_rows * n_columns
    total = tl.load(out + i * n_columns + j, mask=wanted, other=0.0)
    stride = n_tiles.to(tl.int64) * (TILE * TILE)
    pointers = partials + tile.to(tl.int64) * (TILE * TILE) + pair
    total = add_in_order(total, pointers, stride, first, last, wanted, pair < 0, AT_ONCE)
    tl.store(out + i * n_columns + j, total, mask=wanted)
    if SQUARE:
        tl.store(out + j * n_columns + i, total, mask=wanted)


def launch(
    op: str,
    rows: Sequence[torch.Tensor],
    columns: Sequence[torch.Tensor] | None,
    base: torch.Tensor | None,
    segments: np.ndarray,
    out: torch.Tensor,
) -> None:
    """Adds to ``out [n_segments, n_rows, n_columns]``, float64, each segment's sums over elements:

    ``a * b`` for ``dot``, ``(a - b)**2`` for ``l2`` and ``|a - b|`` for ``l1``, with
    ``a = rows[i] - base`` and ``b = columns[j] - base``. Without columns they are the rows: only
    ``i <= j`` is computed, and written to both places of ``out``, which must be symmetric.

    Rows, columns and base ``[n]``; ``segments`` int64 ``[n_segments, 2]``, first and past-the-last
    elements. The base is subtracted in float32, in float64 if any row is float64; the rest is
    float64, in blocks (``wkernels.gpu.blocks``). Rows of different dtypes are first converted,
    exactly, to float32 or float64: 4 or 8 bytes an element of memory for each row that is not that.
    Bytes: each row once for each tile of other rows, from HBM once for tiles that run together.
    Workspace: at most twice ``blocks.WORKSPACE_BYTES``.
    """
    based = [] if base is None else [base]
    square = columns is None
    everything = [*rows, *(columns or []), *based]
    compute_name = dtypes.compute_type(*map(addresses.type_name, everything))
    if len(set(addresses.codes_of([*rows, *(columns or [])]))) > 1:
        wide = getattr(torch, compute_name)
        rows = [row.to(wide) for row in rows]
        columns = None if columns is None else [row.to(wide) for row in columns]
    others = rows if columns is None else columns
    n_rows, n_columns, device = len(rows), len(others), out.device
    chip = chips.current()
    config = configs.products(
        op, itemsize=rows[0].element_size(), n_rows=n_rows, n_columns=n_columns, square=square,
        matrix_tile=chip.matrix_tile, lanes=chip.lanes,
    )  # fmt: skip
    tiles = _tiles(-(-n_rows // config.tile), -(-n_columns // config.tile), square)
    pairs_a_tile = config.tile**2
    row_addresses, column_addresses = map(addresses.addresses_of, (rows, others))
    table = np.concatenate([tiles.ravel(), row_addresses, column_addresses])
    table = addresses.to_device(table, device)
    fixed = {
        "CODE": addresses.codes_of(rows)[0],
        "BASE_CODE": addresses.codes_of(based)[0] if based else elements.NONE.value,
        "COMPUTE": elements.FLOAT_TYPES[compute_name],
        "ALIGNED": blocks.aligned([*rows, *others, *based], segments),
        "SAME": config.one_sided,
        "TILE": config.tile,
        "STEP": config.step,
        "num_warps": config.num_warps,
        "enable_fp_fusion": False,
    }
    if not config.matrix:
        fixed |= {"OP": OPS.index(op), "THREADS": chip.lanes * config.num_warps}
    kernel = dot_tiles if config.matrix else pair_tiles
    n_parts = pairs_a_tile // min(pairs_a_tile, configs.PAIRS_ADDED)

    def compute(group: blocks.Launch) -> None:
        kernel[(group.n_blocks * len(tiles),)](
            table[tiles.size :], table[tiles.size + n_rows :],
            0 if base is None else base.data_ptr(), table, group.starts, group.lengths,
            group.partials, n_rows, n_columns, len(tiles), **fixed,
        )  # fmt: skip

    def add(group: blocks.Launch) -> None:
        add_tiles[(group.n_spans * len(tiles) * n_parts,)](
            group.partials, out, table, group.spans, n_rows, n_columns, len(tiles),
            SQUARE=square, TILE=config.tile, AT_ONCE=group.added_at_once,
            PAIRS=pairs_a_tile // n_parts, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip

    blocks.run(segments, len(tiles) * pairs_a_tile, out, compute, add)


def _tiles(n_down: int, n_across: int, square: bool) -> np.ndarray:
    """Places of the tiles to compute, int64 ``[n_tiles, 2]``; of a square, those with i <= j."""
    down, across = np.divmod(np.arange(n_down * n_across, dtype=np.int64), n_across)
    tiles = np.stack([down, across], axis=1)
    return tiles[down <= across] if square else tiles
