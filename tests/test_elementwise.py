"""Thresholds, draws, elections: every element against float64 and the stated rules."""

import numpy as np
import pytest
import torch

from wkernels import cpu, elementwise, reference
from wkernels.arguments import pointers_to
from wkernels.cpu.divergences import exp, exp_less_1
from wkernels.cpu.jit import kernel
from wkernels.dtypes import CODES
from wkernels.elementwise import Joint, joined, kept_sums, largest, no_mask
from wkernels.selection import ALL

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
SIZES = [1, 2, 65, 1025, 40_001]


def make(n_models, n, dtype, seed=0, step=0.1):
    """Rows near a base; in 16 bits many of their differences are equal."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(n, generator=generator, dtype=F64)
    rows = [base + step * torch.randn(n, generator=generator, dtype=F64) for _ in range(n_models)]
    return [row.to(dtype) for row in rows], base.to(dtype)


def differences(rows, base):
    wide = F64 if F64 in {base.dtype, *(row.dtype for row in rows)} else F32
    return torch.stack([row.to(wide) - base.to(wide) for row in rows])


def kept_by(mask, d):
    """What a mask of thresholds keeps of rows of differences, from its definition."""
    bits = d.abs().numpy().view(np.int32 if d.dtype == F32 else np.int64).astype(object)
    place = np.arange(d.shape[1])[None]

    def beyond(table, before):
        return (bits > table[0][:, None]) | (
            (bits == table[0][:, None]) & (place < before[0][:, None])
        )

    kept = beyond(mask.keep, mask.keep_before) & ~beyond(mask.drop, mask.drop_before)
    return torch.from_numpy(kept.astype(bool))


def trimmed(rows, base, count, drop=0):
    mask = no_mask(1, len(rows))
    keep, keep_before = largest(rows, count, base=base)
    away, away_before = largest(rows, drop, base=base)
    return mask._replace(keep=keep, keep_before=keep_before, drop=away, drop_before=away_before)


@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_the_largest_are_those_of_a_stable_sort(n, dtype):
    rows, base = make(3, n, dtype)
    d = differences(rows, base)
    for count in {0, 1, n // 3, n // 2, n - 1, n, n + 5}:
        mask = trimmed(rows, base, count)
        kept = kept_by(mask, d)
        for i in range(3):
            assert torch.equal(kept[i], reference.largest(d[i], count)), (count, i)
        out = joined(rows[:1], mask.of(np.array([0])), ones(1), base=base, out=poisoned(n, F64))
        assert torch.equal(out != base.double(), kept[0] & (d[0] != 0))


def test_equal_magnitudes_go_by_place():
    base = torch.zeros(40_000)
    row = torch.tensor([1.0, -1.0] * 20_000)
    row[[3, 39_999]] = torch.tensor([2.0, 0.5])
    out = joined([row], trimmed([row], base, 20_001), ones(1), base=base)
    expected = row.clone()
    expected[20_001:] = 0  # place 3 is among the first
    assert torch.equal(out, expected)
    assert int((out != 0).sum()) == 20_001


def test_outliers_are_dropped_before_the_rest_is_counted():
    row = torch.tensor([5.0, -7.0, 1.0, 1.0, -1.0, 0.5, 3.0])
    out = joined([row], trimmed([row], torch.zeros(7), 5, drop=2), ones(1), base=torch.zeros(7))
    assert out.tolist() == [0, 0, 1, 1, 0, 0, 3]


def ones(n, **options):
    table = np.ones((1, n))
    return Joint(table, table, table, np.ones(1), **options)


def poisoned(n, dtype):
    return torch.full((n,), torch.nan, dtype=dtype)


ELECTIONS = {
    "none": {},
    "mergekit": {"elect": "sum", "divide": True},
    "not divided": {"elect": "sum"},
    "signs": {"elect": "signs", "divide": True, "undecided": -1.0},
    "least": {"elect": "sum", "divide": True, "least": 0.4},
    "counted": {"divide": True},
}


@pytest.mark.parametrize("options", ELECTIONS.values(), ids=ELECTIONS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
@pytest.mark.parametrize("n", [1, 65, 1025, 20_001])
def test_joined(n, dtype, options):
    rows, base = make(4, n, dtype)
    weights = np.array([0.5, 0.25, -0.75, 1.5])
    joint = Joint(weights[None], weights[None], weights[None], np.array([1.25]), **options)
    mask = trimmed(rows, base, n // 2 + 1)
    out = joined(rows, mask, joint, base=base, out=poisoned(n, dtype))
    d = differences(rows, base)
    d = torch.where(kept_by(mask, d), d, 0.0)
    parts = {k: v for k, v in options.items() if k != "divide"}
    truth = reference.joined(
        d, base, factor=weights, vote=weights, scale=1.25,
        share=weights if options.get("divide") else None, **parts,
    )  # fmt: skip
    compute = torch.finfo(F64 if dtype == F64 else F32).eps
    # a divisor may be much smaller than its terms: 0.25 is the least that these weights give
    terms = 1.25 * (np.abs(weights)[:, None] * d.double().abs().numpy()).sum(0) / 0.25
    bound = torch.finfo(dtype).eps * truth.abs() / 2 + 8 * compute * (
        torch.from_numpy(terms) + base.double().abs()
    )
    assert ((out.double() - truth).abs() <= bound).all()


def test_votes_that_cancel_exactly_are_undecided():
    """Weights that are no powers of two, and differences of 1, 2 and -3 units."""
    base = torch.zeros(70)
    rows = [torch.full((70,), step * 2.0**-9) for step in (1, 2, -3)]
    weights = np.full((1, 3), 0.1)
    for undecided, expected in ((1.0, 3 * 2.0**-9), (-1.0, -3 * 2.0**-9)):
        joint = Joint(
            np.ones((1, 3)), weights, weights, np.ones(1), elect="sum", undecided=undecided
        )  # fmt: skip
        out = joined(rows, no_mask(1, 3), joint, base=base)
        assert (out == expected).all()


def test_draws_are_those_of_splitmix():
    n, key = 5000, 0xDEADBEEF12345678
    rows, base = [torch.ones(n), torch.ones(n)], torch.zeros(n)
    mask = no_mask(1, 2)
    mask.key[:] = [[key, key + 1]]
    mask.chance[:] = [[0.3, 1.0]]
    out = joined(rows[:1], mask._replace(key=mask.key[:, :1], chance=mask.chance[:, :1]).of(
        np.array([0])), ones(1), base=base)  # fmt: skip
    assert torch.equal(out != 0, reference.drawn(n, key, np.float32(0.3).item()))
    both = joined(rows, mask, ones(2), base=base)
    assert torch.equal(both, out + 1)


def test_splitmix_gives_the_published_numbers():
    """The first draws of seed 0, as every implementation of SplitMix64 gives them."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    for k, number in enumerate(published):
        exact = (number >> 40) / 2**24
        assert not reference.drawn(3, 0, exact)[k]
        assert reference.drawn(3, 0, exact + 2**-24)[k]


