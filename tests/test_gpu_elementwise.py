"""Elementwise merges on the GPU path, interpreted: the bits are those of the CPU path."""

import numpy as np
import pytest
import torch

from wkernels import arguments, elementwise
from wkernels.gpu import selection
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
