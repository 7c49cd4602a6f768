"""Tensors that are computed as they are read: widened, scaled, with a low-rank update.

Numpy arrays in, numpy arrays changed in place. Each element's bits depend on that element alone, so
any run of a tensor can be computed on its own.
"""

from __future__ import annotations

import numpy as np

from wkernels.cpu.elements import read
from wkernels.cpu.jit import fma, kernel
from wkernels.cpu.parts import inner
from wkernels.dtypes import CODES, FLOATS

BLOCK = 1024
"""Elements of a row updated at a time: they and as many of each factor's stay in the cache."""


def widen(raw: np.ndarray, name: str, compute: type[np.floating] = np.float32) -> np.ndarray:
    """The elements of a run of bytes (uint8) of the type ``name``, in ``compute``: float32, which
    is exact for all types but float64, or float64."""
    values = np.empty(len(raw) // FLOATS[name], compute)
    _widen(CODES[name], raw.ctypes.data, values)
    return values


@kernel
def _widen(code, address, values):
    for start in range(0, values.size, BLOCK):
        stop = min(start + BLOCK, values.size)
        read(code, address, start, values[start:stop], 0)


@kernel
def scale_blocks(values, first, n_columns, scales, block_rows, block_columns):
    """``W[i, j] *= scales[i // block_rows, j // block_columns]``, with one rounding.

    ``values``: the elements of ``W`` from its element ``first`` on, row after row of ``n_columns``.
    """
    k = 0
    while k < values.size:
        row, column = divmod(first + k, n_columns)
        block = column // block_columns
        stop = min(k + min((block + 1) * block_columns, n_columns) - column, values.size)
        scale = scales[row // block_rows, block]
        for i in range(k, stop):
            values[i] *= scale
        k = stop


@kernel
def add_low_rank(values, first, left, right):
    """``W[i, j] += sum_k left[i, k] * right[k, j]``: fused sums in the order of ``k``, then added.

    ``values``: the elements of ``W`` from its element ``first`` on; ``left [rows, rank]`` begins
    with the row that ``first`` lies in, ``right [rank, n_columns]``. All are of one type.
    """
    n_columns = right.shape[1]
    above = first // n_columns
    update = np.empty(BLOCK, values.dtype)
    k = 0
    while k < values.size:
        row, column = divmod(first + k, n_columns)
        n = min(min(BLOCK, n_columns - column), values.size - k)
        _update(update[:n], left[row - above], right, column)
        for i in range(n):
            values[k + i] += update[i]
        k += n


@inner
def _update(update, factors, right, column):
    """``update[i] = sum_k factors[k] * right[k, column + i]``, in the order of ``k``."""
    update[:] = 0
    end = column + update.size
    rank = factors.size
    whole = rank - rank % 4
    for k in range(0, whole, 4):  # one load and store of the sums for four terms
        a, b, c, d = factors[k], factors[k + 1], factors[k + 2], factors[k + 3]
        # rows of the whole matrix: their elements are known to be neighbours
        row_a, row_b = right[k][column:end], right[k + 1][column:end]
        row_c, row_d = right[k + 2][column:end], right[k + 3][column:end]
        for i in range(update.size):
            value = fma(b, row_b[i], fma(a, row_a[i], update[i]))
            update[i] = fma(d, row_d[i], fma(c, row_c[i], value))
    for k in range(whole, rank):
        factor, row = factors[k], right[k][column:end]
        for i in range(update.size):
            update[i] = fma(factor, row[i], update[i])
