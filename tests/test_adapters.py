"""``model+lora``: adapters are applied as the model streams, and every part of them is used."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import wspace as ws
from tests.adapters import adapter, factors, save_adapter
from tests.checkpoints import load, save_model
from tests.recipes import merged, plan, ulps
from wspace.errors import CheckpointError
from wspace.recipes import RecipeError, cost, merge_recipe

PEFT = Path(__file__).parent / "peft"
SHAPES = {"layers.0.q": (300, 290), "layers.1.q": (64, 1100)}


def base_model(folder, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{name}.weight": torch.randn(shape, generator=generator).to(dtype)
        for name, shape in SHAPES.items()
    }
    tensors["norm.weight"] = torch.randn(5, generator=generator).to(dtype)
    save_model(folder, tensors)
    return tensors


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_the_result_is_that_of_peft(tmp_path, name):
    """Rank and alpha patterns, rsLoRA, embeddings, Conv1D, trained biases, modules_to_save."""
    zoo = ws.open_zoo(f"{PEFT}/{name}-base+{PEFT}/{name}-lora")
    ws.merge(zoo, [[1.0]], tmp_path / "out")
    found, expected = load(tmp_path / "out"), load(PEFT / f"{name}-merged")
    assert found.keys() == expected.keys()
    base = load(PEFT / f"{name}-base")
    assert sum(not torch.equal(expected[k], base[k]) for k in base) >= 4
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        torch.testing.assert_close(found[key], tensor, rtol=1e-6, atol=1e-7, msg=key)


def test_a_recipe_rounds_once_and_never_by_the_size_of_chunks(tmp_path):
    base = base_model(tmp_path / "base")
    added = [adapter(tmp_path / f"lora{k}", k + 1, SHAPES, rank=3 + k) for k in range(2)]
    text = f"""
merge_method: linear
models:
- {{model: {tmp_path}/base+{tmp_path}/lora0, parameters: {{weight: 0.3}}}}
- model: {{model: {tmp_path}/base, lora: {{path: {tmp_path}/lora1}}}}
  parameters: {{weight: 0.7}}
"""
    found = merged(text, tmp_path / "out")
    assert found.keys() == base.keys()
    for name, tensor in base.items():
        truth = tensor.double() + 0.3 * added[0].get(name, 0) + 0.7 * added[1].get(name, 0)
        assert found[name].dtype == torch.bfloat16
        # one rounding to 16 bits, after float32 sums of terms that may cancel
        store = 2**-8 * truth.abs()
        summing = 8 * 2**-24 * (tensor.double().abs() + (truth - tensor.double()).abs())
        assert ((found[name].double() - truth).abs() <= store + summing).all(), name
    small = merged(text, tmp_path / "small", memory="21MiB")
    assert all(torch.equal(small[name], found[name]) for name in found)
    assert cost(plan(text)[0], memory="21MiB").memory_bytes <= 21 << 20


def test_inner_products_are_those_of_the_adapted_models(tmp_path):
    base = base_model(tmp_path / "base", torch.float32)
    added = [adapter(tmp_path / f"lora{k}", k + 1, SHAPES) for k in range(2)]
    models = [f"{tmp_path}/base+{tmp_path}/lora{k}" for k in range(2)]
    zoo = ws.open_zoo(models, base=tmp_path / "base", include="layers.*")
    rows = torch.stack([torch.cat([t.flatten() for t in a.values()]) for a in added])
    torch.testing.assert_close(ws.gram(zoo).total, rows @ rows.T, rtol=1e-5, atol=0)
    assert len(set(zoo.names)) == 2
    text = f"""
