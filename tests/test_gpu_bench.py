"""The GPU benchmark, on tiny tensors in the interpreter: that it runs, checks and reports.

Its clock here counts steps, not time: no figure of these tests means anything.
"""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

from bench import gpu, gpu_cases, gpu_checks, gpu_report, truth
from bench.gpu_session import Arm, Session, Sizes
from bench.limits import Work
from wkernels import ops

TINY = Sizes(
    row_bytes=2048, gram_bytes=4096, link_bytes=4096, tensor_scale=256, gemm=32, float64_gemm=32,
    calls=1, repeats=1, past_int32=False,
)  # fmt: skip


class StepClock:
    """Says that the first run took one second, the next two, and so on."""

    def __init__(self):
        self.device = torch.device("cpu")
        self.steps = count(1)

    def seconds(self, run):
        run()
        return float(next(self.steps))

    def synchronize(self):
        pass


@pytest.fixture
def session(monkeypatch):
    monkeypatch.setattr(ops, "_on_gpu", lambda rows: True)
    monkeypatch.setattr(truth, "PERIOD", 1000)
    return Session(StepClock(), TINY, log=lambda text: None)


def test_every_benchmark_runs_and_is_checked(session, monkeypatch, tmp_path):
    monkeypatch.setattr(
        gpu_checks, "checks", lambda device, past_int32: [("nothing", lambda: None)]
    )
    monkeypatch.setattr(gpu_cases, "llama_shapes", lambda scale: [(8, 4), (4,), (4, 4)])
    data = gpu.run(session)
    assert gpu.all_right(data), [result["notes"] for result in data["benchmarks"]]
    names = [result["name"] for result in data["benchmarks"]]
    assert len(names) == len(set(names)) == 24 + 1 + 1 + 5
    for result in data["benchmarks"]:
        assert result["bytes"] > 0
        assert set(result["ratios"]["wkernels"]) <= set(data["limits"])
    gpu_report.write(tmp_path / "gpu", data)
    assert json.loads((tmp_path / "gpu" / "report.json").read_text()) == data
    report = (tmp_path / "gpu" / "report.md").read_text()
    assert all(name in report for name in names)


def test_checks_pass(monkeypatch, session):
    """A few of each kind: the interpreter is slow."""
    names = {}
    for name, check in gpu_checks.checks(session.device, past_int32=True):
        kind = name.split(",")[0]
        names.setdefault(kind, []).append((name, check))
    monkeypatch.setattr(
        gpu_checks, "checks", lambda device, past_int32: [
            names["weighted sum"][3], names["statistics"][3], names["state dicts"][0],
        ],
    )  # fmt: skip
    found = gpu_checks.run_all(session.device, session.log, past_int32=False)
    assert list(found.values()) == [None] * 3
    assert {"products", "bits of the CPU path", "more than 2**31 elements"} <= set(names)


def test_a_wrong_result_has_no_timing(session):
    session.limits["copy"] = Work(lambda: None, 100)

    def refuse(found):
        assert found == 2, "error 1.0"

    arms = {"wkernels": Arm(lambda: 1, refuse), "by hand": Arm(lambda: 2, refuse)}
    result = session.measure("sum", arms, moved="nothing", n_bytes=100)
    assert set(result.seconds) == {"by hand"}
    assert "error 1.0" in result.notes["wkernels"]
    data = gpu_report.as_data({}, {"kernel": None}, {}, session.results, {})
    assert not gpu.all_right(data)
    assert "not counted: AssertionError: error 1.0" in gpu_report.as_markdown(data)


def test_a_failed_check_is_reported(monkeypatch, session):
    def fail():
        raise AssertionError("wrong by 3 units")

    monkeypatch.setattr(gpu_checks, "checks", lambda device, past_int32: [("sum", fail)])
    found = gpu_checks.run_all(session.device, session.log, past_int32=False)
    assert found == {"sum": "AssertionError: wrong by 3 units"}
    assert not gpu.all_right(gpu_report.as_data({}, found, {}, [], {}))


def test_ratios_are_formed_within_each_turn(session):
    session.sizes = replace(TINY, repeats=2)
    session.limits["copy"] = Work(lambda: None, 200)
    arms = {"wkernels": Arm(lambda: None, lambda found: None)}
    result = session.measure("sum", arms, moved="nothing", n_bytes=100)
    # the warm-up is steps 1 and 2; then limit 3, arm 4; limit 5, arm 6
    assert result.seconds["wkernels"] == (5, 4, 6)
    assert result.ratios["wkernels"]["copy"].low == (100 / 4) / (200 / 3)
    assert result.ratios["wkernels"]["copy"].high == (100 / 6) / (200 / 5)


def test_what_is_late_is_left_out(session, monkeypatch):
    monkeypatch.setattr(session, "late", lambda: True)
    gpu_cases.make_limits(session)
    gpu_cases.grams(session)
    assert all(not result.seconds for result in session.results)
    data = gpu_report.as_data({}, {}, {}, session.results, {})
    assert "left out: the time was used up" in gpu_report.as_markdown(data)


@pytest.mark.parametrize("gib", [4, 24, 80, 141])
def test_sizes_fit_the_device(gib):
    sizes = Sizes.of(gib * 2**30, quick=False)
    assert 48 * sizes.row_bytes <= 0.86 * gib * 2**30
    assert sizes.row_bytes == 2**30 or gib < 80


def test_llama_has_its_tensors():
    shapes = gpu_cases.llama_shapes(1)
    assert len(shapes) == 291
    assert 0.4e9 < sum(torch.Size(shape).numel() for shape in shapes) < 0.5e9


def test_without_a_gpu_nothing_is_written(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--out", str(tmp_path)],
        capture_output=True, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: no GPU found: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_folder_names():
    assert gpu_report.folder_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
