"""Weighted sums on both paths: bit for bit, at every shape and type they branch on."""

from fractions import Fraction

import pytest
import torch

from tests.sum_truth import chain, make, poisoned, same_bits, weights_for
from wkernels import arguments, ops, reference

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
INPUTS = (F64, F32, F16, BF16, E4M3, E5M2)
OUTPUTS = (F64, F32, F16, BF16)

# models, mixes, elements: one of each, odd, just past a block, several blocks, models in batches
SHAPES = ((1, 1, 1), (2, 1, 4097), (3, 2, 515), (8, 3, 1025), (21, 9, 1030))


pytestmark = pytest.mark.usefixtures("path")


def assert_rounded_once(out, x, weights, base=None):
    """One rounding at the store, plus what sums in the compute type may lose."""
    truth = reference.weighted_sum(x, weights, base=base)
    rows = reference.rows_in_float64(x)
    terms = weights.abs().double() @ (rows.abs() if base is None else (rows - base.double()).abs())
    if base is not None:
        terms += base.double().abs()
    info = torch.finfo(out.dtype)
    compute = torch.finfo(F64 if F64 in {out.dtype, *(row.dtype for row in x)} else F32)
    store = 0.5 * info.eps * truth.abs().clamp_min(info.smallest_normal)
    error = (out.double() - truth).abs()
    assert (error <= store + (len(x) + 1) * compute.eps * terms).all()