def test_draws_keep_their_share():
    n = 200_000
    mask = no_mask(1, 1)
    mask.key[0], mask.chance[0] = 12345, 0.37
    sums = kept_sums([torch.ones(n)], mask)
    deviation = (n * 0.37 * 0.63) ** 0.5
    assert sums[0, 0] == n
    assert abs(sums[0, 3] - 0.37 * n) < 5 * deviation


@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
def test_kept_sums(dtype):
    rows, base = make(3, 33_000, dtype)
    mask = trimmed(rows, base, 7000, drop=100)
    d = differences(rows, base).double()
    kept = torch.where(kept_by(mask, differences(rows, base)), d, 0.0)
    truth = torch.stack(
        [d.abs().sum(1), kept.abs().sum(1), kept.square().sum(1), kept.ne(0).double().sum(1)], 1
    )
    found = torch.from_numpy(kept_sums(rows, mask, base=base))
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [F32, F16, BF16, F64], ids=str)
@pytest.mark.parametrize("n", [40, 1024, 40_000 + 7])
def test_sizes_of_what_one_chance_keeps_have_the_bits_of_the_general_way(dtype, n):
    rows, base = make(2, n, dtype)
    mask = no_mask(1, 2)._replace(chance=np.array([[0.3, 1.0]], np.float32))
    given = pointers_to(rows), pointers_to([base]), np.array([[0, n]]), np.array([5]), mask
    sizes, all_of_them = np.full((2, 1, 2, 4), np.nan)
    sizes[..., :2] = all_of_them[...] = 0
    cpu.kept_sums(*given, sizes, wanted=cpu.SIZES, threads=1)
    cpu.kept_sums(*given, all_of_them, threads=1)
    assert sizes[..., :2].tobytes() == all_of_them[..., :2].tobytes()
    assert np.isnan(sizes[..., 2:]).all()  # not asked for
    assert 0 < sizes[0, 0, 1] < sizes[0, 0, 0]
    assert sizes[0, 1, 1] == sizes[0, 1, 0]


