"""Several outputs of one recipe's file: sweeps, documents, and what is read for them."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.recipes import merged
from tests.zoos import save, state, zoo_on_disk
from wspace.cli.main import main
from wspace.errors import OutputError
from wspace.recipes import Problems, RecipeError, merge_outputs, places_of, plan_outputs
from wspace.recipes.documents import read_documents


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    zoo_on_disk(root, n=3, step=0.5)
    layers = {f"layers.{k}.w": (9, 7) for k in range(4)} | {"embed.weight": (5, 7)}
    for k in range(2):
        save(root / f"deep-{k}", state(k, shapes=layers))
        config = {"num_hidden_layers": 4, "dtype": "float32"}
        (root / f"deep-{k}" / "config.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


def size(*models):
    return sum(t.nbytes for m in models for t in load_file(f"{m}/model.safetensors").values())


def run(text, out, **options):
    outputs = plan_outputs(text, Problems("r.yml"))
    merge_outputs(outputs, places_of(outputs, [str(out)]), **options)
    return outputs


def load(folder):
    return {
        k: t for file in sorted(folder.glob("*.safetensors")) for k, t in load_file(file).items()
    }


def errors_of(text):
    problems = Problems("r.yml")
    with pytest.raises(RecipeError) as raised:
        plan_outputs(text, problems)
    return raised.value.problems


def labels(text):
    return [d.label for d in read_documents(text, Problems("r.yml"))[0]]


def test_sweeps_of_one_parameter_go_together_and_others_are_combined():
    text = """\
models:
  - {model: a, parameters: {weight: {sweep: [0.2, 0.4]}}}
  - {model: b, parameters: {weight: [{filter: mlp, value: {sweep: [0.8, 0.6]}}, {value: 1}]}}
parameters:
  normalize:
    sweep:
      - true
      - false
dtype: float32
"""
    found = read_documents(text, Problems("r.yml"))[0]
    assert [d.label for d in found] == [
        f"weight={w},normalize={n}" for w in ("0.2_0.8", "0.4_0.6") for n in ("true", "false")
    ]
    lines = found[1].text.splitlines()
    assert lines[1] == "  - {model: a, parameters: {weight: 0.2}}"
    assert "{filter: mlp, value: 0.8}, {value: 1}]" in lines[2]
    assert lines[5].strip() == "false"
    assert lines.index("dtype: float32") == 8, "problems after a sweep have their own line"
    assert labels("t: {sweep: [[0, 1], 0.5, -1e-3]}") == ["t=0_1", "t=0.5", "t=-1e-3"]
    assert labels("a: &x {sweep: [1, 2]}\nb: *x") == ["a=1", "a=2"]
    assert labels("a: {sweep: [same, same]}\nb: 1") == ["a=same", "a=same"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("w: {sweep: [1, 2]}\nx: {w: {sweep: [1, 2, 3]}}", "r.yml:2: w: sweep of 3 values, and"),
        ("a: {sweep: [%s]}" % ", ".join("1" * 1001), "r.yml:1: 1001 outputs"),  # noqa: UP031
    ],
)  # fmt: skip
def test_wrong_sweeps(text, error):
    problems = Problems("r.yml")
    assert list(read_documents(text, problems)[0]) == []
    assert problems.errors[0].startswith(error)


LINEAR = """\
merge_method: linear
models:
  - {model: run-0, parameters: {weight: {sweep: [0.2, 0.4, 0.6]}}}
  - {model: run-1, parameters: {weight: {sweep: [0.8, 0.6, 0.4]}}}
  - {model: run-2, parameters: {weight: 1}}