merge_method: slerp
base_model: {models[0]}
models: [{{model: "{models[1]}"}}]
parameters: {{t: 0.4}}
"""
    for k in range(2):
        plain = {name: (t.double() + added[k].get(name, 0)).float() for name, t in base.items()}
        save_model(tmp_path / f"plain{k}", plain)
    other = text.replace(models[0], f"{tmp_path}/plain0").replace(models[1], f"{tmp_path}/plain1")
    found, expected = merged(text, tmp_path / "out"), merged(other, tmp_path / "expected")
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=0, atol=1e-6 * float(tensor.abs().max())
        )


def test_an_adapter_on_8_bit_weights(tmp_path):
    shapes = {"a": (40, 30)}
    added = adapter(tmp_path / "lora", 1, shapes)
    weight = torch.randn(40, 30).to(torch.float8_e4m3fn)
    scale = torch.rand(40, 1)
    save_model(tmp_path / "base", {"a.weight": weight, "a.weight_scale": scale})
    zoo = ws.open_zoo(f"{tmp_path}/base+{tmp_path}/lora")
    ws.merge(zoo, [[1.0]], tmp_path / "out")
    found = load(tmp_path / "out")["a.weight"]
    truth = weight.double() * scale.double() + added["a.weight"]
    assert ulps(found, truth) <= 0.51


def test_float64_stays_float64(tmp_path):
    base = base_model(tmp_path / "base", torch.float64)
    added = adapter(tmp_path / "lora", 1, SHAPES)
    ws.merge(ws.open_zoo(f"{tmp_path}/base+{tmp_path}/lora"), [[1.0]], tmp_path / "out")
    found = load(tmp_path / "out")
    for name, change in added.items():
        assert torch.allclose(found[name], base[name] + change, rtol=1e-13, atol=1e-13)


def test_names_may_lack_the_prefix_of_the_class(tmp_path):
    """GPT-2 on the Hub is ``h.0...``; PEFT's model calls that ``transformer.h.0...``."""
    base = {name.removeprefix("transformer."): t for name, t in load(PEFT / "gpt2-base").items()}
    save_model(tmp_path / "short", base)
    ws.merge(ws.open_zoo(f"{tmp_path}/short+{PEFT}/gpt2-lora"), [[1.0]], tmp_path / "out")
    expected = load(PEFT / "gpt2-merged")
    for name, tensor in load(tmp_path / "out").items():
        torch.testing.assert_close(tensor, expected[f"transformer.{name}"], rtol=1e-6, atol=1e-7)
    longer = {f"model.{name}": tensor for name, tensor in base.items()}
    save_model(tmp_path / "long", longer)
    ws.merge(ws.open_zoo(f"{tmp_path}/long+{PEFT}/gpt2-lora"), [[1.0]], tmp_path / "out2")
    assert all(torch.equal(t, load(tmp_path / "out")[k[6:]])
               for k, t in load(tmp_path / "out2").items())  # fmt: skip


