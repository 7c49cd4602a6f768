"""Defects that other merge tools had, and mistakes of users: what happens here instead."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bench.moe import make_headers
from tests.recipes import merged, plan
from tests.zoos import SHAPES, save, state, zoo_on_disk
from wspace.cli.main import main
from wspace.recipes import Problems, RecipeError, parse_recipe, plan_recipe
from wspace.storage import reading

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("traps")
    zoo_on_disk(root, n=3, step=0.5)
    for k in range(3):
        (root / f"run-{k}" / "config.json").write_text(json.dumps({"model": k, "dtype": "float32"}))
        (root / f"run-{k}" / "generation_config.json").write_text(json.dumps({"of": k}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


LINEAR = "merge_method: linear\nmodels: [{model: run-1}, {model: run-0}]\nparameters: {weight: 1}\n"


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "wspace", *map(str, arguments)], capture_output=True, text=True,
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "more"),
    [("multislerp", ""), ("sce", "base_model: run-2\n")],
    ids=["linear", "chosen"],
)
def test_nothing_depends_on_hashes(tmp_path, method, more):
    """Inputs, the donor of the config, the card: all as the recipe lists them (trap 4)."""
    text = LINEAR.replace("linear", method).replace("weight: 1", "weight: [0.3, 0.9]") + more
    (tmp_path / "r.yml").write_text(text)
    found = []
    for seed in ("1", "2"):
        out = tmp_path / seed / "out"
        done = command("merge", tmp_path / "r.yml", "-o", out, PYTHONHASHSEED=seed)
        assert done.returncode == 0, done.stderr
        found.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert found[0] == found[1]
    donor = 2 if more else 1  # the base, or the first that is listed
    assert json.loads(found[0]["config.json"])["model"] == donor
    assert json.loads(found[0]["generation_config.json"]) == {"of": donor}


def test_arcee_fusion_in_bfloat16_is_written_in_bfloat16(tmp_path):
    """Every tensor, and the config that describes them (trap 14)."""
    text = "merge_method: arcee_fusion\nmodels: [{model: run-0}]\nbase_model: run-1\n"
    out = merged(text + "dtype: bfloat16\n", tmp_path / "out")
    exact = merged(text, tmp_path / "exact")
    assert {t.dtype for t in exact.values()} == {torch.float32}
    assert out.keys() == exact.keys() == SHAPES.keys()
    for name, tensor in exact.items():
        assert out[name].dtype == torch.bfloat16
        assert torch.equal(out[name], tensor.bfloat16()), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_base_that_is_not_listed_has_no_weight():
    text = (
        LINEAR.replace("parameters: {weight: 1}", "base_model: base")
        .replace("}]", ", parameters: {weight: 1}}]")
        .replace("run-1}", "run-1, parameters: {weight: 1}}")
    )
    with pytest.raises(RecipeError, match=r"r.yml:3: base has no weight for tensor 'embed"):
        plan(text)


def test_every_tensor_of_every_input_is_in_the_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k in range(2):
        more = {"unheard.of.7.thing": torch.ones(3) * k, f"only.in_{k}": torch.ones(2) * (k + 1)}
        save(tmp_path / f"run-{k}", state(k) | more)
    out = merged(LINEAR, tmp_path / "out")
    assert out.keys() == SHAPES.keys() | {"unheard.of.7.thing", "only.in_0", "only.in_1"}
    assert out["unheard.of.7.thing"].tolist() == [0.5] * 3
    assert out["only.in_1"].tolist() == [2, 2], "as the one model that has it"


@pytest.mark.parametrize("method", ["task_arithmetic", "model_stock", "linear", "multislerp"])
def test_another_shape_is_an_error(tmp_path, monkeypatch, method):
    monkeypatch.chdir(tmp_path)
    for name in ("base", "run-0", "run-1"):
        rows = 5 if name == "run-1" else 4
        save(tmp_path / name, {"a": torch.ones(3), "b.weight": torch.ones(rows, 3)})
    text = LINEAR.replace("linear", method)
    text += "base_model: base\n" if method in ("task_arithmetic", "model_stock") else ""
    with pytest.raises(RecipeError, match=r"'b.weight' has shape \[[45], 3\] in .*--exclude"):
        plan(text)


KILLED = """
import os, signal, sys
from wspace.recipes import Problems, merge_outputs, places_of, read_outputs
outputs = read_outputs("{recipe}", Problems("r.yml"))
def progress(done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
merge_outputs(outputs, places_of(outputs, ["{out}"]), progress=progress, memory="4MiB")
"""


def test_a_merge_that_was_killed_leaves_nothing_that_looks_whole(tmp_path):
    (tmp_path / "r.yml").write_text(LINEAR)
    out = tmp_path / "out"
    code = KILLED.format(recipe=tmp_path / "r.yml", out=out)
    done = subprocess.run([sys.executable, "-c", code], check=False,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    expected = merged(LINEAR, tmp_path / "expected")
    assert main(["merge", str(tmp_path / "r.yml"), "-o", str(out), "--quiet"]) == 0
    found = load_file(out / "model.safetensors")
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_options_do_what_they_say(tmp_path, capsys):
    (tmp_path / "r.yml").write_text(f"{LINEAR}unknown: 1\n")

    def run(name, *options):
        status = main(["merge", str(tmp_path / "r.yml"), "-o", f"{tmp_path}/{name}", *options])
        return status, capsys.readouterr().err

    assert run("shards", "--max-shard-size", "60KB", "--quiet")[0] == 0
    assert len(list((tmp_path / "shards").glob("model-0*-of-0*.safetensors"))) > 1
    assert (tmp_path / "shards" / "model.safetensors.index.json").exists()
    status, said = run("strict", "--strict")
    assert status == 1 and "r.yml:4: key 'unknown' is unknown" in said
    assert run("part", "--include", "layers.*", "--exclude", "*.bias", "--quiet")[0] == 0
    part = load_file(tmp_path / "part" / "model.safetensors")
    assert part.keys() == {"layers.0.weight", "layers.1.weight"}
    status, said = run("small", "--memory", "10KB")
    assert status == 1 and "memory budget" in said
    status, said = run("device", "--device", "abacus")
    assert status == 1 and "abacus" in said
    for option in (["--dtype", "float16"], ["--base", "base"], ["--uniform"], ["--weights", "1,0"]):
        status, said = run("no", *option)
        assert status == 1 and f"{option[0]} does not go with a recipe" in said
    status, said = run("shards")
    assert status == 1 and "exists" in said
    assert not any((tmp_path / name).exists() for name in ("strict", "small", "device", "no"))


WRONG = """\
merge_method: linear
models:
  - {model: run-0, parameters: {weigth: 1, weight: .nan}}
  - {model: gone, parameters: {weight: 1}}
  - {model: run-1, parameters: {weight: 1}}
dtype: bfloat61
parameters: {normalize: sometimes}
"""


def test_everything_wrong_is_said_at_once_and_no_weight_is_read(tmp_path, capsys, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("weights were read")

    monkeypatch.setattr(reading.os, "preadv", refuse)
    recipe = tmp_path / "r.yml"
    recipe.write_text(WRONG)
    for words in (["check", str(recipe)], ["merge", str(recipe), "-o", f"{tmp_path}/out"]):
        assert main([*words, "--quiet"]) == 1
        said = capsys.readouterr()
        errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
        places = [line.removeprefix(f"error: {recipe}:").split(":")[0] for line in errors]
        assert places == ["3", "4", "6", "7"]
        assert f"warning: {recipe}:3: parameter 'weigth' is unknown; did you mean" in said.err
    assert not (tmp_path / "out").exists()
    assert main(["check", str(recipe), "--format", "json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["errors"]) == 4


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("merge_method: linear\nmodels: [{model: run-0}\nparameters: {}\n",
         "r.yml:3:1: not YAML: "),
        ("merge_method: linear\n\tmodels: []\n", "r.yml:2:1: not YAML: "),
        (LINEAR.replace("linear", "linaer"), "r.yml:1: merge_method 'linaer' is unknown; did you"),
        ("merge_method: linear\nmodels: [{model: run-0, parameters: {weight: 2}},\n"
         "  {model: run-1, parameters: {weight: -2}}]\n",
         "r.yml:1: linear, tensor 'embed.weight': the weights sum to 0; give others, or normalize"),
        (LINEAR.replace("weight: 1", "weight: .inf"), "r.yml:3: weight: expected a finite number"),
    ],
)  # fmt: skip
def test_one_line_with_the_place(tmp_path, capsys, monkeypatch, text, error):
    (tmp_path / "r.yml").write_text(text)
    assert main(["check", str(tmp_path / "r.yml"), "--quiet"]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert lines[0].startswith(f"error: {tmp_path}/{error}"), lines
    assert len(lines) == 1


def test_many_tensors_are_planned_from_headers(tmp_path, monkeypatch):
    """A mixture of experts, whose files are holes; the layers' gradient reaches every expert."""
    monkeypatch.chdir(tmp_path)
    n = 2000
    for k in range(3):
        make_headers(tmp_path / f"m{k}", n)
    models = ", ".join(f"{{model: m{k}, parameters: {{weight: [{k}, 1]}}}}" for k in range(3))
    recipe = parse_recipe(f"merge_method: linear\nmodels: [{models}]\n", Problems("r.yml"))
    found = plan_recipe(recipe, Problems("r.yml"))
    assert len(found.tensors) == n and len({id(t.step) for t in found.tensors}) == 7, (
        "of 6 layers and a norm"
    )
    steps = {t.name: t.step.numbers.each["weight"] for t in found.tensors}
    assert steps["model.layers.0.mlp.experts.127.up_proj.weight"] == (0, 1, 2)
    assert steps["model.layers.5.mlp.experts.0.gate_proj.weight"] == (1, 1, 1)
