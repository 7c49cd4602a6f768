"""8-bit weights with scales are read as they are meant; other quantised formats are refused."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import wspace as ws
from tests.checkpoints import load, save_model
from tests.recipes import merged, plan
from wspace.errors import CheckpointError
from wspace.recipes import RecipeError, cost

KINDS = {
    "tensor": ("weight_scale", lambda rows, columns: ()),
    "one": ("weight_scale", lambda rows, columns: (1,)),
    "rows": ("weight_scale", lambda rows, columns: (rows, 1)),
    "flat rows": ("weight_scale", lambda rows, columns: (rows,)),
    "groups": ("weight_scale", lambda rows, columns: (rows, 3)),
    "blocks": ("weight_scale_inv", lambda rows, columns: (-(-rows // 128), -(-columns // 128))),
}


def scaled(seed, kind="blocks", shape=(300, 390), dtype=torch.float8_e4m3fn):
    """An 8-bit matrix with its scales, and what it stands for, in float64."""
    generator = torch.Generator().manual_seed(seed)
    end, sizes = KINDS[kind]
    weight = torch.randn(shape, generator=generator).to(dtype)
    scale = torch.rand(sizes(*shape), generator=generator) * 0.01 + 0.001
    grid = scale.double()
    if kind == "blocks":
        grid = grid.repeat_interleave(128, 0)[: shape[0]].repeat_interleave(128, 1)[:, : shape[1]]
    elif kind == "groups":
        grid = grid.repeat_interleave(shape[1] // 3, 1)
    elif kind == "flat rows":
        grid = grid[:, None]
    return {"a.weight": weight, f"a.{end}": scale}, weight.double() * grid


def model(folder, seed, kind="blocks", **more):
    tensors, truth = scaled(seed, kind, **more)
    norm = torch.randn(7, generator=torch.Generator().manual_seed(seed)).bfloat16()
    config = {"quantization_config": {"quant_method": "fp8"}, "torch_dtype": "bfloat16"}
    save_model(folder, tensors | {"norm.weight": norm, "a.input_scale": torch.ones(())}, config)
    return truth


@pytest.mark.parametrize("kind", KINDS)
def test_a_mean_is_that_of_what_the_weights_stand_for(tmp_path, kind):
    truths = [model(tmp_path / f"m{k}", k, kind) for k in range(3)]
    ws.merge(ws.open_zoo([tmp_path / f"m{k}" for k in range(3)]), [[1 / 3] * 3], tmp_path / "out")
    found = load(tmp_path / "out")
    assert found.keys() == {"a.weight", "norm.weight"}
    assert found["a.weight"].dtype == torch.bfloat16
    truth = sum(truths) / 3
    assert ((found["a.weight"].double() - truth).abs() <= 2**-8 * truth.abs() + 1e-9).all()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_one_model_alone_is_rounded_once(tmp_path, dtype):
    truth = model(tmp_path / "m", 0, dtype=dtype)
    ws.merge(ws.open_zoo(tmp_path / "m"), [[1.0]], tmp_path / "out", dtype="float32")
    found = load(tmp_path / "out")["a.weight"]
    assert found.dtype == torch.float32
    assert torch.equal(found, truth.float())


def test_inner_products_are_those_of_what_the_weights_stand_for(tmp_path):
    truths = [model(tmp_path / f"m{k}", k).flatten().float().double() for k in range(3)]
    zoo = ws.open_zoo([tmp_path / "m0", tmp_path / "m1"], base=tmp_path / "m2", include="a.*")
    rows = torch.stack(truths[:2]) - truths[2]
    torch.testing.assert_close(ws.gram(zoo).total, rows @ rows.T, rtol=1e-6, atol=0)


METHODS = (
    """
merge_method: linear
models:
- {model: M0, parameters: {weight: 0.25}}
- {model: M1, parameters: {weight: 0.75}}
""",
    """
merge_method: slerp
base_model: M0
models: [{model: M1}]
parameters: {t: 0.3}
""",
    """
