"""What launchers promise the compiler: a false promise of alignment would fault on a GPU."""

import numpy as np
import pytest
import torch

from wkernels import moments
from wkernels.gpu import addresses, products, statistics, weighted_sum
from wkernels.gpu.weighted_sum import launcher


class Recorder:
    """Stands for a kernel: starts it, and keeps the compile-time arguments."""

    def __init__(self, kernel):
        self.kernel, self.constants = kernel, []

    def __getitem__(self, grid):
        def start(*arguments, **constants):
            self.constants.append(constants)
            return self.kernel[grid](*arguments, **constants)

        return start


@pytest.fixture
def mixed(monkeypatch):
    recorder = Recorder(launcher.mix_rows)
    monkeypatch.setattr(launcher, "mix_rows", recorder)
    return recorder.constants


def rows_at(offset, n_rows=3, stride=64, n=40):
    """Rows of bfloat16 that start ``offset`` elements after a multiple of 16 bytes."""
    room = torch.zeros(n_rows, stride, dtype=torch.bfloat16)
    assert room.data_ptr() % 16 == 0
    return [row[offset : offset + n] for row in room]


def mix(rows, outs=None, base=None):
    outs = rows_at(0, n_rows=1) if outs is None else outs
    weighted_sum.launch(rows, torch.ones(1, len(rows)), outs, base)


@pytest.mark.parametrize(
    ("rows", "outs", "base", "aligned", "table"),
    [
        (rows_at(0), None, None, True, False),
        (rows_at(8), None, rows_at(8)[0], True, False),
        (rows_at(1), None, None, False, False),
        (rows_at(0, stride=60), None, None, False, False),
        (rows_at(0), rows_at(4, n_rows=1), None, False, False),
        (rows_at(0), None, rows_at(2)[0], False, False),
        ([*rows_at(0), *rows_at(0, stride=72)], None, None, True, True),
        ([*rows_at(0), *rows_at(0, stride=72), rows_at(3)[0]], None, None, False, True),
    ],
    ids=["all", "within an arena", "rows", "spacing", "out", "base", "table", "one of a table"],
)
def test_rows_are_called_aligned_only_if_all_are(mixed, rows, outs, base, aligned, table):
    mix(rows, outs, base)
    assert (mixed[0]["ALIGNED"], mixed[0]["TABLE"]) == (aligned, table)


def test_state_dicts_are_aligned_only_if_every_tensor_is(mixed):
    for offset in (0, 1):
        models = [[torch.zeros(50), torch.zeros(9)[offset : offset + 8]] for _ in range(2)]
        outs = [[torch.zeros(50), torch.zeros(8)]]
        weighted_sum.launch_tensors(models, torch.ones(1, 2), outs, None)
    assert [constants["ALIGNED"] for constants in mixed] == [True, False]


def test_a_launch_for_each_signature_and_none_for_nothing(mixed):
    types = [torch.bfloat16, torch.float32, torch.bfloat16, torch.float16]
    tensors = [torch.zeros(n, dtype=dtype) for n, dtype in zip((5, 6, 7, 0), types, strict=True)]
    weighted_sum.launch_tensors([tensors] * 2, torch.ones(1, 2), [tensors], None)
    assert len(mixed) == 2


@pytest.mark.parametrize(("start", "aligned"), [(0, True), (8, True), (4, False), (1, False)])
def test_segments_too_must_start_at_16_bytes(monkeypatch, start, aligned):
    kernels = {
        "pairs": (products, "pair_tiles"),
        "tiles": (products, "dot_tiles"),
        "statistics": (statistics, "sum_blocks"),
    }
    recorders = {}
    for name, (module, kernel) in kernels.items():
        recorders[name] = Recorder(getattr(module, kernel))
        monkeypatch.setattr(module, kernel, recorders[name])
    segments = np.array([[0, 8], [start, 40]])
    for n_rows in (2, 9):
        out = torch.zeros((2, n_rows, n_rows), dtype=torch.float64)
        products.launch("dot", rows_at(0, n_rows), None, None, segments, out)
    sums = torch.zeros((2, 2, moments.N), dtype=torch.float64)
    statistics.launch(rows_at(0, 2), None, segments, sums)
    for recorder in recorders.values():
        assert [constants["ALIGNED"] for constants in recorder.constants] == [aligned]


def test_spacing():
    rows = rows_at(0, n_rows=4)
    assert addresses.spacing(rows) == 128
    assert addresses.spacing(rows[::-1]) == -128
    assert addresses.spacing(rows[:1]) == 0
    assert addresses.spacing([rows[0], rows[0]]) == 0
    assert addresses.spacing([rows[0], rows[1], rows[3]]) is None