"""


def test_a_sweep_reads_once_and_makes_what_single_recipes_make(tmp_path, counted):
    outputs = run(LINEAR, tmp_path / "out")
    assert counted[0] == size("run-0", "run-1", "run-2")
    assert outputs.cost().read_bytes == counted[0]
    for first, second in ((0.2, 0.8), (0.4, 0.6), (0.6, 0.4)):
        text = LINEAR.replace("{sweep: [0.2, 0.4, 0.6]}", str(first))
        text = text.replace("{sweep: [0.8, 0.6, 0.4]}", str(second))
        single = merged(text, tmp_path / f"single-{first}")
        found = load(tmp_path / "out" / f"weight={first}_{second}")
        assert found.keys() == single.keys()
        assert all(torch.equal(found[k], single[k]) for k in single)
    record = json.loads((tmp_path / "out" / "weight=0.2_0.8" / "wspace.json").read_text())
    assert "sweep" not in record["made"]["recipe"]


@pytest.mark.parametrize("method", ["slerp", "karcher", "model_stock"])
def test_sweeps_of_methods_that_need_inner_products_read_once(tmp_path, counted, method):
    text = {
        "slerp": "base_model: base\nmodels: [{model: run-0}]\n"
                 "parameters: {t: {sweep: [0.25, 0.5, 0.75]}}",
        "karcher": "models: [{model: run-0}, {model: run-1}]\n"
                   "parameters: {max_iter: {sweep: [1, 2]}}",
        "model_stock": "base_model: base\nmodels: [{model: run-0}, {model: run-1}]\n"
                       "parameters: {filter_wise: {sweep: [false, true]}}",
    }[method]  # fmt: skip
    outputs = run(f"merge_method: {method}\n{text}\n", tmp_path / "out")
    models = {"slerp": 2, "karcher": 2, "model_stock": 3}[method]
    matrices = 4 * sum(t.numel() for t in state(0).values() if t.ndim > 1)
    by_rows = matrices if method == "model_stock" else 0  # which are read for themselves
    assert counted[0] == models * (size("base") + by_rows) == outputs.cost().read_bytes
    for output in outputs:
        single = merged(output.recipe.text, tmp_path / f"single-{output.name}")
        found = load(tmp_path / "out" / output.name)
        assert all(torch.equal(found[k], single[k]) for k in single)


SEVERAL = """\
merge_method: linear
models: [{model: run-0}, {model: run-1}]
parameters: {weight: 1}
name: mean
---
merge_method: task_arithmetic
base_model: base
models: [{model: run-1, parameters: {weight: 0.7}}, {model: run-2, parameters: {weight: 1}}]
name: far
dtype: bfloat16
---
merge_method: slerp
base_model: base
models: [{model: run-2}]
parameters: {t: 0.3}
"""


def test_recipes_of_one_file_share_their_reads(tmp_path, counted):
    outputs = run(SEVERAL, tmp_path / "out")
    every = size("base", "run-0", "run-1", "run-2")
    assert counted[0] == every
    assert outputs.cost().read_bytes == counted[0]
    assert [output.name for output in outputs] == ["mean", "far", "final"]
    for k, name in enumerate(("mean", "far", "final")):
        single = merged(SEVERAL.split("---\n")[k], tmp_path / f"single-{k}")
        found = load(tmp_path / "out" / name)
        assert found.keys() == single.keys()
        assert all(torch.equal(found[key], single[key]) for key in single), name


def test_slices_share_their_reads(tmp_path, counted):
    text = """\
merge_method: passthrough
slices:
  - sources: [{model: deep-0, layer_range: [0, 3]}]
  - sources: [{model: deep-1, layer_range: [1, 4], parameters: {scale: {sweep: [1, 2]}}}]
---
merge_method: linear
models: [{model: deep-0}, {model: deep-1}]
parameters: {weight: 1}
"""
    outputs = run(text, tmp_path / "out")
    assert counted[0] == size("deep-0", "deep-1"), "each layer of each model once"
    for output in outputs:
        single = merged(output.recipe.text, tmp_path / f"single-{output.name.replace('/', '-')}")
        found = load(tmp_path / "out" / output.name)
        assert all(torch.equal(found[key], single[key]) for key in single)


DEPENDENT = """\
# the order in the file does not matter
merge_method: slerp
base_model: run-2
models: [{model: stacked}]
parameters: {t: {sweep: [0.25, 0.75]}}
name: last
---
merge_method: linear
models: [{model: run-0}, {model: run-1}]
parameters: {weight: 1}
name: stacked
"""


def test_a_recipe_reads_the_output_of_another(tmp_path, monkeypatch):
    outputs = run(DEPENDENT, tmp_path / "out", max_shard_size="50KB")
    assert [[o.name for o in stage] for stage in outputs.stages] == [
        ["stacked"], ["last/t=0.25", "last/t=0.75"],
    ]  # fmt: skip
    stacked = merged(DEPENDENT.split("---\n")[1], tmp_path / "stacked")
    assert all(torch.equal(t, stacked[k]) for k, t in load(tmp_path / "out" / "stacked").items())
    text = DEPENDENT.split("---\n")[0].replace("{model: stacked}", f"{{model: {tmp_path}/stacked}}")
    single = merged(text.replace("{sweep: [0.25, 0.75]}", "0.75"), tmp_path / "single")
    found = load(tmp_path / "out" / "last" / "t=0.75")
    assert all(torch.equal(found[k], single[k]) for k in single)


def test_layers_of_an_output_that_is_not_there_yet_can_be_sliced(tmp_path):
    text = """\
merge_method: passthrough
slices: [{sources: [{model: tall, layer_range: [3, 6]}]}]
name: part
---
merge_method: passthrough
slices:
  - sources: [{model: deep-0, layer_range: [0, 4]}]
  - sources: [{model: deep-1, layer_range: [1, 4]}]
