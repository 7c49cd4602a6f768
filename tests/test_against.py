"""Sums over many rows and one other."""

import numpy as np
import pytest

from wkernels.cpu import products_along, squared_distances
from wkernels.cpu.against import COLUMNS, LANES


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n", [1, LANES - 1, COLUMNS + LANES + 3, 1 << 16])
@pytest.mark.parametrize("n_rows", [0, 1, 33])
def test_sums_are_those_of_float64(n_rows, n, threads):
    random = np.random.default_rng(n)
    base, direction = random.standard_normal((2, n), np.float32)
    rows = base + np.float32(1e-3) * random.standard_normal((n_rows, n), np.float32)
    addresses = np.array([row.ctypes.data for row in rows], np.int64)
    steps = (rows - base).astype(np.float64)
    found = squared_distances(addresses, base, threads=threads)
    np.testing.assert_allclose(found, np.square(steps).sum(axis=1), rtol=n * 2.0**-53)
    found = products_along(addresses, base, direction, threads=threads)
    terms = steps * direction.astype(np.float64)
    limit = n * 2.0**-53 * np.abs(terms).sum(axis=1)
    assert (np.abs(found - terms.sum(axis=1)) <= limit).all()
