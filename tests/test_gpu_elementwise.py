"""Elementwise merges on the GPU path, interpreted: the bits are those of the CPU path."""

import itertools
import math

import numpy as np
import pytest
import torch

from wkernels import arguments, bands, cpu, elementwise, reference
from wkernels.gpu import columns, consensus, kept, ranks, scores, selection
from wkernels.masks import Joint, no_mask

F64, F32, F16, BF16, E4M3 = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
)  # fmt: skip


def make(n_rows, n, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(n, generator=generator, dtype=F64)
    steps = torch.randn((n_rows, n), generator=generator, dtype=F64)
    return [(base + 0.1 * step).to(dtype) for step in steps], base.to(dtype)


def on_both(monkeypatch, operation):
    found = []
    for gpu in (False, True):
        monkeypatch.setattr(arguments, "on_gpu", lambda rows, gpu=gpu: gpu)
        found.append(operation())
    return found


@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64, E4M3], ids=str)
@pytest.mark.parametrize("n", [1, 2503])
def test_thresholds(monkeypatch, n, dtype):
    monkeypatch.setattr(selection, "LENGTH", 1024)
    rows, base = make(3, n, dtype)
    for count in ([0, n // 2, n], [1, n // 3, n - 1]):
        for origin in (base, None):
            here, there = on_both(
                monkeypatch,
                lambda count=count, origin=origin: elementwise.largest(rows, count, base=origin),
            )
            assert np.array_equal(here[0], there[0])
            assert np.array_equal(here[1], there[1])


def test_equal_magnitudes_over_several_steps(monkeypatch):
    row = torch.tensor([1.0, -1.0] * 300)
    row[[3, 590]] = torch.tensor([2.0, 0.5])
    here, there = on_both(monkeypatch, lambda: elementwise.largest([row, row], [450, 7]))
    assert np.array_equal(here[0], there[0])
    assert there[1].tolist() == here[1].tolist() == [[450, 7]]


def test_rows_of_different_types(monkeypatch):
    rows = [make(1, 600, dtype, seed=i)[0][0] for i, dtype in enumerate((BF16, F32, BF16))]
    base = make(1, 600, F32)[1]
    here, there = on_both(monkeypatch, lambda: elementwise.largest(rows, 200, base=base)[0])
    assert np.array_equal(here, there)
    here, there = on_both(
        monkeypatch,
        lambda: elementwise.joined(rows, trimmed(rows, base, 200), joint_of(3), base=base),
    )
    assert torch.equal(here, there)


def trimmed(rows, base, count, drop=0):
    mask = no_mask(1, len(rows))
    keep, keep_before = elementwise.largest(rows, count, base=base)
    away, away_before = elementwise.largest(rows, drop, base=base)
    return mask._replace(keep=keep, keep_before=keep_before, drop=away, drop_before=away_before)


def joint_of(n_rows, **options):
    weights = np.resize([0.5, 0.25, -0.75, 1.5], (1, n_rows))
    return Joint(weights, weights, np.abs(weights), np.array([1.25]), **options)


JOINTS = {
    "none": {},
    "sum": {"elect": "sum", "divide": True},
    "signs": {"elect": "signs", "divide": True, "undecided": -1.0},
    "least": {"elect": "sum", "divide": True, "least": 0.4},
    "counted": {"divide": True},
    "lone": {"elect": "sum", "lone": np.array([[2.0, 3.0, 0.5, 1.0]])},
}


@pytest.mark.parametrize("options", JOINTS.values(), ids=JOINTS)
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
@pytest.mark.parametrize("drawn", [False, True], ids=["trimmed", "drawn"])
def test_joined(monkeypatch, dtype, options, drawn):
    rows, base = make(4, 1101, dtype)

    def operation():
        mask = no_mask(1, 4) if drawn else trimmed(rows, base, 400, drop=30)
        if drawn:
            keys = np.array([[7, 2**63 + 11, 5, 2**64 - 1]], np.uint64)
            chances = np.array([[0.5, 0.25, 1.0, 0.9]], np.float32)
            mask = mask._replace(key=keys, chance=chances)
        out = torch.full((1101,), torch.nan, dtype=dtype)
        return elementwise.joined(rows, mask, joint_of(4, **options), base=base, out=out)

    here, there = on_both(monkeypatch, operation)
    assert torch.equal(here.view(torch.uint8), there.view(torch.uint8))
    assert not torch.equal(here, base)


def test_without_a_base_and_without_elements(monkeypatch):
    rows, _ = make(2, 200, F32)
    here, there = on_both(
        monkeypatch, lambda: elementwise.joined(rows, trimmed(rows, None, 50), joint_of(2))
    )
    assert torch.equal(here, there)
    nothing = [torch.empty(0)] * 2
    _, there = on_both(monkeypatch, lambda: elementwise.joined(nothing, no_mask(1, 2), joint_of(2)))
    assert there.shape == (0,)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with numpy
def test_nan_and_infinity_come_through(monkeypatch):
    rows, base = make(3, 100, F32)
    rows[0][3], rows[1][5] = torch.nan, torch.inf
    joint = joint_of(3, elect="sum", divide=True)
    here, there = on_both(
        monkeypatch, lambda: elementwise.joined(rows, no_mask(1, 3), joint, base=base)
    )
    assert torch.equal(here.isnan(), there.isnan())
    assert torch.equal(torch.nan_to_num(here), torch.nan_to_num(there))
    assert there[3].isnan()


LINES = {
    "whole": [(5, 13, 1), (3, 8, 5), (9, 1, 1), (2, 1, 7), (1, 64, 1)],
    "side by side": [(2, 40, 3), (1, 33, 2)],
    "longer than a tile": [(2, 130, 1), (1, 200, 1), (1, 70, 2), (1, 65, 1)],
}


def runs_of(sizes):
    ends = np.cumsum(sizes)
    return np.stack([ends - sizes, ends], axis=1)


@pytest.mark.parametrize("shapes", LINES.values(), ids=LINES)
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
def test_chances_by_rank(monkeypatch, dtype, shapes):
    monkeypatch.setattr(ranks, "TILE", 64)
    monkeypatch.setattr(ranks, "MERGED", 32)
    segments = runs_of([math.prod(shape) for shape in shapes])
    n = segments[-1, 1]
    (row, last), base = make(2, n, dtype)
    row[::7] = base[::7]  # equal magnitudes, in the order of their places
    for origin in (base, None):
        out = torch.full((2, n), torch.nan)
        ranks.rank_chances([row, last], origin, segments, shapes, [0.5, 1.0], [0.2, 0.2], out)
        assert (out[1] == 1).all()
        expected = torch.full((n,), torch.nan)
        wide = F64 if dtype == F64 else F32
        d = row.to(wide) if origin is None else row.to(wide) - origin.to(wide)
        for (start, stop), shape in zip(segments, shapes, strict=True):
            based = [] if origin is None else [origin[start:stop]]
            cpu.rank_chances(
                arguments.pointers_to([row[start:stop]]), arguments.pointers_to(based),
                stop - start, shape, 0.5, 0.2, expected[start:stop].numpy(), threads=1,
            )  # fmt: skip
            truth = reference.rank_chances(d[start:stop].float().reshape(shape), 0.5, 0.2)
            assert torch.equal(out[0, start:stop], truth.flatten().float())
        assert torch.equal(out[0], expected)


def test_a_tile_of_the_size_that_runs():
    (row,), base = make(1, 4096 + 700, BF16)
    for shape in ((1, 4096 + 700, 1), (4, 1199, 1)):
        out = torch.full((1, 4796), torch.nan)
        ranks.rank_chances([row], base, np.array([[0, 4796]]), [shape], [0.4], [0.1], out)
        truth = reference.rank_chances((row.float() - base.float()).reshape(shape), 0.4, 0.1)
        assert torch.equal(out[0], truth.flatten().float())


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
def test_chances_of_elements(monkeypatch, dtype, unbiased):
    rows, base = make(3, 1101, dtype)
    mask = no_mask(1, 3)
    mask.key[:] = [7, 2**63 + 11, 5]
    chances = torch.rand((3, 1101), generator=torch.Generator().manual_seed(1))
    segments, firsts, joint = np.array([[0, 1101]]), np.array([5]), joint_of(3, elect="sum")
    there = torch.full((1101,), torch.nan, dtype=dtype)
    consensus.joined(
        rows, base, segments, firsts, mask, joint, there, chances=chances, unbiased=unbiased
    )
    given = arguments.pointers_to(rows), arguments.pointers_to([base]), segments, firsts, mask
    own = arguments.pointers_to(list(chances))
    here = torch.full((1101,), torch.nan, dtype=dtype)
    cpu.joined(
        *given, joint, arguments.pointers_to([here]), chances=own, unbiased=unbiased, threads=1
    )
    assert torch.equal(here, there)
    sums = np.zeros((2, 1, 3, kept.N_SUMS))
    kept.kept_sums(rows, base, segments, firsts, mask, sums[0], chances=chances)
    cpu.kept_sums(*given, sums[1], chances=own, threads=1)
    assert np.array_equal(sums[0], sums[1])
    assert 0 < sums[0, 0, 0, 3] < 1101


@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
def test_importances(dtype):
    shapes = [(4, 130), (3, 8), (2, 1700), (9, 1)]
    segments = runs_of([math.prod(shape) for shape in shapes])
    n = segments[-1, 1]
    (row,), base = make(1, n, dtype)
    out = torch.full((n,), torch.nan)
    scores.importances(row, base, segments, np.array([width for _, width in shapes]), out)
    for (start, stop), shape in zip(segments, shapes, strict=True):
        x, origin = row[start:stop].reshape(shape), base[start:stop].reshape(shape)
        truth, terms = reference.importances(x, origin)
        # the divergence is a small sum of large terms of both signs
        lost = shape[1] * torch.finfo(F64).eps * terms + torch.finfo(F32).eps / 2 * truth
        error = (out[start:stop].reshape(shape).double() - truth).abs()
        lost += 1e-45  # below float32's subnormals
        if dtype != F64:  # the difference is rounded to float32
            lost += torch.finfo(F32).eps / 2 * truth
        assert (error <= lost).all(), f"{(error - lost).max()=:.3e}"


@pytest.mark.parametrize("based", [True, False], ids=["base", "no base"])
@pytest.mark.parametrize("types", [(BF16, BF16), (F32, F32), (F64, F64), (BF16, F32), (E4M3, F16)])
def test_columns(monkeypatch, types, based):
    monkeypatch.setattr(bands, "BAND", 512)
    monkeypatch.setattr(bands, "FEWEST", 4)
    monkeypatch.setattr(bands, "WIDE", 600)
    shapes = [(37, 130), (3, 8), (5, 700), (9, 1)]
    segments = runs_of([math.prod(shape) for shape in shapes])
    n = segments[-1, 1]
    rows = [make(1, n, dtype, seed)[0][0] for seed, dtype in enumerate(types)]
    base = make(1, n, types[0])[1] if based else None
    firsts, widths = np.zeros(4, int), np.array([width for _, width in shapes])
    grams = [np.zeros((width, 2, 2)) for width in widths]
    columns.column_products(rows, base, segments, firsts, widths, grams)
    factors = [np.random.default_rng(0).normal(size=(width, 2)) for width in widths]
    out = torch.full((n,), torch.nan, dtype=types[-1])
    cuts = [(0, 1000), (1000, 1001), (1001, n)]
    for start, stop in cuts:  # in the middle of rows
        part = np.clip(segments, start, stop)
        columns.column_sums(
            [row[start:stop] for row in rows], base if base is None else base[start:stop],
            part - start, part[:, 0] - segments[:, 0], factors, out[start:stop],
        )  # fmt: skip
    d = torch.stack([row.double() for row in rows])
    origin = torch.zeros(n, dtype=F64) if base is None else base.double()
    d = d - origin
    for (start, stop), shape, gram, table in zip(segments, shapes, grams, factors, strict=True):
        part = d[:, start:stop].reshape(2, *shape)
        truth = torch.einsum("irc,jrc->cij", part, part)
        terms = torch.einsum("irc,jrc->cij", part.abs(), part.abs())
        error = (torch.from_numpy(gram) - truth).abs()
        assert (error <= (shape[0] + 2) * torch.finfo(F64).eps * terms).all()
        expected = torch.einsum("ci,irc->rc", torch.from_numpy(table), part)
        expected = expected + origin[start:stop].reshape(shape)
        bound = torch.einsum("ci,irc->rc", torch.from_numpy(table).abs(), part.abs())
        bound = 4 * torch.finfo(F64).eps * (bound + origin[start:stop].reshape(shape).abs())
        bound = bound + torch.finfo(out.dtype).eps / 2 * expected.abs()
        assert ((out[start:stop].reshape(shape).double() - expected).abs() <= bound).all()


def test_where_a_matrix_is_cut_does_not_change_the_products_of_its_columns(monkeypatch):
    monkeypatch.setattr(bands, "FEWEST", 4)
    monkeypatch.setattr(bands, "BAND", 520)
    monkeypatch.setattr(bands, "WIDE", 600)
    for width, cuts in ((130, (0, 8, 12, 37)), (700, (0, 3, 4, 37))):
        rows, base = make(2, 37 * width, F32)
        found = []
        for runs in ([(0, 37)], [*itertools.pairwise(cuts)]):
            gram = np.zeros((width, 2, 2))
            for first, last in runs:
                here = slice(first * width, last * width)
                columns.column_products(
                    [row[here] for row in rows], base[here],
                    np.array([[0, (last - first) * width]]), np.array([first * width]),
                    np.array([width]), [gram],
                )  # fmt: skip
            found.append(gram)
        assert np.array_equal(*found)
