"""Pairwise products and differences, on both paths."""

import itertools
import sys

import numpy as np
import pytest
import torch

from wkernels import ops, reference
from wkernels.cpu import blocks as cpu_blocks
from wkernels.gpu import blocks, products

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
EPS = torch.finfo(F64).eps

# rows, others, elements: one of each; up to 8 rows; tiles of 16, 32 and 64; more than one tile
SHAPES = ((1, 1, 1), (3, 2, 700), (9, 3, 1300), (20, 5, 130), (40, 3, 150), (70, 66, 70))


pytestmark = pytest.mark.usefixtures("path")


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks without many elements: the interpreter is slow."""
    monkeypatch.setattr(blocks, "BLOCK", 128)
    monkeypatch.setattr(cpu_blocks, "BLOCK", 128)


def make(n_rows, n, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator, dtype=F64).to(dtype) for _ in range(n_rows)]


def centred(x, base):
    """The rows as the kernel sees them: the difference in float32, or float64 if any row is."""
    if base is None:
        return reference.rows_in_float64(x)
    compute = F64 if F64 in {base.dtype, *(row.dtype for row in x)} else F32
    return torch.stack([(row.to(compute) - base.to(compute)).double() for row in x])


def assert_gram(gram, x, base=None, other=None):
    """Float64 products and sums: as many roundings as there are terms, at most."""
    rows = centred(x, base)
    columns = rows if other is None else centred(other, base)
    terms = rows.abs() @ columns.abs().T
    n = rows.shape[1]
    assert ((gram - rows @ columns.T).abs() <= 2 * n * EPS * terms).all()


def assert_distances(found, x, other, metric):
    truth = reference.pairwise_distances(x, other=other, metric=metric)
    # every term is positive; n terms, and a rounding each for difference and square
    assert ((found - truth).abs() <= (2 * len(x[0]) + 4) * EPS * truth).all()


@pytest.mark.parametrize("based", [False, True], ids=["plain", "base"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_gram(shape, based):
    n_rows, n_others, n = shape
    x, other = make(n_rows, n, BF16), make(n_others, n, BF16, seed=1)
    base = make(1, n, BF16, seed=2)[0] if based else None
    gram = ops.gram(x, base, out=torch.full((n_rows, n_rows), torch.nan, dtype=F64))
    assert_gram(gram, x, base)
    assert torch.equal(gram, gram.T)
    out = torch.full((n_rows, n_others), torch.nan, dtype=F64)
    assert_gram(ops.gram(x, base, other=other, out=out), x, base, other)


@pytest.mark.parametrize("dtype", [F64, F32, F16, BF16, E4M3, E5M2], ids=str)
@pytest.mark.parametrize("n_rows", [4, 10])
def test_gram_of_every_type(n_rows, dtype):
    x, base = make(n_rows, 300, dtype), make(1, 300, F32, seed=2)[0]
    assert_gram(ops.gram(x), x)
    assert_gram(ops.gram(x, base), x, base)


def test_gram_of_mixed_types():
    types = (F32, BF16, E4M3, F16)
    x = [make(1, 100, dtype, seed=i)[0] for i, dtype in enumerate(types)]
    assert_gram(ops.gram(x), x)
    x[1] = x[1].double()
    other = make(2, 100, BF16, seed=8)
    assert_gram(ops.gram(x, other=other), x, other=other)


@pytest.mark.parametrize("metric", ["l1", "l2"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 700), (9, 5, 1030)], ids=str)
def test_distances(shape, metric):
    n_rows, n_others, n = shape
    x, other = make(n_rows, n, BF16), make(n_others, n, BF16, seed=1)
    found = ops.pairwise_distances(x, metric=metric)
    assert_distances(found, x, None, metric)
    assert torch.equal(found, found.T)
    assert (found.diagonal() == 0).all()
    assert_distances(ops.pairwise_distances(x, other=other, metric=metric), x, other, metric)


@pytest.mark.parametrize("dtype", [F64, F32, F16, E4M3, E5M2], ids=str)
def test_distances_of_every_type(dtype):
    x, other = make(2, 200, dtype), make(3, 200, dtype, seed=1)
    assert_distances(ops.pairwise_distances(x, other=other), x, other, "l2")


def test_true_blocks(path):
    """At the real block size: a whole block, a partial one, and a segment that starts inside."""
    x = make(9, 40000, BF16)
    segments = np.array([[0, 16384 + 37], [20001, 40000]])
    out = torch.zeros((2, 9, 9), dtype=F64)
    path.products("dot", x, None, None, segments, out)
    for (start, stop), gram in zip(segments, out, strict=True):
        assert_gram(gram, [row[start:stop] for row in x])


@pytest.mark.parametrize("op", products.OPS)
@pytest.mark.parametrize("n_rows", [3, 9])
def test_bits_do_not_depend_on_how_a_segment_is_cut(path, op, n_rows, small_blocks):
    x, base = make(n_rows, 300, F32), make(1, 300, F32, seed=1)[0]
    grams = []
    for cuts in ((0, 300), (0, 128, 300), (0, 128, 256, 300)):
        out = torch.zeros((1, n_rows, n_rows), dtype=F64)
        for start, stop in itertools.pairwise(cuts):
            path.products(op, x, None, base, np.array([[start, stop]]), out)
        grams.append(out)
    assert torch.equal(grams[0], grams[1])
    assert torch.equal(grams[0], grams[2])


def test_bits_do_not_depend_on_the_workspace(path, monkeypatch, small_blocks):
    x = make(4, 1000, BF16)
    segments = np.array([[0, 200], [200, 200], [200, 1000]])
    roomy, tight = torch.zeros((2, 3, 4, 4), dtype=F64)
    path.products("dot", x, None, None, segments, roomy)
    # two blocks at a time, and one
    monkeypatch.setattr(blocks, "WORKSPACE_BYTES", 2 * 64 * 8)
    monkeypatch.setattr(sys.modules["wkernels.cpu.products"], "WORKSPACE", 1)
    path.products("dot", x, None, None, segments, tight)
    assert torch.equal(roomy, tight)
    assert (roomy[1] == 0).all()
    for (start, stop), gram in zip(segments, roomy, strict=True):
        assert_gram(gram, [row[start:stop] for row in x])


def test_many_blocks(path, monkeypatch):
    """More than are loaded at once, and a few more: none is lost, and out comes first."""
    monkeypatch.setattr(blocks, "BLOCK", 32)
    monkeypatch.setattr(cpu_blocks, "BLOCK", 32)
    x = make(9, 32 * 39 + 5, F64)
    ones = torch.ones((1, 9, 9), dtype=F64)
    found, step_by_step = ones.clone(), ones.clone()
    path.products("dot", x, None, None, np.array([[0, len(x[0])]]), found)
    for start in range(0, len(x[0]), 13 * 32):
        stop = min(start + 13 * 32, len(x[0]))
        path.products("dot", x, None, None, np.array([[start, stop]]), step_by_step)
    assert torch.equal(found, step_by_step)
    assert_gram(found[0] - 1, x)


def test_results_are_added(path):
    x = make(3, 100, F32)
    out = torch.ones((1, 3, 3), dtype=F64)
    path.products("dot", x, None, None, np.array([[0, 100]]), out)
    difference = (out[0] - 1 - ops.gram(x)).abs()
    assert (difference <= 4 * EPS * out[0].abs()).all()


@pytest.mark.parametrize("n_rows", [7, 20, 70])
def test_permuted_rows_permute_the_bits(n_rows):
    x = make(n_rows, 333, BF16)
    order = torch.randperm(n_rows, generator=torch.Generator().manual_seed(0))
    gram = ops.gram(x)
    assert torch.equal(ops.gram([x[i] for i in order]), gram[order][:, order])
    if n_rows < 20:
        distances = ops.pairwise_distances(x)
        assert torch.equal(
            ops.pairwise_distances([x[i] for i in order]), distances[order][:, order]
        )


def test_near_duplicates():
    """Rows 1e-4 from a base of norm 1: raw products would lose what the base keeps."""
    base = make(1, 4000, F32)[0]
    x = [base + 1e-4 * step for step in make(3, 4000, F32, seed=3)]
    gram = ops.gram(x, base)
    squared = gram.diagonal()[:, None] + gram.diagonal()[None] - 2 * gram
    truth = reference.pairwise_distances(x)
    # each difference to the base is rounded once, to float32; a square doubles that, and the
    # distance adds what four products lose
    lost = 8 * torch.finfo(F32).eps * gram.diagonal().max()
    assert ((squared - truth).abs() <= lost).all()
    assert_distances(ops.pairwise_distances(x), x, None, "l2")


def test_neither_place_nor_spacing_of_rows_matters():
    x = make(10, 1001, BF16)
    shifted = torch.zeros(10, 1004, dtype=BF16)[:, 3:]
    shifted.copy_(torch.stack(x))
    assert torch.equal(ops.gram(x), ops.gram(list(shifted)))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with numpy
def test_non_finite_rows_spoil_only_their_own_pairs():
    x = make(10, 700, F32)
    x[3][699] = torch.nan
    x[4][0] = torch.inf
    gram = ops.gram(x)
    clean = [i for i in range(10) if i not in (3, 4)]
    assert_gram(gram[clean][:, clean], [x[i] for i in clean])
    assert gram[3].isnan().all()
    assert gram[4, 4] == torch.inf
    assert ops.pairwise_distances(x[2:5])[1].isnan().all()


def test_no_elements():
    assert (ops.gram([torch.empty(0)] * 3) == 0).all()