def test_an_interrupted_merge_leaves_nothing_and_the_next_one_is_whole(tmp_path):
    """Also: no merged copy of a model is ever written."""
    base_model(tmp_path / "base")
    adapter(tmp_path / "lora", 1, SHAPES)
    text = (
        f"merge_method: linear\nmodels: [{{model: {tmp_path}/base+{tmp_path}/lora}}, "
        f"{{model: {tmp_path}/base}}]\nparameters: {{weight: 1}}"
    )
    files = sorted(tmp_path.rglob("*"))

    def interrupt(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_recipe(plan(text)[0], tmp_path / "out", progress=interrupt)
    assert sorted(tmp_path.rglob("*")) == files
    first = merged(text, tmp_path / "out")
    assert [
        p for p in sorted(tmp_path.rglob("*")) if "out" not in p.parts[len(tmp_path.parts)]
    ] == files
    shutil.rmtree(tmp_path / "out")
    again = merged(text, tmp_path / "out")
    assert all(torch.equal(again[name], first[name]) for name in first)


def broken(tmp_path, kind):
    """An adapter of one fault, and what is said of it."""
    a, b = factors(1, 4, SHAPES["layers.0.q"])
    good = {"layers.0.q.lora_A.weight": a, "layers.0.q.lora_B.weight": b}
    faults = {
        "a factor that fits nothing": (
            good | {"layers.7.q.lora_A.weight": a, "layers.7.q.lora_B.weight": b},
            {}, "layers.7.q.weight.*is not there.*must be used"),
        "one factor alone": ({"layers.0.q.lora_A.weight": a}, {}, "has no lora_B beside it"),
        "a tensor that fits nothing": (good | {"head.weight": a}, {}, "head.weight.*not there"),
        "ranks": ({"layers.0.q.lora_A.weight": a, "layers.0.q.lora_B.weight": b[:, :3]}, {},
                  "has rank 4"),
        "a shape": ({"layers.1.q.lora_A.weight": a, "layers.1.q.lora_B.weight": b}, {},
                    r"do not fit a tensor of shape \[64, 1100\]"),
        "a transpose": (good, {"fan_in_fan_out": True}, "do not fit"),
        "DoRA": (good | {"layers.0.q.lora_magnitude_vector": b[:, 0]}, {"use_dora": True}, "DoRA"),
        "a magnitude": (good | {"layers.0.q.lora_magnitude_vector": b[:, 0]}, {}, "lora_magnitude"),
        "another kind": (good, {"peft_type": "IA3"}, "peft_type IA3 is not LoRA"),
        "a changed base": (good, {"init_lora_weights": "pissa_niter_4"}, "changed the model"),
        "no number": (good, {"lora_alpha": "x"}, "lora_alpha"),
    }  # fmt: skip
    tensors, config, said = faults[kind]
    save_adapter(tmp_path / "lora", tensors, **config)
    return said


@pytest.mark.parametrize(
    "kind",
    ["a factor that fits nothing", "one factor alone", "a tensor that fits nothing", "ranks",
     "a shape", "a transpose", "DoRA", "a magnitude", "another kind", "a changed base",
     "no number"],
)  # fmt: skip
def test_what_cannot_be_applied_is_refused(tmp_path, kind):
    base_model(tmp_path / "base")
    said = broken(tmp_path, kind)
    with pytest.raises(RecipeError, match=f"r.yml:2: .*{said}"):
        plan(f"merge_method: passthrough\nmodels: [{{model: {tmp_path}/base+{tmp_path}/lora}}]")


def test_what_is_no_adapter_or_no_model_is_said(tmp_path):
    base_model(tmp_path / "base")
    adapter(tmp_path / "lora", 1, SHAPES)
    for model, said in {
        f"{tmp_path}/base+{tmp_path}/base": "expected a LoRA adapter",
        f"{tmp_path}/lora": "is a LoRA adapter .* not a model; write MODEL",
        f"{tmp_path}/base+{tmp_path}/lora+{tmp_path}/lora": "more than one '\\+'",
        f"{tmp_path}/base+{tmp_path}/lora@main": "a local path has no revisions",
    }.items():
        with pytest.raises(RecipeError, match=said):
            plan(f"merge_method: passthrough\nmodels: [{{model: {model}}}]")
    with pytest.raises(CheckpointError, match="no such file"):
        ws.open_zoo(f"{tmp_path}/nothing+{tmp_path}/lora")


@pytest.mark.parametrize("pattern", ["q", r"layers\.\d+\.q", "^layers.0", "layers.0.q"])
def test_patterns_of_alpha(tmp_path, pattern):
    base = base_model(tmp_path / "base", torch.float32)
    a, b = factors(1, 4, SHAPES["layers.0.q"])
    tensors = {"layers.0.q.lora_A.weight": a, "layers.0.q.lora_B.weight": b}
    save_adapter(tmp_path / "lora", tensors, alpha_pattern={"xq": 1, pattern: 3}, use_rslora=True)
    ws.merge(ws.open_zoo(f"{tmp_path}/base+{tmp_path}/lora"), [[1.0]], tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")["layers.0.q.weight"]
    truth = base["layers.0.q.weight"] + 3 / math.sqrt(4) * (b @ a)
    torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)


def test_convolutions(tmp_path):
    """``A`` is a convolution of rank outputs, ``B`` one of a single point."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, 3, 3, generator=generator)
    a, b = (
        torch.randn(2, 5, 3, 3, generator=generator),
        torch.randn(6, 2, 1, 1, generator=generator),
    )
    save_model(tmp_path / "base", {"c.weight": weight})
    tensors = {"c.lora_A.weight": a, "c.lora_B.weight": b}
    save_adapter(tmp_path / "lora", tensors, r=2, lora_alpha=2)
    ws.merge(ws.open_zoo(f"{tmp_path}/base+{tmp_path}/lora"), [[1.0]], tmp_path / "out")
    image = torch.randn(1, 5, 7, 7, generator=generator)
    through = torch.nn.functional.conv2d
    expected = through(image, weight) + through(through(image, a), b)
    found = through(image, load(tmp_path / "out")["c.weight"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_model_whose_path_has_a_plus(tmp_path):
    base_model(tmp_path / "a+b")
    assert len(ws.open_zoo(tmp_path / "a+b").tensors) == 3
    text = f"merge_method: passthrough\nmodels: [{{model: {{model: {{path: '{tmp_path}/a+b'}}}}}}]"
    assert len(plan(text)[0].tensors) == 3
