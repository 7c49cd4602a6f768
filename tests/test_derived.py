"""Arithmetic of tensors that are computed as they are read: right, and the same in any pieces."""

import numpy as np
import pytest
import torch

from wkernels.cpu.derived import add_low_rank, scale_blocks, widen

SIZES = [(1, 1), (3, 1500), (70, 33), (5, 1024), (2, 2049)]


def random(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def in_pieces(work, values, cut):
    """``work(values, first)`` on runs of ``cut`` elements."""
    flat = values.reshape(-1)
    for first in range(0, flat.size, cut):
        work(flat[first : first + cut], first)
    return values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rank", [1, 3, 4, 9])
@pytest.mark.parametrize("size", SIZES)
def test_low_rank(size, rank, dtype):
    rows, columns = size
    base = random(*size, dtype=dtype)
    left, right = (
        random(rows, rank, seed=1, dtype=dtype),
        random(rank, columns, seed=2, dtype=dtype),
    )
    found = base.copy()
    add_low_rank(found.reshape(-1), 0, left, right)
    exact = base.astype(np.longdouble) + left.astype(np.longdouble) @ right.astype(np.longdouble)
    terms = np.abs(base) + np.abs(left) @ np.abs(right)
    assert (np.abs(found - exact) <= (rank + 1) * np.finfo(dtype).eps / 2 * terms).all()
    for cut in (1, 7, 1000, columns + 1):

        def piece(values, first):
            end = first + values.size
            top, bottom = first // columns, -(-end // columns)
            add_low_rank(values, first, np.ascontiguousarray(left[top:bottom]), right)

        assert np.array_equal(in_pieces(piece, base.copy(), cut), found)


@pytest.mark.parametrize("block", [(1, 1), (2, 3), (128, 128), (1, 5000), (5000, 5000)])
@pytest.mark.parametrize("size", SIZES)
def test_scales(size, block):
    rows, columns = size
    grid = random(-(-rows // block[0]), -(-columns // block[1]), seed=1)
    values = random(*size)
    whole = np.repeat(np.repeat(grid, block[0], 0)[:rows], block[1], 1)[:, :columns]
    for cut in (1, 13, 100_000):
        found = in_pieces(
            lambda run, first: scale_blocks(run, first, columns, grid, *block),
            values.copy(), cut,
        )  # fmt: skip
        assert np.array_equal(found, values * whole)


@pytest.mark.parametrize("compute", [np.float32, np.float64])
@pytest.mark.parametrize(
    "name", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
)
def test_widening_is_exact(name, compute):
    if name.startswith("float8"):
        raw = torch.arange(256, dtype=torch.uint8)
    else:
        raw = torch.from_numpy(random(3000)).to(getattr(torch, name)).view(torch.uint8)
    expected = raw.view(getattr(torch, name)).to(torch.from_numpy(np.empty(0, compute)).dtype)
    found = torch.from_numpy(widen(raw.numpy(), name, compute))
    assert found.dtype == expected.dtype
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))
    assert torch.equal(found.isnan(), expected.isnan())