@pytest.mark.parametrize("operation", ["counts", "sums", "joined"])
def test_bits_depend_neither_on_threads_nor_on_the_cut(operation):
    n = 5 * 16384 + 77
    rows, base = make(3, n, BF16)
    mask = trimmed(rows, base, n // 5)._replace(chance=np.full((1, 3), 0.7, np.float32))
    pointers, origin = pointers_to(rows), pointers_to([base])
    joint = ones(3, elect="sum", divide=True)
    found = []
    for threads, cuts in ((1, [n]), (2, [n]), (2, [16384, 4 * 16384, n]), (3, [3 * 16384, n])):
        out = poisoned(n, BF16)
        start, sums, counts = 0, np.zeros((1, 3, 4)), np.zeros((1, 3, 2048), np.int64)
        for stop in cuts:
            segment, first = np.array([[start, stop]]), np.array([start])
            if operation == "counts":
                cpu.digit_counts(
                    pointers, origin, segment, np.zeros((1, 3), np.int64), 20, 11, counts,
                    threads=threads,
                )  # fmt: skip
            elif operation == "sums":
                cpu.kept_sums(pointers, origin, segment, first, mask, sums, threads=threads)
            else:
                cpu.joined(
                    pointers, origin, segment, first, mask, joint, pointers_to([out]),
                    threads=threads,
                )  # fmt: skip
            start = stop
        found.append({"counts": counts, "sums": sums, "joined": out.view(torch.int16).numpy()}[
            operation].tobytes())  # fmt: skip
    assert len(set(found)) == 1


def test_nan_and_infinity_come_through():
    rows = [torch.tensor([torch.nan, 1.0, torch.inf, 1.0]), torch.ones(4)]
    out = joined(rows, no_mask(1, 2), ones(2, elect="sum", divide=True), base=torch.zeros(4))
    assert out.isnan()[0] and out.isinf()[2] and out[1] == 1
    assert trimmed(rows[:1], torch.zeros(4), 2).keep_before[0, 0] == ALL


def test_counts_of_agreement():
    rows = [torch.tensor([1.0, 1, 0, 0, 5]), torch.tensor([0.0, 2, 3, 0, 5])]
    base, counts = torch.zeros(5), np.zeros((1, 2, 2), np.int64)
    cpu.agreements(
        pointers_to(rows), pointers_to([base]), np.array([[0, 5]]), np.zeros(1, int),
        no_mask(1, 2), counts, threads=1,
    )  # fmt: skip
    assert counts.tolist() == [[[2, 1], [2, 1]]]


def test_a_row_alone_has_a_factor_of_its_own():
    rows = [torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 3.0, 2.0])]
    joint = ones(2, lone=np.array([[10.0, 100.0]]), divide=True)
    assert joined(rows, no_mask(1, 2), joint, base=torch.zeros(3)).tolist() == [10, 2, 200]


@pytest.mark.parametrize("shape", [(1, 7, 1), (3, 5, 1), (2, 4, 3), (4, 1, 2), (1, 70_000, 1)])
def test_chances_by_rank(shape):
    n = shape[0] * shape[1] * shape[2]
    (row,), base = make(1, n, BF16)
    out = np.full(n, np.nan, np.float32)
    cpu.rank_chances(
        pointers_to([row]),
        pointers_to([base]),
        n,
        shape,
        0.6,
        0.2,
        out,
        threads=2,
    )
    d = differences([row], base)[0].abs().reshape(shape)
    rank = d.argsort(dim=1, stable=True).argsort(dim=1).double()
    scaled = rank / (shape[1] - 1) if shape[1] > 1 else rank + 0.5
    np.testing.assert_allclose(out, (0.4 + 0.4 * scaled).flatten().numpy(), rtol=1e-6)


