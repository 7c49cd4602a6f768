"""Kernels on many tensors of one chunk, interpreted: the bits are those of the CPU path."""

import numpy as np
import pytest
import torch

from wkernels import cpu, dtypes
from wkernels.arguments import pointers_to
from wkernels.gpu import consensus, kept, means, scores, selection
from wkernels.masks import Joint, Mask, no_mask
from wkernels.selection import Selection

F64, F32, F16, BF16, E5M2 = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2,
)  # fmt: skip
TYPES = [F32, BF16, F64]
SEGMENTS = np.array([[0, 1100], [1100, 1101], [1101, 1101], [1101, 1400], [1500, 1517]])
"""Of a chunk of 1517 elements: odd lengths, an empty one, and elements of no segment."""
FIRSTS = np.array([0, 7, 0, 16384, 0])
N = 1517
NONE = pointers_to([])


def make(n_rows, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(N, generator=generator, dtype=F64)
    steps = torch.randn((n_rows, N), generator=generator, dtype=F64)
    return [(base + 0.1 * step).to(dtype) for step in steps], base.to(dtype)


def selected(rows, base, share):
    """Each segment's thresholds, on both paths."""
    name = dtypes.compute_type(*(str(t.dtype).removeprefix("torch.") for t in [*rows, base]))
    sizes = SEGMENTS[:, 1] - SEGMENTS[:, 0]
    counts = np.stack([(share * sizes + i).astype(np.int64) for i in range(len(rows))], axis=1)
    found = Selection(counts, sizes, wide=name == "float64")
    for shift, width in found.digits():
        shape = (*counts.shape, 1 << width)
        there, here = torch.zeros(shape, dtype=torch.int64), np.zeros(shape, np.int64)
        selection.digit_counts(rows, base, SEGMENTS, found.prefix, shift, width, there)
        cpu.digit_counts(
            pointers_to(rows), pointers_to([base]), SEGMENTS, found.prefix, shift, width, here,
            threads=2,
        )  # fmt: skip
        assert np.array_equal(there.numpy(), here)
        found.narrow(here, width)
    bits, before = found.settle()
    left = [found.left.copy() for _ in range(2)]
    there = selection.nth_equal(rows, base, SEGMENTS, bits, left[0])
    here = cpu.nth_equal(pointers_to(rows), pointers_to([base]), SEGMENTS, bits, left[1], threads=2)
    assert np.array_equal(there, here)
    assert np.array_equal(left[0], left[1])
    assert (there >= 0).any() == (rows[0].element_size() < 4)  # where magnitudes are equal
    return bits, np.where(here >= 0, here + FIRSTS[:, None], before)


def mask_of(rows, base, *, drawn=False):
    keep, keep_before = selected(rows, base, 0.4)
    mask = no_mask(len(SEGMENTS), len(rows))._replace(keep=keep, keep_before=keep_before)
    if drawn:
        mask.key[:] = np.arange(mask.key.size, dtype=np.uint64).reshape(mask.key.shape) << 40
        mask.chance[:, 1:] = 0.7
    return mask


@pytest.mark.parametrize("dtype", [*TYPES, F16, E5M2], ids=str)
def test_thresholds_of_every_segment(dtype):
    rows, base = make(2, dtype)
    selected(rows, base, 0.5)


def test_places_that_are_not_in_a_segment():
    rows = [torch.tensor([1.0, -1, 2, 1, 1, 2, 1])]
    segments, bits = np.array([[0, 3], [3, 6], [6, 7]]), np.full((3, 1), 0x3F800000)
    left = np.array([[3], [2], [0]])
    assert selection.nth_equal(rows, None, segments, bits, left).tolist() == [[-1], [2], [-1]]
    assert left.tolist() == [[1], [0], [0]]


@pytest.mark.parametrize("drawn", [False, True], ids=["trimmed", "drawn"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_sums_and_agreements_of_what_is_kept(dtype, drawn):
    rows, base = make(3, dtype)
    mask = mask_of(rows, base, drawn=drawn)
    shape = (len(SEGMENTS), 3)
    here, there = np.full((2, *shape, kept.N_SUMS), 0.25)
    kept.kept_sums(rows, base, SEGMENTS, FIRSTS, mask, there)
    arguments = pointers_to(rows), pointers_to([base]), SEGMENTS, FIRSTS, mask
    cpu.kept_sums(*arguments, here, threads=2)
    assert np.array_equal(here, there)
    assert (there[:, :, 3] > 0.25).sum() >= 9
    here, there = np.full((2, *shape, 2), 5)
    kept.agreements(rows, base, SEGMENTS, FIRSTS, mask, there)
    cpu.agreements(*arguments, here, threads=2)
    assert np.array_equal(here, there)
    assert (there[0] > 5).all()


@pytest.mark.parametrize("elect", ["none", "sum", "signs"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_joined(dtype, elect):
    rows, base = make(3, dtype)
    rows[0][2], rows[2][1300] = torch.inf, torch.nan
    mask = mask_of(rows, base, drawn=True)
    generator = np.random.default_rng(0)
    tables = generator.normal(size=(4, len(SEGMENTS), 3))
    lone = tables[3] if elect == "sum" else None
    joint = Joint(
        tables[0], tables[1], tables[2], generator.normal(size=len(SEGMENTS)), lone, elect=elect,
        divide=elect != "none", least=0.2, undecided=-1.0,
    )  # fmt: skip
    here, there = torch.full((2, N), 7.0, dtype=dtype)
    balance = np.zeros((2, 5))
    n_here = cpu.joined(
        pointers_to(rows), pointers_to([base]), SEGMENTS, FIRSTS, mask, joint, pointers_to([here]),
        balance=balance[0], threads=2,
    )  # fmt: skip
    arguments = SEGMENTS, FIRSTS, mask, joint
    n_there = consensus.joined(rows, base, *arguments, there)
    assert torch.equal(torch.nan_to_num(here), torch.nan_to_num(there))
    assert torch.equal(here.isnan(), there.isnan())
    assert (there[1400:1500] == 7).all()
    assert n_here == n_there > 1
    assert consensus.joined(rows, base, *arguments, None, balance=balance[1]) == 2
    assert np.array_equal(balance[0], balance[1])
    assert balance.any() == (elect != "none")


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_what_a_score_ranks(dtype):
    rows, base = make(3, dtype)
    here, there = torch.full((2, N), torch.nan)
    cpu.variances(pointers_to(rows), pointers_to([base]), N, here.numpy(), threads=2)
    scores.variances(rows, base, there)
    assert torch.equal(here, there)
    bits = np.full((len(SEGMENTS), 3), 0.008, np.float64 if dtype == F64 else np.float32)
    bits = bits.view(np.int64 if dtype == F64 else np.int32).astype(np.int64)
    mask = no_mask(len(SEGMENTS), 3)._replace(keep=bits)
    table = np.ones((len(SEGMENTS), 3))
    joint = Joint(table, table, table, np.ones(len(SEGMENTS)), elect="sum")
    outs = torch.zeros((2, N), dtype=dtype)
    arguments = SEGMENTS, FIRSTS, mask, joint
    cpu.joined(
        pointers_to(rows), pointers_to([base]), *arguments, pointers_to([outs[0]]),
        scores=pointers_to([here]), threads=2,
    )  # fmt: skip
    consensus.joined(rows, base, *arguments, outs[1], scores=there)
    assert torch.equal(*outs)
    sums = np.zeros((2, len(SEGMENTS), 3, kept.N_SUMS))
    cpu.kept_sums(
        pointers_to(rows), pointers_to([base]), SEGMENTS, FIRSTS, mask, sums[0],
        scores=pointers_to([here]), threads=2,
    )  # fmt: skip
    kept.kept_sums(rows, base, SEGMENTS, FIRSTS, mask, sums[1], scores=there)
    assert np.array_equal(sums[0], sums[1])
    share = sums[0, 0, 0, 3] / 1100
    assert 0.1 < share < 0.9


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_pulled(dtype):
    (row,), base = make(1, dtype)
    row[5] = base[5]
    reach = np.array([0.05, 1.0, 1.0, 10.0, 0.0])
    outs = torch.full((2, N), 7.0, dtype=dtype)
    bad = [
        cpu.pulled(
            pointers_to([row]), pointers_to([base]), SEGMENTS, reach, pointers_to([outs[0]]),
            threads=2,
        ),
        scores.pulled(row, base, SEGMENTS, reach, outs[1]),
    ]  # fmt: skip
    assert torch.equal(*outs)
    assert bad == [0, 0]
    assert torch.equal(outs[1, 1101:1400], row[1101:1400])
    assert torch.equal(outs[1, 1500:], base[1500:])


@pytest.mark.parametrize(("dtype", "precision"), [(F32, F32), (BF16, F32), (F64, BF16)], ids=str)
def test_precision_mean(dtype, precision):
    rows, _ = make(3, dtype)
    precisions = [row.abs().to(precision) for row in make(3, F32, seed=2)[0]]
    for row in precisions:
        row[10:20] = 0
    precisions[1][1300:1302] = -1
    weights = np.array([[0.2, 0.3, 0.5]] * 5) * np.arange(1, 6)[:, None]
    floors = np.array([0.0, 0.1, 0.2, 0.3, 0.0])
    outs, wrong = torch.full((2, N), 7.0, dtype=dtype), np.zeros((2, 5, 3), np.int64)
    bad = [
        cpu.precision_mean(
            pointers_to(rows), pointers_to(precisions), SEGMENTS, weights, floors,
            pointers_to([outs[0]]), wrong[0], threads=2,
        ),
        means.precision_mean(rows, precisions, SEGMENTS, weights, floors, outs[1], wrong[1]),
    ]  # fmt: skip
    assert torch.equal(*outs)
    assert bad == [0, 0]
    assert np.array_equal(wrong[0], wrong[1])
    assert wrong[1, 3].tolist() == [0, 2, 0]


def test_without_elements():
    nothing = np.zeros((1, 2), np.int64)
    rows, firsts = [torch.empty(0)], np.zeros(1, np.int64)
    mask: Mask = no_mask(1, 1)
    joint = Joint(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)), np.ones(1))
    assert consensus.joined(rows, None, nothing, firsts, mask, joint, torch.empty(0)) == 0
    assert selection.nth_equal(rows, None, nothing, nothing[:, :1], nothing[:, :1]) == -1
    sums = np.ones((1, 1, kept.N_SUMS))
    kept.kept_sums(rows, None, nothing, firsts, mask, sums)
    assert (sums == 1).all()