merge_method: model_stock
base_model: M0
models: [{model: M1}, {model: M2}]
parameters: {filter_wise: true}
""",
)


@pytest.mark.parametrize("text", METHODS, ids=["linear", "slerp", "rows of model_stock"])
def test_recipes_give_the_same_bits_in_chunks_of_any_size(tmp_path, text):
    """The same as of the weights written out in float32, and whatever the memory."""
    shape = (1300, 390)
    for k in range(3):
        truth = model(tmp_path / f"m{k}", k, shape=shape)
        plain = load(tmp_path / f"m{k}")["norm.weight"]
        save_model(tmp_path / f"plain{k}", {"a.weight": truth.float(), "norm.weight": plain})
        text = text.replace(f"M{k}", str(tmp_path / f"m{k}"))
    other = text.replace(f"{tmp_path}/m", f"{tmp_path}/plain")
    expected = merged(f"{other}\ndtype: bfloat16", tmp_path / "expected")
    for memory in ("1GiB", "20MiB"):
        found = merged(text, tmp_path / memory, memory=memory)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
    small = cost(plan(text)[0], memory="20MiB")
    assert small.memory_bytes <= 20 << 20
    stored = sum(load(tmp_path / "m0")[name].nbytes for name in ("a.weight", "norm.weight"))
    assert small.read_bytes < 2 * 3.2 * stored  # the bytes of files, not those of float32


def test_a_llama_of_8_bits_becomes_one_of_16_that_transformers_loads(tmp_path):
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=64,
    )  # fmt: skip
    states = []
    for k in range(2):
        torch.manual_seed(k)
        llama = LlamaForCausalLM(config).bfloat16()
        folder = tmp_path / f"m{k}"
        llama.save_pretrained(folder)
        state = load(folder)
        meant = dict(state)
        for name in [name for name in state if "proj" in name]:
            scale = state[name].float().abs().amax(1, keepdim=True) / 448
            state[name] = (state[name].float() / scale).to(torch.float8_e4m3fn)
            state[f"{name}_scale"] = scale
            meant[name] = state[name].float() * scale
        content = json.loads((folder / "config.json").read_text())
        content["quantization_config"] = {"quant_method": "compressed-tensors"}
        save_model(folder, state, content)
        states.append(meant)
    text = (
        f"merge_method: linear\nmodels: [{{model: {tmp_path}/m0}}, {{model: {tmp_path}/m1}}]\n"
        "parameters: {weight: 1}"
    )
    merged(text, tmp_path / "out")
    content = json.loads((tmp_path / "out/config.json").read_text())
    assert "quantization_config" not in content
    ws.merge(ws.open_zoo([tmp_path / "m0", tmp_path / "m1"]), [[0.5, 0.5]], tmp_path / "plain")
    content = json.loads((tmp_path / "plain/config.json").read_text())
    assert "quantization_config" not in content
    out = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in states[0].items():
        mean = (tensor.double() + states[1][name].double()) / 2
        assert out[name].dtype == torch.bfloat16
        assert ((out[name].double() - mean).abs() <= 2**-8 * mean.abs() + 1e-9).all(), name


FORMATS = {
    "GPTQ": ("gptq", {"a.qweight": torch.zeros(2, 2, dtype=torch.int32)}),
    "AWQ": ("awq", {"a.qweight": torch.zeros(2, 2, dtype=torch.int32)}),
    "bitsandbytes": ("bitsandbytes", {"a.weight": torch.zeros(8, 1, dtype=torch.uint8),
                                      "a.weight.absmax": torch.zeros(2)}),
    "8-bit bitsandbytes": ("bitsandbytes", {"a.weight": torch.zeros(8, 8, dtype=torch.int8),
                                            "a.SCB": torch.zeros(8)}),
    "MXFP4": ("mxfp4", {"a_blocks": torch.zeros(8, 1, dtype=torch.uint8)}),
    "compressed-tensors": ("compressed-tensors",
                           {"a.weight_packed": torch.zeros(2, 2, dtype=torch.int32)}),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_formats_that_cannot_be_averaged_are_refused_by_name(tmp_path, name):
    method, tensors = FORMATS[name]
    tensors["norm.weight"] = torch.ones(2)
    save_model(tmp_path / "m", tensors, {"quantization_config": {"quant_method": method}})
    kind = name.split()[-1]
    with pytest.raises(CheckpointError, match=f"{kind} weights .* cannot be averaged"):
        ws.open_zoo(tmp_path / "m")
    with pytest.raises(RecipeError, match=f"r.yml:2: .*{kind} weights"):
        plan(f"merge_method: passthrough\nmodels: [{{model: {tmp_path}/m}}]")


def test_a_config_is_looked_at_though_another_model_has_the_same_tensors(tmp_path):
    tensors = {"a.weight": torch.zeros(8, 8, dtype=torch.int8), "norm.weight": torch.ones(2)}
    save_model(tmp_path / "buffers", tensors)
    save_model(tmp_path / "hqq", tensors, {"quantization_config": {"quant_method": "hqq"}})
    first = ws.open_zoo(tmp_path / "buffers")
    with pytest.raises(CheckpointError, match="HQQ weights"):
        ws.open_zoo(tmp_path / "hqq")
    assert set(first.members[0].tensors) == set(tensors)


def test_gguf_is_refused_by_name(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m/model-Q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(RecipeError, match="GGUF is quantised"):
        plan(f"merge_method: passthrough\nmodels: [{{model: {tmp_path}/m}}]")
    with pytest.raises(CheckpointError, match="GGUF is quantised"):
        ws.open_zoo(tmp_path / "m")


def test_scales_that_do_not_fit_are_refused(tmp_path):
    tensors, _ = scaled(0)
    tensors["a.weight_scale_inv"] = torch.ones(3, 5)
    save_model(tmp_path / "m", tensors)
    with pytest.raises(CheckpointError, match=r"'a.weight_scale_inv'.* \[3, 5\] do not fit"):
        ws.open_zoo(tmp_path / "m")


def test_the_block_that_a_config_names_counts(tmp_path):
    weight = torch.ones(200, 100).to(torch.float8_e4m3fn)
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [120, 60]}}
    save_model(tmp_path / "m", {"a.weight": weight, "a.weight_scale_inv": scale}, config)
    ws.merge(ws.open_zoo(tmp_path / "m"), [[1.0]], tmp_path / "out")
    found = load(tmp_path / "out")["a.weight"].float()
    truth = scale.repeat_interleave(120, 0)[:200].repeat_interleave(60, 1)[:, :100]
    assert torch.equal(found, truth)


def test_names_that_end_like_scales_are_tensors_like_others(tmp_path):
    tensors = {"a.weight": torch.randn(4, 4), "a.weight_scale": torch.randn(4, 1)}
    save_model(tmp_path / "m", tensors)
    assert {t.name for t in ws.open_zoo(tmp_path / "m").tensors} == tensors.keys()
