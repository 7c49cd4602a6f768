"""Many rows against one other, in float64: sums straight from how the rows are stored.

``products`` holds tiles of widened rows in cache, for as many columns: for one, most of that work
is in vain.
"""

from __future__ import annotations

import numpy as np

from wkernels.cpu.jit import array_at, kernel
from wkernels.cpu.parallel import over_ranges

LANES = 32

COLUMNS = 8192
"""At a time, for all rows: what these are compared with stays in first- or second-level cache."""


def squared_distances(rows: np.ndarray, other: np.ndarray, *, threads: int) -> np.ndarray:
    """``sum_k (row[k] - other[k])**2`` of each row: float64 ``[n_rows]``.

    ``rows``: int64 addresses of float32 rows as long as ``other`` (float32). Differences are taken
    in float32.
    """
    return _sums_of(rows, other, None, threads)


def products_along(
    rows: np.ndarray, base: np.ndarray, direction: np.ndarray, *, threads: int
) -> np.ndarray:
    """``sum_k (row[k] - base[k]) direction[k]``, as :func:`squared_distances`."""
    return _sums_of(rows, base, direction, threads)


def _sums_of(
    rows: np.ndarray, base: np.ndarray, direction: np.ndarray | None, threads: int
) -> np.ndarray:
    out = np.zeros(len(rows))

    def work(first: int, last: int) -> None:
        _sums(rows, base, direction, first, last, out)

    over_ranges(work, len(rows), step=1, threads=threads, least=1 + (1 << 18) // len(base))
    return out


@kernel
def _sums(rows, base, direction, first, last, out):
    lanes = np.empty(LANES)
    for start in range(0, base.size, COLUMNS):
        stop = min(start + COLUMNS, base.size)
        whole = stop - (stop - start) % LANES
        for i in range(first, last):
            row = array_at(rows[i], base.size, np.float32)
            lanes[:] = 0
            for at in range(start, whole, LANES):
                for k in range(LANES):
                    step = np.float64(row[at + k] - base[at + k])
                    factor = step if direction is None else np.float64(direction[at + k])
                    lanes[k] += step * factor
            for k in range(whole, stop):
                step = np.float64(row[k] - base[k])
                factor = step if direction is None else np.float64(direction[k])
                lanes[k - whole] += step * factor
            out[i] += lanes.sum()
