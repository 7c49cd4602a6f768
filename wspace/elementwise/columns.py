"""Sums of two models in which each column of a matrix has factors of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wkernels.bands import rows_of_a_band
from wspace.elementwise.choices import ColumnSums
from wspace.elementwise.kernels import N_MODELS, Kernels
from wspace.elementwise.sources import Step, Steps


def width_of(shape: tuple[int, ...]) -> int:
    """Columns: elements in a row along axis 0."""
    return int(np.prod(shape[1:]))


def held_bytes(shape: tuple[int, ...], *, bands: bool) -> int:
    """For each element: the products and factors of the columns, and a copy of the products.

    ``bands``: with those of each band of rows, as they are on a GPU.
    """
    n_rows = max(shape[0], 1)
    held = -(-8 * (2 * N_MODELS**2 + N_MODELS) // n_rows)
    if bands:
        held += -(-8 * N_MODELS**2 // min(n_rows, rows_of_a_band(width_of(shape)) or n_rows))
    return held


def column_products(shapes: Sequence[tuple[int, ...]], kernels: Kernels) -> Steps[list[np.ndarray]]:
    """Inner products of each slot's columns, ``[width, 2, 2]``: all is read once."""
    grams = [np.zeros((width_of(shape), N_MODELS, N_MODELS)) for shape in shapes]
    yield Step(lambda view: kernels.column_products(view, [grams[slot] for slot in view.slots]))
    return grams


def column_factors(join: ColumnSums, grams: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Those of each slot's columns, ``[width, 2]``."""
    with np.errstate(invalid="ignore"):  # NaN comes through, and is refused by name
        return [join.factors(gram) for gram in grams]
