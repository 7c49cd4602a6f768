"""Sums of two models in which each column of a matrix has factors of its own, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wkernels import cpu
from wspace.devices import processors
from wspace.elementwise.choices import ColumnSums
from wspace.elementwise.kernels import Out, all_rows, pointer_to, split
from wspace.elementwise.sources import Source, View

N_MODELS = 2


def width_of(shape: tuple[int, ...]) -> int:
    """Columns: elements in a row along axis 0."""
    return int(np.prod(shape[1:]))


def held_bytes(shape: tuple[int, ...]) -> int:
    """For each element: the products and factors of the columns, and a copy of the products."""
    return -(-8 * (2 * N_MODELS**2 + N_MODELS) // max(shape[0], 1))


def column_factors(
    join: ColumnSums, source: Source, shapes: Sequence[tuple[int, ...]]
) -> list[np.ndarray]:
    """Those of each slot's columns, ``[width, 2]``: the source is read once."""
    grams = [np.zeros((width_of(shape), N_MODELS, N_MODELS)) for shape in shapes]
    for view in source.views():
        rows, base = _split(view)
        for (start, stop), slot in zip(view.segments.tolist(), view.slots, strict=True):
            cpu.column_products(rows, base, start, stop, grams[slot], threads=processors())
    with np.errstate(invalid="ignore"):  # NaN comes through, and is refused by name
        return [join.factors(gram) for gram in grams]


def write_columns(view: View, factors: Sequence[np.ndarray], out: Out) -> int:
    """How many outputs are NaN or Inf."""
    rows, base = _split(view)
    return sum(
        cpu.column_sums(
            rows, base, start, stop, factors[slot], pointer_to(out), threads=processors()
        )
        for (start, stop), slot in zip(view.segments.tolist(), view.slots, strict=True)
    )


def _split(view: View) -> tuple[cpu.Pointers, cpu.Pointers]:
    """The two models, and the base if there is one: it is the view's last row."""
    return split(all_rows(view), N_MODELS)
