"""The whole of an experiment on a BERT of a few thousand weights: run, stopped, gone on with."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.lab_base import save_base, save_data
from wspace.cli.main import main
from wspace.errors import WspaceError
from wspace.lab import finetune, training
from wspace.lab.data import load_tasks
from wspace.lab.encoders import open_encoder
from wspace.lab.settings import load_settings
from wspace.lab.stages import STAGES, run_experiment

FAMILIES = {"snli": "nli", "mnli": "nli", "sst2": "sentiment", "trec": "topic"}
RUN = STAGES[:-1]  # all but the report


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("lab")
    save_base(root / "base")
    save_data(root / "data", FAMILIES, pair=("snli", "mnli"))
    return root


def settings_of(root, **changes):
    fewest = {"epochs": 2, "batch": 16, "learning_rate": 3e-3}
    content = {
        "name": "tiny", "base": str(root / "base"), "data": str(root / "data"), "bf16": "no",
        "base_tuned_on": ["snli"],
        "tasks": list(FAMILIES),
        "finetune": {"seeds": 2, "epochs": 6, "batch": 8, "learning_rate": 3e-3, "max_length": 16},
        "probe": {"train_rows": 24, "test_rows": 16},
        "experiments": {
            "clusters": {"keep_below_base_rate": True},
            "lines": {"alphas": 3, "extrapolation_steps": 3},
            "regions": {"bootstrap": 50, "inside": 4, "outside": 2},
            "edges": {"radii": [1.0, 4.0], "seeds": 2, "plane_grid": 3},
            "efficient": {"targets": ["snli", "sst2"], "rows": [24], "seeds": 2,
                          "paper": fewest, "tuned": fewest},
            "sizes": {"sizes": [16, 32], "tasks": ["snli", "sst2"],
                      "training": fewest},
        },
    }  # fmt: skip
    return load_settings(content, [f"{key}={json.dumps(value)}" for key, value in changes.items()])


@pytest.fixture(scope="module")
def done(root):
    """Results of a whole run, and its folder."""
    notes = []
    found = run_experiment(
        settings_of(root), root / "whole", device="cpu", only=RUN, note=notes.append
    )
    assert any("heads (of 2 labels) take no part in the geometry" in note for note in notes)
    assert any("probes of 24 rows on 32 features overfit" in note for note in notes)
    return found, root / "whole"


def test_all_stages_leave_their_numbers(done):
    results, folder = done
    assert list(results["timings"]) == list(RUN)
    assert json.loads((folder / "results.json").read_text())["zoo"] == results["zoo"]
    assert [record["status"] for record in results["zoo"]] == ["done"] * 8
    assert np.mean([record["test_accuracy"] for record in results["zoo"]]) > 0.7
    assert {run["name"] for run in results["clusters"]["runs"]} == {"same-dataset", "families-3"}
    assert [level["name"] for level in results["lines"]["levels"]] == [
        "same-dataset", "same-task", "general",
    ]  # fmt: skip
    assert results["evaluation"]["lines"]["forward_passes"] > 20
    assert results["edges"]["radius"]["ways"].keys() == {"random", "member", "origin"}
    runs = results["efficient"]["targets"]
    # 2 regimes x 2 seeds x (snli: three starts; sst2 has no relative: two)
    assert len(runs) == 4 * 3 + 4 * 2
    assert results["efficient"]["left_out"] == {
        "sst2, family_centroid": "no model of another data set to start from"
    }
    parts = {(row["part"], *row["targets"]) for row in results["efficient"]["parts"]}
    assert ("seen by the base", "snli") in parts and ("new to the base", "sst2") in parts
    assert ("in the paper", "sst2") in parts
    assert len(results["sizes"]["models"]) == 4


def test_models_are_plain_checkpoints_of_one_base(done, root):
    from transformers import AutoModel

    folder = done[1] / "models" / "snli-0"
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    stored = load_file(folder / "model.safetensors")
    assert torch.equal(model.embeddings.word_embeddings.weight,
                       stored["embeddings.word_embeddings.weight"])  # fmt: skip
    record = json.loads((folder / "record.json").read_text())
    assert record["family"] == "nli" and record["settings"]["learning_rate"] == 3e-3
    assert {"test_accuracy", "validation_loss", "base_rate", "steps", "weights"} <= record.keys()
    left_out = done[0]["geometry"]["left_out"]
    assert list(left_out) == ["classifier.1.bias", "classifier.1.weight"]


def test_a_second_run_trains_and_evaluates_nothing(done, root, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in done[1].glob("models/*/*")}

    def never(*args, **kwargs):
        raise AssertionError("it was trained before")

    monkeypatch.setattr(finetune, "train", never)
    monkeypatch.setattr(training, "train", never)
    notes = []
    again = run_experiment(settings_of(root), done[1], device="cpu", only=RUN, note=notes.append)
    assert notes == [f"{stage}: finished before" for stage in RUN]
    assert again == done[0]
    # one stage's setting changed: that one is run again, from losses that are kept
    changed = settings_of(root, **{"experiments.lines.extrapolation_steps": 2})
    run_experiment(changed, done[1], device="cpu", only=["lines"], note=notes.append)
    kept = json.loads((done[1] / "lines.json").read_text())
    assert kept["evaluation"] == {} and any("same-task" in note for note in notes)
    assert {path: path.stat().st_mtime_ns for path in done[1].glob("models/*/*")} == before
    run_experiment(settings_of(root), done[1], device="cpu", only=["lines"])


def test_the_same_settings_give_the_same_models(done, root, tmp_path):
    only_two = settings_of(root, tasks=["snli", "mnli"], experiments={}, **{"finetune.seeds": 1})
    run_experiment(only_two, tmp_path / "two", device="cpu", only=["finetune"])
    for name in ("snli-0", "mnli-0"):
        one, two = ((folder / "models" / name / "model.safetensors").read_bytes()
                    for folder in (done[1], tmp_path / "two"))  # fmt: skip
        assert one == two


def test_a_folder_of_another_experiment_is_refused(done, root, tmp_path):
    with pytest.raises(WspaceError, match=r"another experiment \(finetune.seeds was 2, is now 3\)"):
        run_experiment(settings_of(root, **{"finetune.seeds": 3}), done[1])
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(WspaceError, match="not empty, and no results of an experiment"):
        run_experiment(settings_of(root), tmp_path)
    with pytest.raises(WspaceError, match=r"no stage 'line'; known: finetune"):
        run_experiment(settings_of(root), tmp_path / "new", only=["line"])
    # the same seeds, but a base of another architecture under the same name
    save_base(tmp_path / "moved" / "base", hidden=16)
    moved = dataclasses.replace(settings_of(root), base=str(tmp_path / "moved" / "base"))
    with pytest.raises(WspaceError, match=r"another experiment \(base was"):
        run_experiment(moved, done[1])


def test_an_interrupted_zoo_goes_on(root, tmp_path):
    """Killed while it trains: finished models stay as they are, the others follow."""
    config = tmp_path / "tiny.yml"
    settings = settings_of(root)
    content = json.loads(json.dumps(dataclasses.asdict(settings), default=list))
    config.write_text(json.dumps(content))  # JSON is YAML
    out = tmp_path / "out"
    command = [sys.executable, "-m", "wspace", "experiment", str(config), "-o", str(out),
               "--only", "finetune", "--device", "cpu", "--quiet"]  # fmt: skip
    running = subprocess.Popen(command, cwd=Path(__file__).parent.parent, env=os.environ)
    first = out / "models" / "snli-0" / "record.json"
    deadline = time.monotonic() + 300
    while not first.exists():
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    assert running.wait() != 0
    finished = {
        path.parent.name: path.stat().st_mtime_ns for path in out.glob("models/*/record.json")
    }
    assert 1 <= len(finished) < 8
    results = run_experiment(settings, out, device="cpu", only=["finetune"])
    assert len(results["zoo"]) == 8
    for name, stamp in finished.items():
        assert (out / "models" / name / "record.json").stat().st_mtime_ns == stamp
    assert not list(out.glob("models/.*partial/model.safetensors"))


def test_a_loss_that_is_not_finite_fails_that_model_alone(root, tmp_path):
    settings = settings_of(root, tasks=["snli", "sst2"], experiments={}, **{"finetune.epochs": 1})
    broken = dataclasses.replace(settings.finetune, learning_rate=math.inf)
    jobs = finetune.zoo_jobs(load_tasks(settings), settings)
    jobs[1] = dataclasses.replace(jobs[1], training=broken)
    encoder = open_encoder(str(root / "base"), device="cpu", bf16="no")
    records = finetune.train_zoo(encoder, jobs, settings, tmp_path / "models")
    assert [r["status"] for r in records] == [
        "done", "failed: the loss is not finite", "done", "done",
    ]  # fmt: skip
    assert not (tmp_path / "models" / "snli-1" / "model.safetensors").exists()
    again = finetune.train_zoo(encoder, jobs, settings, tmp_path / "models")
    assert again == records


def test_dry_run_counts_what_will_be_run(root, tmp_path, capsys):
    config = tmp_path / "tiny.yml"
    config.write_text(json.dumps(dataclasses.asdict(settings_of(root)), default=list))
    assert main(["experiment", str(config), "-o", str(tmp_path / "out"), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {line.split()[0]: line for line in lines}
    assert "8 models to train" in told["finetune"]
    assert "20 BitFit trainings" in told["efficient"]
    assert "4 models to train" in told["sizes"]
    assert not (tmp_path / "out").exists()


def test_mistakes_are_one_line(root, tmp_path, capsys):
    config = tmp_path / "tiny.yml"
    content = dataclasses.asdict(settings_of(root)) | {"base": str(tmp_path / "nowhere")}
    config.write_text(json.dumps(content, default=list))
    assert main(["experiment", str(config), "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and "name a local folder, or minilm" in error
    assert main(["experiment", str(config), "-o", "x", "--set", "finetune.seed=2"]) == 1
    assert "unknown setting 'seed'; did you mean 'seeds'?" in capsys.readouterr().err
