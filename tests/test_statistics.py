"""The row statistics, on both paths."""

import numpy as np
import pytest
import torch

from wkernels import moments, ops, reference
from wkernels.cpu import blocks as cpu_blocks
from wkernels.gpu import blocks

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
EPS = torch.finfo(F64).eps


pytestmark = pytest.mark.usefixtures("path")


def make(n_rows, n, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator, dtype=F64).to(dtype) for _ in range(n_rows)]


def sums_of(path, x, base=None, segments=None):
    segments = np.array([[0, len(x[0])]] if segments is None else segments)
    sums = torch.zeros((len(segments), len(x), moments.N), dtype=F64)
    path.row_moments(x, base, segments, sums)
    return sums


def assert_sums(sums, x, base=None):
    """``sums [n_rows, N]`` of whole rows: powers to a rounding a term, the rest exactly."""
    rows = reference.rows_in_float64(x)
    finite = rows.isfinite()
    clean = torch.where(finite, rows, 0.0)
    for column, power in zip((moments.SUM, moments.SUM2, moments.SUM3, moments.SUM4), (1, 2, 3, 4),
                             strict=True):  # fmt: skip
        terms = clean.abs().pow(power).sum(-1)
        error = (sums[:, column] - clean.pow(power).sum(-1)).abs()
        assert (error <= (rows.shape[1] + 3) * EPS * terms).all()
    assert torch.equal(sums[:, moments.MAX_ABS], clean.abs().amax(-1))
    assert torch.equal(sums[:, moments.NON_FINITE], (~finite).sum(-1).double())
    changed = torch.zeros(len(x)) if base is None else (rows != base.double()).sum(-1)
    assert torch.equal(sums[:, moments.CHANGED], changed.double())


@pytest.mark.parametrize("based", [False, True], ids=["plain", "base"])
@pytest.mark.parametrize("dtype", [F64, F32, F16, BF16, E4M3, E5M2], ids=str)
@pytest.mark.parametrize("n", [1, 515, 4097])
def test_sums(path, n, dtype, based):
    x = make(3, n, dtype)
    base = x[1].clone() if based else None
    assert_sums(sums_of(path, x, base)[0], x, base)


def test_true_blocks(path):
    x, base = make(5, 36000, BF16), make(1, 36000, BF16, seed=1)[0]
    base[::3] = x[2][::3]
    segments = [[0, 16384 + 9], [16400, 36000], [7, 7]]
    sums = sums_of(path, x, base, segments)
    for (start, stop), part in zip(segments[:2], sums, strict=False):
        assert_sums(part, [row[start:stop] for row in x], base[start:stop])
    assert (sums[2] == 0).all()


def test_statistics():
    x = make(4, 5000, F32)
    x[1] *= 3
    x[2] += 1
    base = x[0].clone()
    base[:10] += 1
    found, expected = ops.row_statistics(x, base), reference.row_statistics(x, base)
    for name, value in expected.items():
        torch.testing.assert_close(
            getattr(found, name), value.double(), rtol=1e-10, atol=0, msg=name
        )


@pytest.mark.parametrize("dtype", [F64, F32, F16, BF16, E5M2], ids=str)
def test_non_finite_elements_are_counted_and_left_out(path, dtype):
    x = make(2, 600, F32)
    for place, value in ((0, torch.nan), (17, torch.inf), (599, -torch.inf)):
        x[1][place] = value
    x = [row.to(dtype) for row in x]
    base = x[1].clone()
    sums = sums_of(path, x, base)[0]
    assert_sums(sums, x, base)
    assert sums[1, moments.NON_FINITE] == 3
    assert sums[1, moments.CHANGED] == 1  # NaN differs from itself


def test_zeros_of_both_signs_are_unchanged(path):
    x = [torch.tensor([0.0, -0.0, 1.0])]
    assert sums_of(path, x, torch.tensor([-0.0, 0.0, 2.0]))[0, 0, moments.CHANGED] == 1


def test_rows_and_base_of_different_types(path):
    x = [make(1, 300, dtype, seed=i)[0] for i, dtype in enumerate((BF16, F32, BF16, F64, E4M3))]
    base = x[2].double()
    assert_sums(sums_of(path, x, base)[0], x, base)


def test_bits_depend_neither_on_cuts_nor_on_the_workspace(path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 512)
    monkeypatch.setattr(cpu_blocks, "BLOCK", 512)
    x, base = make(5, 2100, F32), make(1, 2100, F32, seed=1)[0]
    whole = sums_of(path, x, base)
    monkeypatch.setattr(blocks, "WORKSPACE_BYTES", 1000)
    assert torch.equal(sums_of(path, x, base), whole)
    sums = torch.zeros_like(whole)
    for start, stop in ((0, 1024), (1024, 2100)):
        path.row_moments(x, base, np.array([[start, stop]]), sums)
    assert torch.equal(sums, whole)


def test_many_blocks(path, monkeypatch):
    """More than are loaded at once, and a few more."""
    monkeypatch.setattr(blocks, "BLOCK", 32)
    monkeypatch.setattr(cpu_blocks, "BLOCK", 32)
    x = make(2, 32 * 39 + 5, F64)
    assert_sums(sums_of(path, x)[0], x)


def test_no_elements():
    found = ops.row_statistics([torch.empty(0)])
    assert found.norm.item() == 0
    assert found.mean.isnan().all()