def magnitudes_of(kind, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    if kind == "few values":
        return (x * 3).round() / 8
    if kind == "few values, and others":  # as where 16-bit numbers of two sizes are subtracted
        return torch.where(x.abs() > 2.5, x, (x * 3).round() / 8)
    if kind == "sparse":
        return torch.where(x > 1.9, x * 1e-5, torch.zeros(()))
    if kind == "far apart":
        return x**15 * 1e-12
    return torch.where(x > 2, torch.inf, x)


@pytest.mark.parametrize(
    "shape", [(40, 333, 1), (3, 128, 9), (1, 65_535, 1), (1, 65_536, 1)], ids=str
)
@pytest.mark.parametrize(
    "kind", ["few values", "few values, and others", "sparse", "far apart", "all, and infinities"]
)
def test_ranks_of_lines_of_any_kind_are_those_of_a_stable_sort(kind, shape):
    d = magnitudes_of(kind, shape)
    out = np.full(d.numel(), np.nan, np.float32)
    row = pointers_to([d.flatten()])
    cpu.rank_chances(row, pointers_to([]), d.numel(), shape, 0.5, 0.5, out, threads=2)
    rank = d.abs().argsort(dim=1, stable=True).argsort(dim=1).double()
    expected = (rank / (shape[1] - 1)).flatten().numpy()
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(40, 333, 1), (3, 128, 9), (1, 70_000, 1), (5, 1, 3)], ids=str)
@pytest.mark.parametrize("kind", ["few values", "few values, and others", "sparse", "far apart"])
@pytest.mark.parametrize("epsilon", [0.0, 0.2, 0.4])
def test_what_is_drawn_by_rank_is_what_its_chances_draw(kind, shape, epsilon):
    d = magnitudes_of(kind, shape).flatten()
    d[d == 0] = 1e-30  # so that what is kept can be told
    n, first, key = d.numel(), 12_345, np.uint64(0xFEED_BEEF_DEAD_0001)
    row, nothing = pointers_to([d]), pointers_to([])
    chances, kept = np.full(n, np.nan, np.float32), np.full(n, 99, np.uint8)
    cpu.rank_chances(row, nothing, n, shape, 0.5, epsilon, chances, threads=2)
    cpu.drawn_by_rank(row, nothing, n, shape, 0.5, epsilon, key, first, kept, threads=2)
    mask, segments = no_mask(1, 1), np.array([[0, n]])
    mask.key[:] = key
    out = torch.full((2, n), torch.nan)
    for target, code, table in ((out[0], CODES["float32"], chances), (out[1], cpu.KEPT, kept)):
        own = cpu.Pointers(np.array([table.ctypes.data]), np.array([code]))
        there = pointers_to([target])
        cpu.joined(
            row, nothing, segments, np.array([first]), mask, ones(1), there, chances=own, threads=2
        )
    assert torch.equal(out[0], out[1])
    assert set(kept.tolist()) <= {0, 1}
    np.testing.assert_array_equal(kept == 1, out[0].numpy() != 0)
    assert 0.3 < kept.mean() < 0.7 or n < 100


def test_variances_and_importances():
    rows, base = make(4, 1200, F32)
    out = np.full(1200, np.nan, np.float32)
    cpu.variances(pointers_to(rows), pointers_to([base]), 1200, out, threads=2)
    truth = differences(rows, base).double().var(0, unbiased=False)
    np.testing.assert_allclose(out, truth.numpy(), rtol=1e-6)
    cpu.importances(pointers_to(rows[:1]), pointers_to([base]), 40, 1200, out, threads=2)
    p, q = (t.double().view(30, 40).softmax(-1) + 1e-8 for t in (rows[0], base))
    divergence = (p * (p / q).log()).sum(-1, keepdim=True)
    truth = (rows[0].double() - base.double()).abs().view(30, 40) * divergence
    np.testing.assert_allclose(out, truth.flatten().numpy(), rtol=1e-5)


@kernel
def exponentials_of(x, exponentials, less_1):
    for k in range(x.size):
        exponentials[k] = exp(x[k])
        less_1[k] = exp_less_1(x[k] / np.float32(80))  # of up to 1/2


def test_exponentials_are_within_a_unit_in_the_last_place():
    x = np.linspace(-40, 40, 200_001, dtype=np.float32)
    found = np.full((2, x.size), np.nan, np.float32)
    exponentials_of(x, found[0], found[1])
    truth = np.exp(x.astype(np.float64)), np.expm1((x / np.float32(80)).astype(np.float64))
    for y, exact in zip(found, truth, strict=True):
        ulps = np.abs(y - exact) / np.spacing(np.abs(exact).astype(np.float32))
        assert ulps.max() <= 1


