"""The CPU kernels in memory: shares of copy bandwidth and of measured matrix-product rates."""

from __future__ import annotations

import pytest
import torch

import wkernels
from bench import plain, truth
from bench.limits import MiB, Work
from wkernels import reference

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
ROOFLINE = {"the slower of both": max, "the faster of both": min}
N_MODELS, N_ELEMENTS = 8, 64 * MiB
ZOO_MODELS, ZOO_ELEMENTS = 16, 22_713_216  # as many as all-MiniLM-L6-v2 has parameters


@DTYPES
@pytest.mark.parametrize("based", [False, True], ids=["no_base", "base"])
@pytest.mark.parametrize("n_mixes", [1, 4], ids=["1_mix", "4_mixes"])
def bench_weighted_sum(measure, limits, rows, dtype, n_mixes, based):
    """Bytes: every row and the base read once, every mix written once."""
    x, base = rows(N_MODELS, N_ELEMENTS, dtype)
    origin = base if based else None
    weights = truth.make_weights(n_mixes, N_MODELS)
    out = torch.full((n_mixes, x.shape[1]), torch.nan, dtype=dtype)
    moved = x.nbytes + out.nbytes + (base.nbytes if based else 0)
    work = Work(lambda: wkernels.weighted_sum(x, weights, base=origin, out=out), moved)
    measure(work, {"copy": (limits.copy, moved)})
    truth.check_mixes(out, x, weights, origin)


@DTYPES
@pytest.mark.parametrize(
    "way", [plain.blocks, plain.accumulate, plain.foreach, plain.stack_and_sum]
)
def bench_weighted_sum_in_torch(measure, limits, rows, dtype, way):
    """What users write; the bytes are those that the sum needs, not those that the way moves."""
    x, _ = rows(N_MODELS, N_ELEMENTS, dtype)
    weights = truth.make_weights(1, N_MODELS)
    _measure_plain(measure, limits, x, weights, way)


@DTYPES
def bench_weighted_sum_compiled(measure, limits, rows, dtype):
    way = plain.compiled()
    if way is None:
        pytest.skip("torch.compile: not available (it needs a C++ compiler)")
    x, _ = rows(N_MODELS, N_ELEMENTS, dtype)
    _measure_plain(measure, limits, x, truth.make_weights(1, N_MODELS), way)


def _measure_plain(measure, limits, x, weights, way):
    moved = x.nbytes + x[0].nbytes
    work = Work(lambda: way(x.unbind(), weights[0].tolist()), moved)
    out = measure(work, {"copy": (limits.copy, moved)}, rounds=3)
    truth.check_mixes([out], x, weights, roundings=2 * N_MODELS)


@pytest.mark.parametrize("based", [False, True], ids=["no_base", "base"])
def bench_gram(measure, limits, rows, based):
    """Bytes: every row read once. Operations: the ``2 n**2`` an element of a full product."""
    x, base = rows(ZOO_MODELS, ZOO_ELEMENTS, torch.float32)
    origin = base if based else None
    moved = x.nbytes + (base.nbytes if based else 0)
    work = Work(lambda: wkernels.gram(x, origin), moved)
    result = measure(work, _product_limits(limits, moved), together=ROOFLINE)
    expected = truth.gram_in_float64(x, origin)
    truth.check_gram(result, expected, x.shape[1], based=based)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def bench_gram_in_torch(measure, benchmark, limits, rows, dtype):
    """``X @ X.T``: in float32 the sums lose digits, which ``extra_info`` tells."""
    x, _ = rows(ZOO_MODELS, ZOO_ELEMENTS, torch.float32)

    def multiply() -> torch.Tensor:
        matrix = x.to(dtype)
        return matrix @ matrix.T

    result = measure(Work(multiply, x.nbytes), _product_limits(limits, x.nbytes), 3, ROOFLINE)
    error = truth.gram_error(result, truth.gram_in_float64(x))
    benchmark.extra_info["relative_error"] = error
    assert error < (1e-2 if dtype == torch.float32 else 1e-8)


def bench_pairwise_distances(measure, limits, rows):
    x, _ = rows(ZOO_MODELS, ZOO_ELEMENTS // 4, torch.float32)
    work = Work(lambda: wkernels.pairwise_distances(x), x.nbytes)
    result = measure(work, {"read": (limits.read, x.nbytes)}, rounds=3)
    expected = truth.squared_distances_in_float64(x)[0]
    assert torch.allclose(result[0], expected, rtol=4 * truth.FLOAT32_EPS, atol=0)


@DTYPES
@pytest.mark.parametrize("based", [False, True], ids=["no_base", "base"])
def bench_row_statistics(measure, limits, rows, dtype, based):
    x, base = rows(N_MODELS, N_ELEMENTS // 4, dtype)
    origin = base if based else None
    moved = x.nbytes + (base.nbytes if based else 0)
    work = Work(lambda: wkernels.row_statistics(x, origin), moved)
    result = measure(work, {"read": (limits.read, moved)})
    expected = reference.row_statistics(x[:1], origin)
    for name, value in expected.items():
        actual = getattr(result, name)[:1].double()
        # atol: the mean is a difference of sums a thousand times larger
        assert torch.allclose(actual, value.double(), rtol=1e-9, atol=1e-12, equal_nan=True), name


def _product_limits(limits, moved):
    operations = 2 * ZOO_MODELS**2 * moved / ZOO_MODELS / 4
    return {"copy": (limits.copy, moved), "sgemm": (limits.sgemm, operations)}
