"""Launch configurations: looked up in a committed table; nothing is timed when a kernel starts.

``tables`` holds the numbers by family of chips, operation, width of an element and number of models
or rows; ``python -m bench.tune`` prints them. ``derive.py`` says what the defaults follow from.
Sorting and columns have constants in their modules: a tile of keys is what registers hold on every
chip, and what a program has of a column follows from bands that are part of the result's meaning.
"""

from __future__ import annotations

from dataclasses import dataclass

from wkernels.gpu.configs.shapes import MODELS
from wkernels.gpu.configs.tables import TABLES

VECTOR_BYTES = 16


@dataclass(frozen=True)
class WeightedSum:
    """How one program of the weighted sum works."""

    block: int  # elements of each row
    num_warps: int
    unrolled: int  # models whose elements are all loaded before the first is used; 0: in batches
    batch: int  # models loaded together when not all are
    group: int  # mixes summed at once when the inputs are not kept


def weighted_sum(
    family: str, *, itemsize: int, compute_size: int, n_models: int, n_mixes: int, lanes: int = 32
) -> WeightedSum:
    """For rows whose narrowest type has ``itemsize`` bytes, computed in ``compute_size`` bytes.

    ``n_models`` counts the base too: it is one more row to read.
    """
    # in float64 what was read as less takes twice the registers
    counted = n_models * (2 if compute_size == 8 and itemsize < 8 else 1)
    models = next((limit for limit in MODELS if counted <= limit), 0)
    entry = TABLES[family].WEIGHTED_SUM[itemsize, models]
    group = 1
    while group < min(n_mixes, entry.group):
        group *= 2
    return WeightedSum(
        block=VECTOR_BYTES // itemsize * entry.vectors * lanes * entry.num_warps,
        num_warps=entry.num_warps,
        unrolled=0 if entry.batch else n_models,
        batch=entry.batch,
        group=group if compute_size == 4 or itemsize == 8 else max(1, group // 2),
    )


@dataclass(frozen=True)
class Products:
    """How one program of the pairwise products works: a tile of pairs, one block of elements."""

    matrix: bool  # tl.dot, else multiply-add pair by pair
    tile: int  # rows of x, and of the other side
    step: int  # elements of each row at a time
    num_warps: int
    stages: int
    one_sided: bool  # every pair is within one tile of rows


def products(
    family: str, op: str, *, engine: str, itemsize: int, n_rows: int, n_columns: int, square: bool,
    matrix_tiles: tuple[int, int] = (8, 64), parts_tile: int = 128, lanes: int = 32,
) -> Products:  # fmt: skip
    """The smallest tile that holds all rows, or the largest there is; differences pair by pair.

    ``matrix_tiles``: the smallest and the largest tile of the chip's float64 units, 0 if none;
    ``parts_tile``: the largest of the engines that multiply parts.
    """
    vector = VECTOR_BYTES // itemsize
    smallest, largest = 16, 128 if engine == "whole" else parts_tile
    if engine == "float64":
        smallest, largest = matrix_tiles
    widest = max(n_rows, n_columns)
    few = square and widest <= 8
    if op == "dot" and largest and not (few and smallest > 8 and engine == "float64"):
        tile = next((rows for rows in (8, 16, 32, 64, 128) if smallest <= rows >= widest), largest)
        tile = min(tile, largest)
        entry = TABLES[family].PRODUCTS[engine, itemsize, tile]
        return Products(
            True, tile, entry.step, entry.num_warps, entry.stages, square and n_rows <= tile
        )
    if few:
        # 36 running sums and 8 rows in float64: with more than 4 elements a thread they spill, so
        # 16-bit rows are read 8 bytes at a time
        return Products(False, 8, min(vector, 4) * lanes * 4, 4, stages=1, one_sided=True)
    # 16 elements of float8 a thread would spill
    return Products(False, 4, min(vector, 8) * lanes * 4, 4, stages=1, one_sided=False)


@dataclass(frozen=True)
class Statistics:
    """How one program of the row statistics works."""

    step: int  # elements at a time
    n_steps: int  # steps loaded before the first is used
    num_warps: int
    rows_added: int  # rows whose blocks one program of the ordered addition adds


def statistics(family: str, *, itemsize: int, lanes: int = 32) -> Statistics:
    entry = TABLES[family].STATISTICS[itemsize]
    step = entry.elements * lanes * entry.num_warps
    return Statistics(step, entry.n_loads, entry.num_warps, entry.rows_added)


@dataclass(frozen=True)
class Choosing:
    """How one program of a kernel that chooses elements works."""

    step: int  # elements at a time
    num_warps: int


def choosing(family: str, kernel: str, *, itemsize: int, lanes: int = 32) -> Choosing:
    entry = TABLES[family].CHOICES[kernel, itemsize]
    return Choosing(entry.elements * lanes * entry.num_warps, entry.num_warps)


def added_at_once(n_blocks: int) -> int:
    """Partial results that the ordered additions load together, of so many blocks at most."""
    return 64 if n_blocks > 32 else 8


PAIRS_ADDED = 64
"""Pairs that one program of the ordered addition of products adds."""
