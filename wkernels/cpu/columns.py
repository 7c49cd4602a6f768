"""Columns of matrices: their inner products, and sums in which each has factors of its own.

A column is what lies along axis 0: every ``width``-th element. Runs begin and end with whole rows
of ``width`` elements.
"""

from __future__ import annotations

import numpy as np

from wkernels.cpu.elements import read, write
from wkernels.cpu.jit import kernel
from wkernels.cpu.parallel import over_ranges
from wkernels.cpu.pointers import Pointers

COLUMNS = 1024


def column_products(
    rows: Pointers, base: Pointers, start: int, stop: int, out: np.ndarray, *, threads: int
) -> None:
    """Adds to ``out[c, i, j]`` (float64 ``[width, n, n]``) the products of column ``c``.

    Of the differences from ``base``, if it has a row. In float64, from the first row to the last:
    the bits do not depend on how a matrix is cut into runs, or on the threads.
    """

    def work(first: int, last: int) -> None:
        _products(*rows, *base, start, stop, first, last, out)

    over_ranges(work, len(out), step=COLUMNS, threads=threads, least=COLUMNS)


def column_sums(
    rows: Pointers, base: Pointers, start: int, stop: int, factors: np.ndarray, out: Pointers,
    *, threads: int,
) -> int:  # fmt: skip
    """``out = base + sum_i factors[c, i] (row_i - base)``, without a base as if it were zero.

    ``factors``: float64 ``[width, n]``. In float64, with one rounding at the store. Returns how
    many outputs are NaN or Inf.
    """
    width = len(factors)

    def work(first: int, last: int) -> int:
        return _sums(*rows, *base, start, first, last, factors, *out)

    n_rows = (stop - start) // max(width, 1)
    return sum(over_ranges(work, n_rows, step=1, threads=threads, least=1 + (1 << 16) // width))


@kernel
def _products(address, code, base_address, base_code, start, stop, first, last, out):
    n_models = address.size
    values = np.empty((n_models, COLUMNS), np.float64)
    base = np.zeros(COLUMNS, np.float64)
    width = out.shape[0]
    for row in range(start, stop, width):
        for at in range(first, last, COLUMNS):
            n = min(COLUMNS, last - at)
            if base_address.size:
                read(base_code[0], base_address[0], row + at, base[:n], COLUMNS)
            for i in range(n_models):
                read(code[i], address[i], row + at, values[i, :n], COLUMNS)
                for k in range(n):
                    values[i, k] -= base[k]
            for i in range(n_models):
                for j in range(n_models):
                    for k in range(n):
                        out[at + k, i, j] += values[i, k] * values[j, k]


@kernel
def _sums(
    address, code, base_address, base_code, start, first, last, factors, out_address, out_code
):
    values = np.empty(COLUMNS, np.float64)
    base = np.zeros(COLUMNS, np.float64)
    sums = np.empty(COLUMNS, np.float64)
    width = factors.shape[0]
    bad = np.int64(0)
    for row in range(first, last):
        for at in range(0, width, COLUMNS):
            n = min(COLUMNS, width - at)
            place = start + row * width + at
            if base_address.size:
                read(base_code[0], base_address[0], place, base[:n], COLUMNS)
            sums[:n] = base[:n]
            for i in range(address.size):
                read(code[i], address[i], place, values[:n], COLUMNS)
                for k in range(n):
                    sums[k] += factors[at + k, i] * (values[k] - base[k])
            bad += write(out_code[0], out_address[0], place, sums[:n], False)
    return bad