name: tall
"""
    run(text, tmp_path / "out")
    counts = {
        name: json.loads((tmp_path / "out" / name / "config.json").read_text())["num_hidden_layers"]
        for name in ("tall", "part")
    }
    assert counts == {"tall": 7, "part": 3}
    part = load(tmp_path / "out" / "part")
    expected = [load_file("deep-0/model.safetensors")["layers.3.w"]]
    expected += [load_file("deep-1/model.safetensors")[f"layers.{k}.w"] for k in (1, 2)]
    assert all(torch.equal(part[f"layers.{k}.w"], t) for k, t in enumerate(expected))


def document(name, *models):
    listed = ", ".join(f"{{model: {model}}}" for model in models)
    return f"merge_method: linear\nname: {name}\nmodels: [{listed}]\nparameters: {{weight: 1}}\n"


@pytest.mark.parametrize(
    ("documents", "error"),
    [
        ([document("a", "b"), document("b", "c"), document("c", "a")],
         "r.yml:1: recipes read each other's outputs: a <- b <- c <- a"),
        ([document("a", "run-0"), document("a", "run-1")], "r.yml:6: two outputs are called 'a'"),
        ([document("a", "run-0"), document("a/b", "run-1")], "r.yml:1: the output 'a' would hold"),
        ([document("../a", "run-0")], "r.yml:2: name '../a': expected a folder's name"),
        ([document("a", "run-0").replace("weight: 1", "weight: {sweep: [1, 2]}"),
          document("b", "a")], "r.yml:8: a is 2 outputs, such as a/weight=1: name one of them"),
        ([document("a", "run-0", "nowhere"), document("b", "a"), document("c", "gone")],
         "r.yml:3: nowhere"),
    ],
)  # fmt: skip
def test_wrong_documents(documents, error):
    found = errors_of("---\n".join(documents))
    assert any(line.startswith(error) for line in found), found
    if "nowhere" in error:
        assert any(line.startswith("r.yml:13: gone") for line in found), (
            "the others are checked too"
        )
        assert len(found) == 2


def test_a_dependent_recipe_is_checked_before_anything_is_written(tmp_path, counted):
    text = DEPENDENT.replace("t: {sweep: [0.25, 0.75]}", "t: high")
    with pytest.raises(RecipeError, match=r"r.yml:5: t: expected a finite number, found 'high'"):
        run(text, tmp_path / "out")
    assert counted[0] == 0 and not (tmp_path / "out").exists()


def test_places():
    outputs = plan_outputs(LINEAR, Problems("r.yml"))
    names = ["weight=0.2_0.8", "weight=0.4_0.6", "weight=0.6_0.4"]
    assert [str(path) for path in places_of(outputs, ["x/"])] == [f"x/{name}" for name in names]
    assert [str(path) for path in places_of(outputs, ["x-{}-y"])] == [f"x-{n}-y" for n in names]
    assert [str(path) for path in places_of(outputs, ["a", "b", "c"])] == ["a", "b", "c"]
    with pytest.raises(OutputError, match=r"2 outputs given for 3 \(weight=0.2"):
        places_of(outputs, ["a", "b"])
    one = plan_outputs(LINEAR.replace("sweep: [0.2, 0.4, 0.6]", "value: 1").replace(
        "sweep: [0.8, 0.6, 0.4]", "value: 1"), Problems("r.yml"))  # fmt: skip
    assert [str(path) for path in places_of(one, ["a"])] == ["a"]


def test_commands(tmp_path, capsys):
    recipe = tmp_path / "several.yml"
    recipe.write_text(SEVERAL)
    assert main(["check", str(recipe), "--format", "csv", "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("output,tensor,shape,dtype,method,from,weight[run-0]")
    assert {line.split(",")[0] for line in lines[1:]} == {"mean", "far", "final"}
    assert main(["check", str(recipe), "--format", "json", "--quiet"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [output["name"] for output in content["outputs"]] == ["mean", "far", "final"]
    assert content["read_bytes"] > 0
    assert main(["check", str(recipe), "--quiet"]) == 0
    assert "far: 7 tensors from 3 models" in capsys.readouterr().out
    assert main(["merge", str(recipe), "-o", f"{tmp_path}/x-{{}}", "--quiet"]) == 0
    printed = capsys.readouterr().out.split()
    assert printed == [f"{tmp_path}/x-{name}" for name in ("mean", "far", "final")]
    assert all((tmp_path / f"x-{name}" / "model.safetensors").exists() for name in ("mean", "far"))
    assert main(["merge", str(recipe), "-o", "a", "-o", "b"]) == 1
    assert "2 outputs given for 3" in capsys.readouterr().err
