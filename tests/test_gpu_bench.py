"""The GPU benchmark, on tiny tensors in the interpreter: that it runs, checks and reports.

Its clock here counts steps, not time: no figure of these tests means anything.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import gpu, gpu_cases, gpu_checks, gpu_goals, gpu_passes, gpu_report, truth
from bench.gpu_session import TRIAL, Arm, Session, Sizes, StepClock
from bench.limits import Work
from wkernels import arguments


@pytest.fixture
def session(monkeypatch):
    monkeypatch.setattr(arguments, "on_gpu", lambda rows: True)
    monkeypatch.setattr(truth, "PERIOD", 1000)
    monkeypatch.setattr(gpu_passes, "REPEATS", 1)
    return Session(StepClock(), TRIAL, log=lambda text: None)


def test_every_benchmark_runs_and_is_checked(session, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_checks, "checks", lambda device, **sizes: [("nothing", lambda: None)])
    monkeypatch.setattr(gpu_cases, "llama_shapes", lambda scale: [(8, 4), (4,), (4, 4)])
    monkeypatch.setattr(gpu_cases, "GRAM_ROWS", (8, 20))
    monkeypatch.setattr(gpu_cases, "FAST_GRAM_ROWS", (8,))
    saved = []
    data = gpu.run(session, saved.append)
    assert [len(one["benchmarks"]) for one in saved] == [0, 24, 25, 26, 28, 29, 39, 43]
    assert gpu.all_right(data), [result["notes"] for result in data["benchmarks"]]
    names = [result["name"] for result in data["benchmarks"]]
    assert len(names) == len(set(names)) == 24 + 1 + 1 + 2 + 1 + 10 + 4
    for result in data["benchmarks"]:
        assert result["bytes"] > 0
        assert all(result["ratios"]["wkernels"].values())
    gpu_report.write(tmp_path / "gpu", data)
    assert json.loads((tmp_path / "gpu" / "report.json").read_text()) == data
    report = (tmp_path / "gpu" / "report.md").read_text()
    assert all(name in report for name in names)
    verdicts = {verdict.what: verdict for verdict in gpu_goals.verdicts(data)}
    missing = {what for what, verdict in verdicts.items() if verdict.met is None}
    # on a CPU torch.compile is no arm, and 256 rows were left out above
    assert missing == {
        "weighted sum, 8 models, times faster than torch.compile",
        "Gram, resident, n = 256, of the smaller of read and bfloat16 product",
    }


def test_checks_pass(monkeypatch, session):
    """A few of each kind: the interpreter is slow."""
    names = {}
    for name, check in gpu_checks.checks(session.device, past_int32=True, smaller=500):
        kind = name.split(",")[0]
        names.setdefault(kind, []).append((name, check))
    monkeypatch.setattr(
        gpu_checks, "checks", lambda device, **sizes: [
            names["weighted sum"][3], names["statistics"][3], names["elementwise merge"][1],
            names["statistics of choices"][1], names["chances by rank"][0], names["recipe"][0],
        ],
    )  # fmt: skip
    found = {}
    gpu_checks.run_all(session, found)
    assert list(found.values()) == [None] * 6
    assert {
        "products",
        "fast products",
        "state dicts",
        "bits of the CPU path",
        "more than 2**31 elements",
    } <= set(names)


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

    monkeypatch.setattr(gpu_checks, "checks", lambda device, **sizes: [("sum", fail)])
    found = {}
    gpu_checks.run_all(session, found)
    assert found == {"sum": "AssertionError: wrong by 3 units"}
    assert not gpu.all_right(gpu_report.as_data({}, found, {}, [], {}))


def test_ratios_are_formed_within_each_turn(session):
    session.sizes = replace(TRIAL, repeats=2)
    session.limits["copy"] = Work(lambda: None, 200)
    arms = {"wkernels": Arm(lambda: None, lambda found: None)}
    result = session.measure("sum", arms, moved="nothing", n_bytes=100)
    # the warm-up is steps 1 and 2; then limit 3, arm 4; limit 5, arm 6
    assert result.seconds["wkernels"] == (5, 4, 6)
    assert result.ratios["wkernels"]["copy"].low == (100 / 4) / (200 / 3)
    assert result.ratios["wkernels"]["copy"].high == (100 / 6) / (200 / 5)


def test_what_is_late_is_left_out(session, monkeypatch):
    gpu_cases.make_limits(session)
    session.begin(-1)
    gpu_cases.grams(session)
    gpu_passes.passes(session)
    assert all(not result.seconds for result in session.results)
    data = gpu_report.as_data({}, {}, {}, session.results, {})
    assert "left out: the time was used up" in gpu_report.as_markdown(data)


def test_checks_that_are_late_are_left_out(monkeypatch, session):
    monkeypatch.setattr(gpu_checks, "checks", lambda device, **sizes: [("sum", lambda: None)])
    session.begin(-1)
    found = {}
    gpu_checks.run_all(session, found)
    assert found == {"sum": "left out: the time was used up"}


def test_a_part_that_fails_is_reported_and_the_others_go_on(monkeypatch, session):
    def fail(session):
        raise MemoryError("no room")

    monkeypatch.setattr(gpu_checks, "checks", lambda device, **sizes: [])
    monkeypatch.setattr(gpu_cases, "make_limits", lambda session: None)
    monkeypatch.setattr(gpu_cases, "call_overhead", lambda session: {})
    later = []
    monkeypatch.setattr(gpu, "PARTS", (("first", 1, fail), ("second", 1, later.append)))
    data = gpu.run(session, lambda data: None)
    assert later == [session]
    assert data["benchmarks"][0]["notes"] == {"wkernels": "MemoryError: no room"}
    assert not gpu.all_right(data)


def test_parts_can_be_measured_on_their_own(monkeypatch, session):
    def part(name):
        return lambda session: session.results.append(gpu.Result(name, "", 1, 0))

    monkeypatch.setattr(gpu_checks, "checks", lambda device, **sizes: [("nothing", lambda: None)])
    monkeypatch.setattr(gpu_cases, "call_overhead", lambda session: {})
    monkeypatch.setattr(gpu, "PARTS", tuple((name, 1, part(name)) for name in ("a", "b")))
    first = gpu.run(session, lambda data: None, ["checks", "a"])
    assert [result["name"] for result in first["benchmarks"]] == ["a"]
    assert first["checks"] == {"nothing": None}
    session.results.clear()
    second = gpu.run(session, lambda data: None, ["b"])
    assert second["checks"] == {}
    both = gpu_report.joined(first, second)
    assert [result["name"] for result in both["benchmarks"]] == ["a", "b"]
    assert both["checks"] == {"nothing": None}
    assert both["runs"] == [first["about"], second["about"]]
    again = gpu_report.joined(both, second)
    assert [result["name"] for result in again["benchmarks"]] == ["a", "b"]
    assert len(again["runs"]) == 3
    assert "measured in runs of their own" in gpu_report.as_markdown(both)


def test_a_run_that_is_cut_off_keeps_what_it_has(monkeypatch, session):
    def half(session):
        session.results.append(gpu.Result("half", "", 1, 0))
        raise gpu.CutOffError("not done")

    monkeypatch.setattr(gpu_checks, "checks", lambda device, **sizes: [])
    monkeypatch.setattr(gpu_cases, "make_limits", lambda session: None)
    monkeypatch.setattr(gpu_cases, "call_overhead", lambda session: {})
    monkeypatch.setattr(gpu, "PARTS", (("first", 1, half), ("second", 1, pytest.fail)))
    saved = []
    with pytest.raises(gpu.CutOffError):
        gpu.run(session, saved.append)
    assert [result["name"] for result in saved[-1]["benchmarks"]] == ["half"]
    with pytest.raises(gpu.CutOffError):  # no arm's error either
        session.measure("sum", {"wkernels": Arm(lambda: half(session), print)}, moved="",
                        n_bytes=1, limits=())  # fmt: skip


def test_all_parts_fit_into_one_call():
    assert sum(seconds for _, seconds, _ in gpu.PARTS) + gpu.CHECKS_SECONDS < gpu.DEADLINE <= 480


def result(name, ratios, seconds=None):
    def even(value):
        return {"median": value, "low": value, "high": value}

    return {
        "name": name, "seconds": {arm: even(s) for arm, s in (seconds or {"wkernels": 1}).items()},
        "ratios": {"wkernels": {limit: even(value) for limit, value in ratios.items()}},
    }  # fmt: skip


def judged(*results, calls=None):
    data = {"benchmarks": list(results), "microseconds_a_call": calls or {}}
    return {verdict.what: (verdict.found, verdict.met) for verdict in gpu_goals.verdicts(data)}


def test_goals_are_met_by_the_least_of_their_benchmarks():
    what = gpu_goals.GOALS[0].what
    good = result("weighted sum, 2 models, 1 mixes, float32", {"copy": 0.99})
    bad = result("weighted sum, 16 models, 1 mixes, float32", {"copy": 0.90})
    other = result("weighted sum, 16 models, 8 mixes, float32", {"copy": 0.5})
    assert judged(good, other)[what] == (0.99, True)
    assert judged(good, bad)[what] == (0.90, False)
    assert judged()[what] == (None, None)
    assert judged(good, result("weighted sum, 4 models, 1 mixes, float16", {}))[what] == (
        None,
        None,
    )


def test_goals_of_the_smaller_limit_and_of_other_arms():
    found = judged(
        result("fast Gram, 256 rows, bfloat16", {"read": 0.2, "bfloat16 product": 0.6}),
        result("weighted sum, 8 models, 1 mixes, float32", {"copy": 1},
               {"wkernels": 1, "stack and sum": 3.0, "torch.compile": 1.1}),
        calls={name: {"median": 20.0 + k} for k, name in enumerate(gpu_goals.CALLS)},
    )  # fmt: skip
    by_words = {what.split(",")[-1]: value for what, value in found.items()}
    assert found[gpu_goals.GOALS[5].what] == (0.6, True)
    assert by_words[" times faster than stack and sum"] == (3.0, False)
    assert by_words[" times faster than torch.compile"] == (1.1, True)
    assert found[gpu_goals.CALL] == (21.0, True)


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
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu", "--out", str(tmp_path)],
        capture_output=True, text=True, cwd=Path(__file__).parents[1], env=hidden,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: no GPU found: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_folder_names():
    assert gpu_report.folder_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
