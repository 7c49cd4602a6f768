"""Rows of one type, mixed or multiplied as they are stored: the bits of every other way."""

import importlib

import numpy as np
import pytest
import torch

from tests.paths import Cpu
from tests.sum_truth import chain, make, poisoned, same_bits, weights_for
from wkernels import cpu, ops
from wkernels.arguments import pointers_to

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16

sums = importlib.import_module("wkernels.cpu.weighted_sum")
BLOCK = sums.BLOCK

pytestmark = [
    pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str),
    pytest.mark.parametrize("based", [False, True], ids=["plain", "base"]),
]


def problem(n_models, n, dtype, based):
    """Rows, weights, base (None if not ``based``) and the mix."""
    x, weights = make(n_models, n, dtype), weights_for(1, n_models)
    base = make(1, n, dtype, seed=2)[0] if based else None
    return x, weights, base, chain(x, weights, dtype, base)


def shifted(row, k):
    """The row, ``k`` elements past the start of its memory."""
    moved = torch.empty(len(row) + k, dtype=row.dtype)[k:]
    return moved.copy_(row)


@pytest.fixture
def past_the_caches(monkeypatch):
    monkeypatch.setattr(sums, "BYPASS", 1)


@pytest.fixture
def calls(monkeypatch):
    """Where each range that was summed here began, where it stopped, and where it was to."""
    found, over = [], sums._sum_alike.over

    def counted(*arguments):
        sum_alike = over(*arguments)

        def run(start, stop):
            reached = sum_alike(start, stop)
            found.append((start, reached, stop))
            return reached

        return run

    monkeypatch.setattr(sums._sum_alike, "over", counted)
    return found


@pytest.mark.parametrize("n_models", [1, 2, 3, 4, 5, 7, 8, 9, 15, 21])
def test_any_number_of_rows(n_models, dtype, based, calls):
    n = 2 * BLOCK + 192
    x, weights, base, expected = problem(n_models, n, dtype, based)
    out = poisoned(1, n, dtype)
    ops.weighted_sum(x, weights, base=base, out=out)
    assert same_bits(out, expected)
    assert calls == [(0, n, n)]


def test_any_tail(dtype, based, calls):
    x, weights, base, _ = problem(8, BLOCK + 128, dtype, based)
    for tail in range(64):
        for n in (tail, 64 + tail, BLOCK + tail):
            rows = [row[:n] for row in x]
            origin = None if base is None else base[:n]
            out = poisoned(1, n, dtype)
            ops.weighted_sum(rows, weights, base=origin, out=out)
            assert same_bits(out, chain(rows, weights, dtype, origin)), n
    assert (0, BLOCK, BLOCK + 63) in calls


@pytest.mark.parametrize("bypass", [False, True], ids=["cached", "past the caches"])
def test_any_alignment(dtype, based, bypass, monkeypatch, calls):
    monkeypatch.setattr(sums, "BYPASS", 1 if bypass else 1 << 60)
    n = BLOCK + 64
    x, weights, base, expected = problem(8, n, dtype, based)
    for k in (*range(6), 16, 31, 32, 33):
        rows = [shifted(row, k * i % 7) for i, row in enumerate(x)]
        origin = None if base is None else shifted(base, k)
        room = torch.full((n + 256,), 7.0, dtype=dtype)
        aligned = -room.data_ptr() % 64 // room.itemsize
        out = room[aligned + k :][:n].fill_(torch.nan)
        ops.weighted_sum(rows, weights, base=origin, out=[out])
        assert same_bits(out[None], expected), k
        assert (room[: aligned + k] == 7).all(), "written before the start"
        assert (room[aligned + k + n :] == 7).all(), "written past the end"
    assert set(calls) == {(0, n, n)}


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_do_not_matter(dtype, based, threads, monkeypatch, calls, past_the_caches):
    monkeypatch.setattr(sums, "PARALLEL", 1)
    n = 9 * BLOCK + 70
    x, weights, base, expected = problem(3, n, dtype, based)
    out = poisoned(1, n, dtype)
    origin = pointers_to([] if base is None else [base])
    copied = sums.np.array([sums.MIXED])
    bad = cpu.weighted_sum(
        pointers_to(x), weights.numpy(), copied, origin, pointers_to(list(out)), n,
        threads=threads,
    )  # fmt: skip
    assert same_bits(out, expected)
    assert bad == 0
    assert sum(reached - start for start, reached, _ in calls) == n - 70 % 64


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")  # the definition is in numpy
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_what_is_not_finite_is_stored_and_counted(dtype, based, value, calls, past_the_caches):
    n, place = 3 * BLOCK, BLOCK + 70
    x, weights = make(8, n, dtype), torch.full((1, 8), 2.0)
    base = torch.zeros(n, dtype=dtype) if based else None
    for row in x[:2]:
        row[place] = value  # the sum of two of the largest overflows
    out = poisoned(1, n, dtype)
    origin = pointers_to([] if base is None else [base])
    copied = sums.np.array([sums.MIXED])
    bad = cpu.weighted_sum(
        pointers_to(x), weights.numpy(), copied, origin, pointers_to(list(out)), n, threads=1
    )  # fmt: skip
    expected = chain(x, weights, dtype, base)
    assert bad == 1
    assert torch.equal(out.isnan(), expected.isnan())
    assert same_bits(torch.nan_to_num(out, 9), torch.nan_to_num(expected, 9))
    assert calls == [(0, BLOCK, n)]


def test_signed_zeros_and_subnormals(dtype, based):
    tiny = torch.finfo(dtype).smallest_normal / 4
    values = torch.tensor([0.0, -0.0, tiny, -tiny, tiny * 2, 1.0, -1.0, -tiny * 3])
    x = [values.repeat(8).to(dtype), values.flip(0).repeat(8).to(dtype)]
    base = values.repeat_interleave(8).to(dtype) if based else None
    for weights in ([[-0.25, 0.0]], [[1e-30, -1e-30]], [[-1.0, -0.0]]):
        factors = torch.tensor(weights)
        out = poisoned(1, 64, dtype)
        ops.weighted_sum(x, factors, base=base, out=out)
        assert same_bits(out, chain(x, factors, dtype, base))


def test_other_types_are_summed_another_way(dtype, based, calls):
    n = BLOCK
    x, weights, base, expected = problem(3, n, dtype, based)
    other = BF16 if dtype == F32 else F32
    ops.weighted_sum(x, weights, base=base, out=poisoned(1, n, other))
    if base is not None:
        ops.weighted_sum(x, weights, base=base.to(other), out=poisoned(1, n, dtype))
    ops.weighted_sum([*x[:2], x[2].to(other)], weights, base=base, out=poisoned(1, n, dtype))
    two = poisoned(2, n, dtype)
    ops.weighted_sum(x, weights.repeat(2, 1), base=base, out=two)
    assert same_bits(two, expected.repeat(2, 1))
    assert not calls


def test_products_of_a_few_rows_are_those_among_more(dtype, based):
    """Up to four rows are multiplied as they are stored, more through memory."""
    x, base = make(5, 40001, dtype), make(1, 40001, dtype, seed=2)[0] if based else None
    segments = np.array([[0, 37], [37, 37], [37, 16384 + 37], [16500, 40001]])
    every = torch.zeros((4, 5, 5), dtype=torch.float64)
    Cpu.products("dot", x, None, base, segments, every)
    for n_rows in range(1, 5):
        few = torch.zeros((4, n_rows, n_rows), dtype=torch.float64)
        Cpu.products("dot", x[:n_rows], None, base, segments, few)
        assert torch.equal(few, every[:, :n_rows, :n_rows])