@pytest.mark.parametrize("based", [False, True], ids=["plain", "base"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=str)
def test_bits_are_those_of_one_chain(dtype, shape, based):
    n_models, n_mixes, n = shape
    x, weights = make(n_models, n, dtype), weights_for(n_mixes, n_models)
    base = make(1, n, dtype, seed=2)[0] if based else None
    out = poisoned(n_mixes, n, dtype)
    ops.weighted_sum(x, weights, base=base, out=out)
    assert same_bits(out, chain(x, weights, dtype, base))
    assert_rounded_once(out, x, weights, base)


@pytest.mark.parametrize("dtype", INPUTS, ids=str)
@pytest.mark.parametrize("out_dtype", OUTPUTS, ids=str)
def test_every_input_to_every_output(dtype, out_dtype):
    x, weights = make(3, 300, dtype), weights_for(2, 3)
    out = poisoned(2, 300, out_dtype)
    ops.weighted_sum(x, weights, out=out)
    assert_rounded_once(out, x, weights)
    if F64 not in (dtype, out_dtype):
        assert same_bits(out, chain(x, weights, out_dtype))


def test_float64_is_one_chain_too():
    x, weights = make(4, 5, F64), weights_for(1, 4)
    out = ops.weighted_sum(x, weights)
    for k in range(5):
        total = 0.0
        for i in range(4):
            total = float(
                Fraction(x[i][k].item()) * Fraction(weights[0, i].item()) + Fraction(total)
            )
        assert out[0, k].item() == total


@pytest.mark.parametrize(("dtype", "bits"), [(F16, 11), (BF16, 8)], ids=str)
def test_float64_to_16_bits_rounds_once(dtype, bits):
    """By way of float32, ``midpoint + 2**-40`` would become the midpoint, then go to even."""
    unit, little = 2.0 ** (1 - bits), 2.0**-40
    cases = [(steps, side) for steps in range(4) for side in (-1, 0, 1)]
    x = [1 + unit * (steps + 0.5) + side * little for steps, side in cases]
    x = torch.tensor(x, dtype=F64)
    out = poisoned(1, len(x), dtype)
    ops.weighted_sum([x, torch.zeros_like(x)], torch.tensor([[1.0, 0.5]]), out=out)
    up = [side > 0 or (side == 0 and steps % 2 == 1) for steps, side in cases]
    expected = [1 + unit * (steps + rise) for (steps, _), rise in zip(cases, up, strict=True)]
    assert out[0].tolist() == expected


@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
def test_every_float8_is_read_exactly(dtype):
    x = torch.arange(256, dtype=torch.uint8).view(dtype)
    out = ops.weighted_sum([x], torch.tensor([[2.0]]), out=poisoned(1, 256, F32))
    torch.testing.assert_close(out[0], 2 * x.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("n_models", [4, 20], ids=["kept", "in batches"])
def test_rows_and_outputs_of_different_types(n_models):
    types = [(F32, BF16, F16, E4M3, E5M2)[i % 5] for i in range(n_models)]
    x = [make(1, 1100, dtype, seed=i)[0] for i, dtype in enumerate(types)]
    weights, base = weights_for(3, n_models), make(1, 1100, F32, seed=9)[0]
    outs = [poisoned(1, 1100, dtype)[0] for dtype in (F32, BF16, F16)]
    ops.weighted_sum(x, weights, base=base, out=outs)
    for j, out in enumerate(outs):
        assert same_bits(out, chain(x, weights[j : j + 1], out.dtype, base)[0])


def test_sixty_four_mixes():
    x, weights = make(3, 70, BF16), weights_for(64, 3)
    out = ops.weighted_sum(x, weights, out=poisoned(64, 70, BF16))
    assert same_bits(out, chain(x, weights, BF16))


@pytest.mark.parametrize("n", [1023, 1024, 1025, 3000])
def test_neither_place_nor_spacing_of_rows_matters(n):
    x, weights = make(8, n, BF16), weights_for(2, 8)
    expected = chain(x, weights, BF16)
    buffer = torch.stack(x)
    shifted = torch.zeros(8, n + 3, dtype=BF16)[:, 3:]  # rows of an arena that starts unaligned
    shifted.copy_(buffer)
    for rows in (x, list(buffer), list(shifted), x[:4] + list(shifted)[4:]):
        assert same_bits(ops.weighted_sum(rows, weights), expected)


def test_nothing_is_written_past_the_end():
    x, weights = make(2, 4999, F16), weights_for(1, 2)
    room = torch.full((5100,), 7.0, dtype=F16)
    ops.weighted_sum(x, weights, out=[room[:4999]])
    assert same_bits(room[:4999][None], chain(x, weights, F16))
    assert (room[4999:] == 7).all()


def test_extrapolation_multiplies_small_numbers():
    base = make(1, 2000, F32)[0]
    x = [base + 1e-4 * step for step in make(2, 2000, F32, seed=5)]
    weights = torch.tensor([[32.0, -31.0]])
    out = ops.weighted_sum(x, weights, base=base)
    truth = reference.weighted_sum(x, weights, base=base)
    # differences are exact up to half a unit of the base's, then three roundings of the result
    terms = 63 * max((row - base).abs().max() for row in x)
    bound = torch.finfo(F32).eps * (truth.abs() + 3 * terms)
    assert ((out.double() - truth).abs() <= bound).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with numpy
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_signed_zeros_subnormals_and_non_finite_numbers(dtype):
    tiny = torch.finfo(dtype).smallest_normal / 4
    values = torch.tensor([0.0, -0.0, tiny, -tiny, torch.inf, -torch.inf, torch.nan, 1.0])
    x = [values.to(dtype), values.flip(0).to(dtype)]
    weights = torch.tensor([[0.5, 0.5], [1.0, -2.0], [0.0, 3.0]])
    out = ops.weighted_sum(x, weights, out=poisoned(3, 8, dtype))
    expected = chain(x, weights, dtype)
    assert torch.equal(out.isnan(), expected.isnan())
    assert same_bits(torch.nan_to_num(out, 9), torch.nan_to_num(expected, 9))


def test_a_row_may_come_twice():
    row, weights = make(1, 100, F32)[0], torch.tensor([[0.25, 0.75, -0.5]])
    out = ops.weighted_sum([row, row, row], weights)
    assert same_bits(out, chain([row] * 3, weights, F32))


def test_no_elements():
    out = ops.weighted_sum([torch.empty(0), torch.empty(0)], torch.ones(1, 2) / 2)
    assert out.shape == (1, 0)


def state_dict(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(40, 50), (7,), (0,), (3, 5, 4097), (), (16385,)]
    types = [BF16, BF16, F32, F16, F32, BF16]
    return [
        torch.randn(shape, generator=generator).to(dtype)
        for shape, dtype in zip(shapes, types, strict=True)
    ]


@pytest.mark.parametrize("based", [False, True], ids=["plain", "base"])
def test_state_dicts_have_the_bits_of_their_tensors(based):
    models = [state_dict(seed) for seed in range(3)]
    models[2][0] = models[1][0]  # tied
    base = state_dict(7) if based else None
    weights = weights_for(2, 3)
    outs = [[torch.full_like(tensor, torch.nan) for tensor in models[0]] for _ in range(2)]
    ops.weighted_sum_tensors(models, weights, outs, base=base)
    for t, tensor in enumerate(models[0]):
        if tensor.numel():
            origin = None if base is None else base[t].flatten()
            rows = [model[t].flatten() for model in models]
            expected = chain(rows, weights, tensor.dtype, origin)
            for j in range(2):
                assert same_bits(outs[j][t].flatten(), expected[j])


def test_state_dicts_with_a_tensor_that_is_not_aligned():
    models = [
        [make(1, 2049, BF16, seed=i)[0][i:], make(1, 30, BF16, seed=9 + i)[0]] for i in (0, 1)
    ]
    models[0][0] = models[0][0][:-1]
    outs = [[torch.full_like(tensor, torch.nan) for tensor in models[0]]]
    weights = weights_for(1, 2)
    ops.weighted_sum_tensors(models, weights, outs)
    for t in range(2):
        assert same_bits(outs[0][t], chain([model[t] for model in models], weights, BF16)[0])


@pytest.mark.parametrize("dtype", [F64, F32, BF16, E4M3], ids=str)
def test_bits_are_the_same_on_both_paths(dtype, monkeypatch):
    x, weights = make(5, 3001, dtype), weights_for(4, 5)
    weights[1] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    weights[2] = 0
    base = make(1, 3001, F32, seed=3)[0]
    out_dtype = BF16 if dtype == E4M3 else dtype
    found = []
    for gpu in (False, True):
        monkeypatch.setattr(arguments, "on_gpu", lambda rows, gpu=gpu: gpu)
        out = poisoned(4, 3001, out_dtype)
        found.append(ops.weighted_sum(x, weights, base=base, out=out))
    assert same_bits(*found)
