"""What stands beside a merge: its report, its card, its recipe."""

import json

import pytest
import torch
import yaml

from tests.recipes import merged
from tests.zoos import save, state, zoo_on_disk
from wspace.cli.main import main


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    ids = {"position_ids": torch.arange(4)}
    zoo_on_disk(root, n=2, dtype=torch.bfloat16, step=0.1, extra=ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


BASED = """\
merge_method: task_arithmetic # a comment stays
base_model: base
models: [{model: run-0, parameters: {weight: 0.7}}, {model: run-1, parameters: {weight: 0.4}}]
"""
PLAIN = "merge_method: linear\nmodels: [{model: run-0}, {model: run-1}]\nparameters: {weight: 1}\n"


def reported(text, out):
    found = []
    tensors = merged(text, out, report=lambda place, report: found.append(report))
    assert json.loads((out / "report.json").read_text()) == found[0].as_json()
    return {k: t.double() for k, t in tensors.items()}, found[0]


def inputs(n=2):
    base = state(0, torch.bfloat16)
    states = [state(i + 1, torch.bfloat16, like=base, step=0.1) for i in range(n)]
    return [{k: t.double() for k, t in s.items()} for s in (*states, base)]


@pytest.mark.parametrize("text", [BASED, PLAIN], ids=["based", "plain"])
def test_the_report_is_what_the_files_hold(tmp_path, text):
    out, report = reported(text, tmp_path / "out")
    *models, base = inputs()
    based = text is BASED
    names = ["run-0", "run-1", *(["base"] if based else [])]
    origin = base if based else {k: 0 * t for k, t in base.items()}
    assert report.base == ("base" if based else None)
    assert report.copied == ("position_ids",)
    whole = {name: [] for name in (*names, "out")}
    for key, measured in report.tensors.items():
        y = out[key].flatten()
        assert measured.norm == pytest.approx(float(y.norm()), rel=1e-12)
        assert measured.max_abs == (float(y.abs().max()) if len(y) else 0)
        assert measured.non_finite == 0
        whole["out"].append(y - origin[key].flatten())
        for name, model in zip(names, (*models, base), strict=False):
            x = model[key].flatten()
            whole[name].append(x - origin[key].flatten())
            assert measured.distances[name] == pytest.approx(float((x - y).norm()), rel=1e-6)
            if name != "base" and len(x):
                a, b = whole[name][-1], whole["out"][-1]
                assert measured.cosines[name] == pytest.approx(
                    float(a @ b / a.norm() / b.norm()), abs=1e-7
                )
    assert report.tensors.keys() == out.keys() - {"position_ids"}
    y = torch.cat(whole["out"])
    for name in names:
        x = torch.cat(whole[name])
        assert report.total.distances[name] == pytest.approx(float((x - y).norm()), rel=1e-6)
        if name != "base":
            cosine = float(x @ y / x.norm() / y.norm())
            assert report.total.cosines[name] == pytest.approx(cosine, abs=1e-7)
    columns, rows = report.table()
    assert len(rows) == len(report.tensors) + 1
    assert all(len(row) == len(columns) for row in rows)


def test_nan_is_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors = state(0)
    tensors["layers.0.weight"][:2, 0] = torch.tensor([torch.nan, torch.inf])
    save(tmp_path / "m", tensors)
    found = []
    text = "merge_method: passthrough\nmodels: [{model: m}]\n"
    merged(text, tmp_path / "out", allow_non_finite=True, report=lambda _, r: found.append(r))
    assert found[0].total.non_finite == found[0].tensors["layers.0.weight"].non_finite == 2
    assert found[0].tensors["layers.0.weight"].distances == {"m": None}
    assert json.loads((tmp_path / "out" / "report.json").read_text())


def test_the_card_and_the_recipe(tmp_path):
    reported(BASED, tmp_path / "a name")
    assert (tmp_path / "a name" / "mergekit_config.yml").read_text() == BASED
    card = (tmp_path / "a name" / "README.md").read_text()
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "base_model": ["run-0", "run-1", "base"],
        "library_name": "transformers",
        "tags": ["mergekit", "merge", "wspace"],
    }
    assert text.startswith("# a name\n")
    assert "`task_arithmetic`: arXiv [2212.04089](https://arxiv.org/abs/2212.04089)\n" in text
    assert "- base (the base)\n" in text
    assert f"```yaml\n{BASED}```\n" in text
    assert "| run-0 | " in text and "cosine (from base)" in text


def test_commands(tmp_path, capsys):
    recipe = tmp_path / "r.yml"
    recipe.write_text(BASED)
    assert main(["merge", str(recipe), "-o", f"{tmp_path}/out", "--report", "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[-1] == f"{tmp_path}/out"
    assert lines[1].split()[:4] == ["tensor", "norm", "max", "nan/inf"]
    assert any(line.startswith("all ") for line in lines)
    assert lines[-2] == "copied: position_ids; left out: -"
    assert main(["merge", str(recipe), "-o", f"{tmp_path}/bare", "--quiet"]) == 0
    assert not (tmp_path / "bare" / "report.json").exists()
    assert (tmp_path / "bare" / "README.md").exists()
    assert main(["merge", "run-0", "run-1", "--uniform", "-o", "x", "--report"]) == 1
    assert "--report goes with a recipe" in capsys.readouterr().err
