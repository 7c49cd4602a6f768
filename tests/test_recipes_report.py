"""What stands beside a merge: its report, its card, its recipe."""

import json

import pytest
import torch
import yaml

import wspace as ws
from tests.recipes import merged
from tests.zoos import save, state, zoo_on_disk
from wspace.cli.main import main
from wspace.derived import models
from wspace.storage.naming import public_name


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
        "library_name": "transformers",
        "tags": ["mergekit", "merge", "wspace"],
    }
    assert text.startswith("# a name\n")
    assert "`task_arithmetic`: arXiv [2212.04089](https://arxiv.org/abs/2212.04089)\n" in text
    assert "- base (the base)\n" in text
    assert f"```yaml\n{BASED}```\n" in text
    assert "| run-0 | " in text and "cosine (from base)" in text


def in_the_hubs_cache(root, identifier, revision, **options):
    """A model as the Hub's client keeps it."""
    folder = root / f"models--{identifier.replace('/', '--')}" / "snapshots" / revision
    save(folder, state(**options))
    return folder


def published(out):
    """What the card's header and the record say, and both as texts."""
    card, record = ((out / name).read_text() for name in ("README.md", "wspace.json"))
    header = yaml.safe_load(card.split("---\n", 2)[1])
    return header, json.loads(record), card, record


def test_models_of_the_hub_are_named_by_id_and_revision(tmp_path, monkeypatch):
    """And the card tells no folder of the machine."""
    home = tmp_path / "home"
    one = in_the_hubs_cache(home, "org/one", "0123abcd", seed=1)
    two = in_the_hubs_cache(home, "org/two", "4567cdef", seed=2)
    monkeypatch.setattr(models, "_fetch", lambda name: {"org/two@main": two}[name])
    for name in ("run", "run-2"):
        save(home / name, state(3))
    sources = [one, "org/two@main", home / "run", home / "run-2"]
    listed = "".join(f"- {{model: {source}, parameters: {{weight: 1}}}}\n" for source in sources)
    text = f"merge_method: linear\nmodels:\n{listed}"
    merged(text, tmp_path / "out", report=lambda place, report: None)
    header, record, card, text = published(tmp_path / "out")
    assert header["base_model"] == ["org/one", "org/two"]
    named = ["org/one@0123abcd", "org/two@4567cdef"]
    assert record["made"]["models"] == [*named, f"{home}/run", f"{home}/run-2"]
    assert {f"hf://{name}/model.safetensors" for name in named} <= record["inputs"].keys()
    assert "models--" not in json.dumps(record["inputs"])
    assert str(home) not in card
    assert [f"- {name}\n" in card for name in (*named, "run", "run-2")] == [True] * 4
    assert "{model: run-2, " in card and "{model: org/one@0123abcd, " in card
    zoo = ws.open_zoo([one, two], base=two)
    (out,) = ws.merge(zoo, [0.5, 0.5], tmp_path / "linear")
    made = json.loads((out / "wspace.json").read_text())["made"]
    assert (made["models"], made["base"]) == (named, named[1])
    assert str(home) not in (out / "wspace.json").read_text()
    assert ws.verify(out).ok


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("/c/models--a--b/snapshots/12", "a/b@12"),
        ("models--gpt/snapshots/12/", "gpt@12"),
        ("/c/models--a--b/snapshots/12/x/y.safetensors", "hf://a/b@12/x/y.safetensors"),
        ("/c/models--a--b/snapshots/12+/c/models--d--e/snapshots/34", "a/b@12+d/e@34"),
        ("/c/models--a--b/snapshots/12+/x/lora", "a/b@12+/x/lora"),
        ("hf://a/b@12", "hf://a/b@12"),
        ("hf://a/b", "hf://a/b"),
        ("hf://datasets/a/b", "hf://datasets/a/b"),
        ("s3://a/b@12", "s3://a/b@12"),
        ("/c/models--a--b/other/12", "/c/models--a--b/other/12"),
        ("/x/base+/c/models--d--e/snapshots/34", "/x/base+d/e@34"),
        ("/me+you/models--d--e/snapshots/34", "/me+you/models--d--e/snapshots/34"),
        ("/home/me+you/run", "/home/me+you/run"),
        ("runs/0", "runs/0"),
    ],
)
def test_public_names(place, name):
    assert public_name(place) == name


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
