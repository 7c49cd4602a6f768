"""What launchers promise the compiler: a false promise of alignment would fault on a GPU."""

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

from wkernels import moments
from wkernels.gpu import addresses, products, statistics, weighted_sum
from wkernels.gpu.products import launcher as product_launcher
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
    ("rows", "outs", "base", "alignment", "table"),
    [
        (rows_at(0), None, None, 16, False),
        (rows_at(8), None, rows_at(8)[0], 16, False),
        (rows_at(1), None, None, 2, False),
        (rows_at(0, stride=60), None, None, 8, False),
        (rows_at(0), rows_at(4, n_rows=1), None, 8, False),
        (rows_at(0), None, rows_at(2)[0], 4, False),
        ([*rows_at(0), *rows_at(0, stride=72)], None, None, 16, True),
        ([*rows_at(0), *rows_at(0, stride=72), rows_at(3)[0]], None, None, 2, True),
    ],
    ids=["all", "within an arena", "rows", "spacing", "out", "base", "table", "one of a table"],
)
def test_rows_are_called_aligned_as_the_least_of_them(mixed, rows, outs, base, alignment, table):
    mix(rows, outs, base)
    assert (mixed[0]["ALIGNED"], mixed[0]["TABLE"]) == (alignment, table)


def test_a_tensor_that_is_not_aligned_narrows_no_other(mixed):
    for offset in (0, 1):
        models = [[torch.zeros(50), torch.zeros(9)[offset : offset + 8]] for _ in range(2)]
        outs = [[torch.zeros(50), torch.zeros(8)]]
        weighted_sum.launch_tensors(models, torch.ones(1, 2), outs, None)
    assert [constants["ALIGNED"] for constants in mixed] == [16, 16, 4]


def test_a_launch_for_each_signature_and_none_for_nothing(mixed):
    types = [torch.bfloat16, torch.float32, torch.bfloat16, torch.float16]
    tensors = [torch.zeros(n, dtype=dtype) for n, dtype in zip((5, 6, 7, 0), types, strict=True)]
    weighted_sum.launch_tensors([tensors] * 2, torch.ones(1, 2), [tensors], None)
    assert len(mixed) == 2


@pytest.mark.parametrize(("start", "alignment"), [(0, 16), (8, 16), (4, 8), (1, 2)])
def test_segments_count_too(monkeypatch, start, alignment):
    kernels = {
        "pairs": (product_launcher, "pair_tiles"),
        "tiles": (product_launcher, "dot_tiles"),
        "statistics": (statistics, "sum_blocks"),
    }
    recorders = {}
    for name, (module, kernel) in kernels.items():
        recorders[name] = Recorder(getattr(module, kernel))
        monkeypatch.setattr(module, kernel, recorders[name])
    segments = np.array([[0, 8], [start, 40]])
    for op, n_rows in (("l2", 2), ("dot", 9)):
        out = torch.zeros((2, n_rows, n_rows), dtype=torch.float64)
        products.launch(op, rows_at(0, n_rows), None, None, segments, out)
    sums = torch.zeros((2, 2, moments.N), dtype=torch.float64)
    statistics.launch(rows_at(0, 2), None, segments, sums)
    for recorder in recorders.values():
        assert [constants["ALIGNED"] for constants in recorder.constants] == [alignment]


def test_spacing():
    rows = rows_at(0, n_rows=4)
    assert addresses.spacing(rows) == 128
    assert addresses.spacing(rows[::-1]) == -128
    assert addresses.spacing(rows[:1]) == 0
    assert addresses.spacing([rows[0], rows[0]]) == 0
    assert addresses.spacing([rows[0], rows[1], rows[3]]) is None


FAR = 2**31 + 5000
"""Elements; of which only the last are ever touched, so the rest takes no memory."""


@pytest.fixture(scope="module")
def far_rows():
    rows = [torch.empty(FAR, dtype=torch.bfloat16) for _ in range(3)]
    for seed, row in enumerate(rows):
        generator = torch.Generator().manual_seed(seed)
        row[-6000:] = torch.randn(6000, generator=generator).to(torch.bfloat16)
    return rows


def test_sums_of_elements_past_2_to_the_31(far_rows):
    start = FAR - 3000
    ends, segments = [row[start:] for row in far_rows], np.array([[start, FAR]])
    near = np.array([[0, 3000]])
    for op, n_rows in (("dot", 3), ("l2", 2)):
        for fast in (False, True):
            far, close = torch.zeros((2, 1, n_rows, n_rows), dtype=torch.float64)
            products.launch(op, far_rows[:n_rows], None, None, segments, far, fast=fast)
            products.launch(op, ends[:n_rows], None, None, near, close, fast=fast)
            assert torch.equal(far, close)
    far, close = torch.zeros((2, 1, 3, moments.N), dtype=torch.float64)
    statistics.launch(far_rows, far_rows[1], segments, far)
    statistics.launch(ends, ends[1], near, close)
    assert torch.equal(far, close)


@pytest.mark.parametrize("tabled", [False, True], ids=["arena", "state dicts"])
def test_mixes_of_elements_past_2_to_the_31(monkeypatch, far_rows, tabled):
    """Only the last programs of the launch run: the interpreter would need days for all."""
    weights = torch.tensor([[0.5, 0.25]])
    out = torch.empty(FAR, dtype=torch.bfloat16)
    builder, kernel = interpreter.interpreter_builder, launcher.mix_rows
    place, extend = builder.set_grid_idx, builder.set_grid_dim

    class LastPrograms:
        def __getitem__(self, grid):
            count = min(grid[0], 20)
            first = grid[0] - count
            monkeypatch.setattr(builder, "set_grid_idx", lambda x, y, z: place(x + first, y, z))
            monkeypatch.setattr(builder, "set_grid_dim", lambda x, y, z: extend(x + first, y, z))
            return kernel[(count,)]

    monkeypatch.setattr(launcher, "mix_rows", LastPrograms())
    if tabled:
        weighted_sum.launch_tensors([[far_rows[0]], [far_rows[1]]], weights, [[out]], None)
    else:
        weighted_sum.launch(far_rows[:2], weights, [out], None)
    expected = torch.empty(2000, dtype=torch.bfloat16)
    monkeypatch.undo()
    weighted_sum.launch([row[-2000:] for row in far_rows[:2]], weights, [expected], None)
    assert torch.equal(out[-2000:], expected)