def importances_of(x, base):
    out = np.full(x.numel(), np.nan, np.float32)
    length = x.shape[1]
    cpu.importances(pointers_to([x]), pointers_to([base]), length, x.numel(), out, threads=2)
    return out.reshape(tuple(x.shape))


@pytest.mark.parametrize("dtype", [BF16, F32, F64], ids=str)
@pytest.mark.parametrize("length", [1, 40, 1536])
@pytest.mark.parametrize(("scale", "step"), [(0.02, 1e-4), (1, 0.01), (3, 0.1), (1, 2)])
def test_importances_of_models_near_and_far(dtype, length, scale, step):
    """What float32 loses of them is less than a millionth, however near the models are."""
    generator = torch.Generator().manual_seed(length)
    base = torch.randn(20, length, generator=generator, dtype=torch.float64) * scale
    x = (base + step * torch.randn(20, length, generator=generator)).to(dtype)
    base = base.to(dtype)
    truth = reference.importances(x, base)[0].numpy()
    # what float64 makes of a divergence of 0, as in lines of one element
    np.testing.assert_allclose(importances_of(x, base), truth, rtol=1e-6, atol=1e-15 * step)


def test_importances_where_numbers_are_large_or_none():
    x, base = torch.zeros(5, 70), torch.zeros(5, 70)
    x[0, 3] = 300.0  # of p and q, one number each
    base[0, 2] = 300.0
    base[1], x[1] = 1e3, 1e3 + 1 / 4  # one constant from each other
    x[2, 1] = torch.nan
    base[3, 1] = torch.inf
    found = importances_of(x, base)
    divergence = float(np.log((1 + 1e-8) / 1e-8) * (1 + 1e-8) + 1e-8 * np.log(1e-8 / (1 + 1e-8)))
    np.testing.assert_allclose(found[0, 2:4], 300 * divergence, rtol=1e-6)
    assert (np.abs(found[1]) < 1e-12).all()
    assert np.isnan(found[2:4, 1]).all()
    assert (found[4] == 0).all()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 40_000])
def test_quantiles_of_scores_are_found_by_a_sieve(n):
    x = torch.rand(n, generator=torch.Generator().manual_seed(1)).round(decimals=2)
    places = [n - int(share * (n - 1)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    sieve = cpu.sieved(
        pointers_to([x] * 5), pointers_to([]), np.array([[0, n]]), np.array([places]),
        quantiles=True, threads=2,
    )  # fmt: skip
    assert not sieve.open.any()
    values = sieve.bits.astype(np.int32).view(np.float32)[0]
    assert values.tolist() == [x.sort().values[n - place] for place in places]


def test_pulled():
    row, base = torch.tensor([1.0, 1.5, 0.0, -3.0]), torch.tensor([1.0, 1.0, 1.0, 1.0])
    out = poisoned(4, F32)
    cpu.pulled(
        pointers_to([row]), pointers_to([base]), np.array([[0, 2], [2, 4]]),
        np.array([1.0, 0.5]), pointers_to([out]), threads=1,
    )  # fmt: skip
    assert out.tolist() == [1.0, 1.5, 0.5, 0.5]


def test_wrong_rows_are_refused():
    with pytest.raises(ValueError, match=r"base: expected shape \[3\]"):
        largest([torch.ones(3)], 1, base=torch.ones(4))
    with pytest.raises(TypeError, match=r"out\[0\]"):
        elementwise.joined(
            [torch.ones(3)], no_mask(1, 1), ones(1), out=torch.ones(3, dtype=torch.int32)
        )


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("misled", [False, True], ids=["told", "misled"])
def test_a_sample_decides_nothing_but_the_time(dtype, misled):
    n, count = 200 * cpu.BLOCK + 77, 1_000_000
    rows, base = make(2, n, dtype)
    if misled:  # where it looks, all is as in the base
        sizes = np.array([n])
        for _, start in cpu.Sieve(np.array([[count] * 2]), sizes).samples():
            for row in rows:
                row[start : start + cpu.BLOCK] = base[start : start + cpu.BLOCK]
    pointers, origin = pointers_to(rows), pointers_to([base])
    counts = np.full((1, 2), count)
    sieve = cpu.sieved(pointers, origin, np.array([[0, n]]), counts, threads=2)
    assert sieve.open.all() == misled
    kept = kept_by(trimmed(rows, base, count), differences(rows, base))
    for i, d in enumerate(differences(rows, base)):
        assert torch.equal(kept[i], reference.largest(d, count))
