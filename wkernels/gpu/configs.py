"""Launch configurations: pure functions of element sizes and counts; nothing is timed or searched.

The numbers follow two rules. A thread reads 16 bytes at a time, and has about 128 bytes in flight
before the first is used, which at the occupancy that its registers allow is what hides the latency
of HBM. And what a thread keeps must fit its registers: the budgets below are in 32-bit registers of
255, and the compile-time table (``python -m wkernels.gpu.compiled``) shows what they come to.
"""

from __future__ import annotations

from dataclasses import dataclass

VECTOR_BYTES = 16
IN_FLIGHT_BYTES = 128
KEPT_REGISTERS = 128  # inputs of one block, when all are kept for several mixes
SUM_REGISTERS = 64  # running sums, when the inputs do not fit


@dataclass(frozen=True)
class WeightedSum:
    """How one program of the weighted sum works."""

    block: int  # elements of each row
    num_warps: int
    unrolled: int  # models whose elements are all loaded before the first is used; 0: in batches
    batch: int  # models loaded together when not all are
    group: int  # mixes summed at once when the inputs are not kept


def weighted_sum(
    *, itemsize: int, compute_size: int, n_models: int, n_mixes: int, lanes: int = 32
) -> WeightedSum:
    """For rows whose narrowest type has ``itemsize`` bytes, computed in ``compute_size`` bytes.

    ``n_models`` counts the base too: it is one more row to read.
    """
    num_warps = 4
    elements = VECTOR_BYTES // itemsize
    words = compute_size // 4
    kept = n_models * elements * words
    if kept <= KEPT_REGISTERS:
        vectors = 1
        while (
            vectors < 4
            and 2 * vectors * n_models * VECTOR_BYTES <= IN_FLIGHT_BYTES
            and 2 * vectors * kept <= KEPT_REGISTERS
        ):
            vectors *= 2
        block = elements * vectors * lanes * num_warps
        return WeightedSum(block, num_warps, unrolled=n_models, batch=0, group=1)
    group = 1
    while group < min(n_mixes, 8) and 2 * group * elements * words <= SUM_REGISTERS:
        group *= 2
    return WeightedSum(elements * lanes * num_warps, num_warps, unrolled=0, batch=8, group=group)


@dataclass(frozen=True)
class Products:
    """How one program of the pairwise products works: a tile of pairs, one block of elements."""

    matrix: bool  # tl.dot in float64, else multiply-add pair by pair
    tile: int  # rows of x, and of the other side
    step: int  # elements of each row at a time
    num_warps: int
    one_sided: bool  # every pair is within one tile of rows


def products(
    op: str, *, itemsize: int, n_rows: int, n_columns: int, square: bool, matrix_tile: int = 64,
    lanes: int = 32,
) -> Products:  # fmt: skip
    """Up to 8 rows, and all direct differences: pair by pair. More rows: the matrix units.

    On 8 rows a 16 x 16 tile of the float64 matrix units would be three quarters padding, and slower
    than reading the rows. ``matrix_tile`` is the largest tile the chip can use, 0 if none.
    """
    vector = VECTOR_BYTES // itemsize
    if square and n_rows <= 8:
        # 36 running sums and 8 rows in float64: with more than 4 elements a thread they spill, so
        # 16-bit rows are read 8 bytes at a time
        return Products(False, 8, min(vector, 4) * lanes * 4, num_warps=4, one_sided=True)
    if op != "dot" or not matrix_tile:
        return Products(False, 4, vector * lanes * 4, num_warps=4, one_sided=False)
    widest = max(n_rows, n_columns)
    tile = min(16 if widest <= 16 else 32 if widest <= 32 else 64, matrix_tile)
    return Products(
        True, tile, 32 if tile == 64 else 64, num_warps=tile // 16,
        one_sided=square and n_rows <= tile,
    )  # fmt: skip


@dataclass(frozen=True)
class Statistics:
    """How one program of the row statistics works."""

    step: int  # elements at a time
    n_steps: int  # steps loaded before the first is used
    num_warps: int
    rows_added: int  # rows whose blocks one program of the ordered addition adds


def statistics(*, itemsize: int, lanes: int = 32) -> Statistics:
    num_warps = 4
    elements = min(VECTOR_BYTES // itemsize, 8)  # 4 float64 sums of each
    return Statistics(elements * lanes * num_warps, 4, num_warps, rows_added=4)


def added_at_once(n_blocks: int) -> int:
    """Partial results that the ordered additions load together, of so many blocks at most."""
    return 64 if n_blocks > 32 else 8


PAIRS_ADDED = 64
"""Pairs that one program of the ordered addition of products adds."""
