"""Sketches: their bits, and the spread of what they estimate."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from wkernels import cpu, ops, reference
from wkernels.arguments import pointers_to
from wkernels.sketches import ERROR, SIZE, Runs, SketchSums
from wspace.stream import CUT

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]


def make(n, dtype=torch.float32, seed=0):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)).to(dtype)


def runs_of(tensors, keys, cuts=()):
    """All of these tensors, one after the other in memory, each cut at the same places."""
    table, start = [], 0
    for size, key in zip(map(len, tensors), keys, strict=True):
        edges = [0, *[cut for cut in cuts if cut < size], size]
        table += [(start + a, start + b, a, size, key) for a, b in pairwise(edges)]
        start += size
    starts, stops, firsts, sizes, key = zip(*table, strict=True)
    segments = np.stack([starts, stops], axis=1)
    columns = (np.array(firsts), np.array(sizes), np.zeros(len(table), np.int64))
    return Runs(segments, *columns, np.array(key, np.uint64))


def sketch(tensors, keys, *, cuts=(), threads=1, calls=1):
    row = torch.cat(list(tensors))
    runs, sums = runs_of(tensors, keys, cuts), SketchSums()
    for which in np.array_split(np.arange(len(runs.keys)), calls):
        part = Runs(*(np.ascontiguousarray(column[which]) for column in runs))
        cpu.sketch(pointers_to([row]), part, sums, threads=threads)
    return torch.from_numpy(sums.value(0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 63, 1000, SIZE - 1, SIZE, SIZE + 1, 3 * SIZE + 12345])
def test_equals_its_definition(n, dtype):
    x = make(n, dtype)
    key = 0xFEDCBA9876543210 + n
    # rows are added in order by both, so that not even the last bit differs
    assert torch.equal(ops.sketch(x, key=key), reference.sketch(x, key))


def test_of_one_row_it_holds_the_elements_themselves():
    x = make(SIZE)
    assert torch.equal(ops.sketch(x).abs().sort().values, x.double().abs().sort().values)


def test_bits_depend_neither_on_cuts_nor_threads_nor_calls():
    tensors = [make(n, seed=n) for n in (5, 2 * SIZE + 77, 1, 40000, 4 * CUT, 3 * SIZE)]
    keys = list(range(10, 16))
    whole = sketch(tensors, keys)
    cuts = range(CUT, 4 * SIZE, CUT)
    for settings in ({"threads": 3}, {"cuts": cuts}, {"cuts": cuts, "threads": 2, "calls": 9}):
        assert torch.equal(sketch(tensors, keys, **settings), whole)


def test_the_order_of_tensors_does_not_matter():
    """Values of very different sizes: a plain sum would have other last bits."""
    tensors = [make(n, seed=n) * 10.0 ** (n % 7 - 3) for n in range(100, 40000, 999)]
    keys = np.arange(len(tensors))
    forward, backward = sketch(tensors, keys), sketch(tensors[::-1], keys[::-1])
    assert torch.equal(forward, backward)
    plain = sum(reference.sketch(x, int(key)) for x, key in zip(tensors, keys, strict=True))
    torch.testing.assert_close(forward, plain, rtol=1e-9, atol=1e-11)
    assert not torch.equal(forward, plain)


def test_it_is_linear():
    x, y = make(200_000, seed=1), make(200_000, seed=2)
    mixed = ops.sketch(0.25 * x.double() - 2 * y.double(), key=3)
    expected = 0.25 * ops.sketch(x, key=3) - 2 * ops.sketch(y, key=3)
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-12)


def test_a_small_step_survives():
    """A model 1e-5 away from its base: sums in float32 would lose it."""
    x = make(600_000, seed=1).double()
    step = 1e-5 * make(600_000, seed=2).double()
    found = (ops.sketch(x + step) - ops.sketch(x)).norm() / step.norm()
    assert abs(found - ops.sketch(step).norm() / step.norm()) < 1e-9


ROWS, KEYS = 3, 250
N = ROWS * SIZE


def low_rank(seed):
    left, right = make(N // 512, seed=seed), make(512, seed=seed + 1)
    return torch.outer(left, right).flatten()


def sparse(values, every):
    x = torch.zeros(N)
    x[::every] = values[::every]
    return x


INPUTS = {  # two tensors each, some of them nothing like noise
    "noise": (make(N, seed=1), make(N, seed=2)),
    "the same": (make(N, seed=1), make(N, seed=1)),
    "constants": (torch.ones(N), torch.full((N,), 0.5)),
    "low rank": (low_rank(1), low_rank(3)),
    "every 16th": (sparse(make(N, seed=1), 16), sparse(make(N, seed=2), 16)),
    "in one half": (sparse(make(N, seed=1), 1) * (torch.arange(N) < N // 2), make(N, seed=2)),
}


@pytest.mark.parametrize("name", INPUTS)
def test_inner_products_have_the_stated_mean_and_spread(name):
    """Over 250 keys; the standard deviation of the spread found is 4.5 % of it."""
    x, y = INPUTS[name]
    found = []
    for key in range(KEYS):
        mine = ops.sketch(x, key=key * 0x1234567)
        found.append(mine @ (mine if y is x else ops.sketch(y, key=key * 0x1234567)))
    found = torch.stack(found)
    rows = x.double().view(ROWS, -1), y.double().view(ROWS, -1)
    squares, products = [row.square().sum(1) for row in rows], (rows[0] * rows[1]).sum(1)
    # pairs of elements in different rows meet with a chance of 1 / SIZE
    apart = 1 - torch.eye(ROWS, dtype=torch.float64)
    variance = (squares[0] @ apart @ squares[1] + products @ apart @ products) / SIZE
    truth, spread = products.sum(), variance.sqrt()
    assert (found.mean() - truth).abs() < 4 * spread / KEYS**0.5
    assert 0.82 * spread < (found - truth).square().mean().sqrt() < 1.18 * spread
    assert spread <= ERROR * x.double().norm() * y.double().norm()


def test_one_element_meets_another_as_often_as_stated():
    """A one-hot tensor and another: their product is 0, or +-1 with a chance of 1 / SIZE."""
    x = torch.zeros(2 * SIZE)
    met = 0
    for key in range(300):
        x[:] = 0
        x[17] = 1
        bucket = int(ops.sketch(x, key=key).abs().argmax())
        x[17], x[SIZE + 17 : SIZE + 1041] = 0, 1
        met += int(ops.sketch(x, key=key)[bucket] != 0)
    # of 300 offsets, a window of 1024 elements covers a bucket with a chance of 1 / 64
    assert 0 < met < 14


def test_refusals():
    with pytest.raises(TypeError, match=r"x\[0\]: expected one of .*, got int64"):
        ops.sketch(torch.arange(3))
