"""Products and differences of all pairs of rows: the choice of a kernel, and its start."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from wkernels import dtypes
from wkernels.gpu import addresses, blocks, chips, configs, elements
from wkernels.gpu.blocks import add_in_order
from wkernels.gpu.products import engines
from wkernels.gpu.products.pairs import OPS, pair_tiles
from wkernels.gpu.products.tiles import dot_tiles


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


def engine_for(rows: Sequence[torch.Tensor], base: torch.Tensor | None, *, fast: bool) -> str:
    """How rows of one type are multiplied; without ``fast``, or for float64, exactly."""
    everything = [*rows, *([] if base is None else [base])]
    if not fast or any(tensor.dtype == torch.float64 for tensor in everything):
        return "float64"
    if any(tensor.dtype == torch.float32 for tensor in everything):
        return "tfloat32"
    return "whole" if base is None else "bfloat16"


def launch(
    op: str,
    rows: Sequence[torch.Tensor],
    columns: Sequence[torch.Tensor] | None,
    base: torch.Tensor | None,
    segments: np.ndarray,
    out: torch.Tensor,
    *,
    fast: bool = False,
) -> None:
    """Adds to ``out [n_segments, n_rows, n_columns]``, float64, each segment's sums over elements:

    ``a * b`` for ``dot``, ``(a - b)**2`` for ``l2`` and ``|a - b|`` for ``l1``, with
    ``a = rows[i] - base`` and ``b = columns[j] - base``. Without columns they are the rows: only
    ``i <= j`` is computed, and written to both places of ``out``, which must be symmetric.

    Rows, columns and base ``[n]``; ``segments`` int64 ``[n_segments, 2]``, first and past-the-last
    elements. The base is subtracted in float32, in float64 if any row is float64; the rest is
    float64, in blocks (``wkernels.gpu.blocks``). ``fast`` products are those of ``engines``, with
    its errors. Rows of different dtypes are first converted, exactly, to float32 or float64: 4 or
    8 bytes an element of memory for each row that is not that.
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
    chip, engine = chips.current(), engine_for(rows, base, fast=fast and op == "dot")
    config = configs.products(
        chip.family, op, engine=engine, itemsize=rows[0].element_size(), n_rows=n_rows,
        n_columns=n_columns, square=square, matrix_tiles=chip.matrix_tiles,
        parts_tile=chip.parts_tile, lanes=chip.lanes,
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
        "ALIGNED": blocks.alignment([*rows, *others, *based], segments),
        "SAME": config.one_sided,
        "TILE": config.tile,
        "STEP": config.step,
        "num_warps": config.num_warps,
        "enable_fp_fusion": False,
    }
    if config.matrix:
        ragged = n_rows % config.tile != 0 or n_columns % config.tile != 0
        fixed |= {"ENGINE": engines.NAMES.index(engine), "RAGGED": ragged}
        fixed["num_stages"] = config.stages
    else:
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
