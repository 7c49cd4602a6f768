"""The demo: its rows may be passed on, its settings stand, and it runs from end to end."""

import argparse
import json

import pytest
import torch
from safetensors.torch import load_file

from wspace.cli import steps
from wspace.cli.main import main
from wspace.lab.data import BUNDLE, SPLITS, load_tasks
from wspace.lab.demo import merge_families, run_demo
from wspace.lab.report.headlines import headlines
from wspace.lab.settings import load_settings
from wspace.lab.stages import STAGES, run_experiment

FOLDERS = sorted(path.name for path in BUNDLE.iterdir() if path.is_dir())
# a few steps, rows and points of each kind
FEW = (
    "tasks=[banking, travel, web]", "base_tuned_on=[]", "finetune.seeds=2", "finetune.steps=2",
    "finetune.batch=8", "finetune.validation_rows=20", "finetune.test_rows=20",
    "probe.train_rows=20", "probe.test_rows=20", "experiments.levels.general_tasks=[web]",
    "experiments.levels.family_without=[]", "experiments.lines.alphas=3",
    "experiments.lines.pairs=1", "experiments.lines.extrapolation_steps=2",
    "experiments.regions.inside=2", "experiments.regions.outside=1", "experiments.edges.seeds=1",
    "experiments.edges.plane=[]", "experiments.edges.radii=[1]", "experiments.edges.plane_grid=2",
    "experiments.efficient.targets=[web]", "experiments.efficient.seeds=1",
    "experiments.efficient.tuned.steps=1", "experiments.efficient.test_rows=20",
    "experiments.efficient.validation_rows=20",
)  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_rows_of_the_bundle_may_be_passed_on(name):
    described = json.loads((BUNDLE / name / "dataset.json").read_text(encoding="utf-8"))
    assert any(word in described["license"] for word in ("CC BY", "OANC"))
    assert not any(word in described["license"] for word in ("NC", "research", "non-commercial")
                   if word != "NC" or "OANC" not in described["license"])  # fmt: skip
    for key in ("source", "source_commit", "citation", "changes"):
        assert described[key]
    notes = (BUNDLE / "LICENSES.md").read_text(encoding="utf-8")
    assert f"`{name}`" in notes
    assert ("CC BY-SA" in described["license"]) <= ("under the same" in notes)


def test_the_bundle_is_small_and_what_it_says():
    assert sum(path.stat().st_size for path in BUNDLE.rglob("*")) < 1.5e6
    tasks = load_tasks(load_settings("demo"))
    assert sorted(tasks) == FOLDERS
    for name, task in tasks.items():
        described = json.loads((BUNDLE / name / "dataset.json").read_text(encoding="utf-8"))
        assert {split: len(getattr(task, split)) for split in SPLITS} == described["rows"]
        rows = [getattr(task, split) for split in SPLITS]
        texts = [set(zip(r.texts, r.pairs or r.texts, strict=True)) for r in rows]
        assert not texts[0] & texts[2] and not texts[1] & texts[2]
        assert set(task.train.labels) == set(range(len(task.labels)))


def test_the_demo_asks_for_every_stage_but_sizes():
    settings = load_settings("demo")
    assert settings.data == "bundle" and settings.base == "minilm"
    stages = ("clusters", "lines", "regions", "edges", "efficient")
    assert all(getattr(settings.experiments, stage) is not None for stage in stages)
    families = {task.family for task in load_tasks(settings).values()}
    assert len(families) == 3


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "out"
    steps = []
    said = run_demo(
        folder, device="cpu", changes=FEW, progress=lambda *step: steps.append(step)
    )  # fmt: skip
    return folder, said, steps


def test_a_small_demo_runs_to_its_report(small):
    folder, said, steps = small
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert {"zoo", "clusters", "lines", "regions", "edges", "efficient"} <= set(results)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure ") == len(list((folder / "figures").glob("*.svg"))) > 10
    assert any("BitFit" in line for line in said)
    assert {what.split()[0] for what, _, _ in steps} >= {"training", "evaluating", "BitFit"}


def test_families_are_merged(small):
    folder, said, _ = small
    merged = folder / "merged" / "intents"
    names = ("banking-0", "banking-1", "travel-0", "travel-1")
    states = [load_file(folder / "models" / name / "model.safetensors") for name in names]
    found = load_file(merged / "model.safetensors")
    assert str(merged) in said[-1]
    assert "classifier.weight" not in found
    for name, tensor in found.items():
        mean = torch.stack([state[name].double() for state in states]).mean(0)
        torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-6)


def test_a_finished_demo_is_not_run_again(small):
    folder, said, _ = small
    before = {path: path.stat().st_mtime_ns for path in folder.glob("models/*/*")}
    steps, notes = [], []
    results = run_experiment(
        load_settings("demo", FEW), folder, device="cpu", only=STAGES[:-1],
        progress=lambda *step: steps.append(step), note=notes.append,
    )  # fmt: skip
    merged = merge_families(results["zoo"], folder)
    assert [*headlines(results), str(merged[0])] == [*said[:-1], str(folder / "merged" / "intents")]
    assert {path: path.stat().st_mtime_ns for path in folder.glob("models/*/*")} == before
    assert not [step for step in steps if step[0].startswith(("training", "evaluating", "BitFit"))]
    assert "efficient: finished before" in notes


def test_a_folder_of_other_things_is_refused(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["demo", "-o", str(tmp_path)]) == 1
    assert "not empty, and no results of an experiment" in capsys.readouterr().err


def test_in_a_pipe_progress_is_a_line_now_and_then(capsys, monkeypatch):
    clock = iter([0.0, 10.0, 31.0, 31.0, 40.0])
    monkeypatch.setattr(steps.time, "monotonic", lambda: next(clock))
    with steps.steps_bar(argparse.Namespace(quiet=False)) as tell:
        for done in (1, 2, 3):
            tell("training", done, 9)
    assert capsys.readouterr().err == "training: 2 of 9\n"
    with steps.steps_bar(argparse.Namespace(quiet=True)) as tell:
        assert tell is None
