"""Models of many architectures, merged by the names of their tensors and loaded by transformers."""

import json

import pytest
import torch
import transformers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from tests.recipes import merged, plan
from wspace.recipes import RecipeError

DECODER = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32,
}  # fmt: skip
BERT = {
    "vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip

FAMILIES = {
    "llama": (LlamaForCausalLM, lambda: LlamaConfig(**DECODER)),
    "qwen2": (Qwen2ForCausalLM, lambda: Qwen2Config(**DECODER, tie_word_embeddings=True)),
    "qwen3": (Qwen3ForCausalLM, lambda: Qwen3Config(**DECODER, head_dim=8)),
    "mixtral": (MixtralForCausalLM, lambda: MixtralConfig(**DECODER, num_local_experts=3)),
    "gpt2": (GPT2LMHeadModel, lambda: GPT2Config(vocab_size=48, n_embd=16, n_layer=3, n_head=2,
                                                 n_positions=32)),
    "bert": (BertForMaskedLM, lambda: BertConfig(**BERT)),
    "t5": (T5ForConditionalGeneration, lambda: T5Config(vocab_size=48, d_model=16, d_kv=8, d_ff=24,
                                                        num_layers=3, num_heads=2)),
    "vit": (ViTForImageClassification, lambda: ViTConfig(**VISION, num_labels=3)),
    "llava": (LlavaForConditionalGeneration, lambda: LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION), text_config=LlamaConfig(**DECODER),
        image_token_index=47)),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory):
    """Folders ``FAMILY/base``, ``FAMILY/m0`` and ``FAMILY/m1``; their modules."""
    root = tmp_path_factory.mktemp("models")
    transformers.utils.logging.disable_progress_bar()
    made = {}
    for family, (kind, config) in FAMILIES.items():
        torch.manual_seed(0)
        module = kind(config())
        origin = [parameter.detach().clone() for parameter in module.parameters()]
        made[family] = {}
        for name in ("base", "m0", "m1"):
            with torch.no_grad():
                for parameter, start in zip(module.parameters(), origin, strict=True):
                    step = 0 if name == "base" else 0.05
                    parameter.copy_(start + step * torch.randn_like(start))
            module.save_pretrained(root / family / name)
            made[family][name] = {k: t.detach().clone() for k, t in module.state_dict().items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield made


def load(family, folder):
    module, report = FAMILIES[family][0].from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return module.eval()


def inputs(family):
    ids = torch.arange(6)[None]
    if family == "vit":
        return {"pixel_values": torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 8, 8)}
    if family == "t5":
        return {"input_ids": ids, "decoder_input_ids": ids}
    if family == "llava":
        image = torch.linspace(-1, 1, 3 * 64).reshape(1, 3, 8, 8)
        return {"input_ids": torch.tensor([[1, *[47] * 4, 2]]), "pixel_values": image}
    return {"input_ids": ids}


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_by_name_and_loaded(models, tmp_path, family):
    text = (
        f"merge_method: task_arithmetic\nbase_model: {family}/base\n"
        f"models: [{{model: {family}/m0}}, {{model: {family}/m1}}]\nparameters: {{weight: 0.5}}\n"
    )
    merged(text, tmp_path / "out")
    module = load(family, tmp_path / "out")
    state = module.state_dict()
    zoo = models[family]
    assert state.keys() == zoo["m0"].keys()
    for key, tensor in state.items():
        if tensor.is_floating_point():
            mean = (zoo["m0"][key].double() + zoo["m1"][key].double()) / 2
            torch.testing.assert_close(tensor.double(), mean, rtol=1e-6, atol=1e-7, msg=key)
        else:
            assert torch.equal(tensor, zoo["base"][key]), key
    with torch.no_grad():
        assert module(**inputs(family)).logits.isfinite().all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "qwen2", "mixtral"])
def test_layers_are_stacked(models, tmp_path, family):
    text = (
        "merge_method: passthrough\nslices:\n"
        f"  - sources: [{{model: {family}/m0, layer_range: [0, 2]}}]\n"
        f"  - sources: [{{model: {family}/m1, layer_range: [0, 3]}}]\n"
    )
    merged(text, tmp_path / "out")
    module = load(family, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("num_hidden_layers", config.get("n_layer")) == 5
    if "layer_types" in config:
        assert len(config["layer_types"]) == 5
    zoo, state = models[family], module.state_dict()
    prefix = {"gpt2": "transformer.h", "bert": "bert.encoder.layer"}.get(family, "model.layers")
    layers = 0
    for key, tensor in state.items():
        if key.startswith(f"{prefix}."):
            number, rest = key[len(prefix) + 1 :].split(".", 1)
            k = int(number)
            source = zoo["m0"] if k < 2 else zoo["m1"]
            assert torch.equal(tensor, source[f"{prefix}.{k if k < 2 else k - 2}.{rest}"]), key
            layers = max(layers, k + 1)
    assert layers == 5
    first = {"gpt2": "transformer.wte.weight", "bert": "bert.embeddings.word_embeddings.weight"}
    embeddings = first.get(family, "model.embed_tokens.weight")
    assert torch.equal(state[embeddings], zoo["m0"][embeddings])
    with torch.no_grad():
        assert module(**inputs(family)).logits.isfinite().all()


def test_one_stack_of_a_vision_language_model_is_cut(models, tmp_path):
    """The language model loses a layer; the vision tower is merged whole."""
    text = """\
merge_method: passthrough
modules:
  language_model:
    slices:
      - sources: [{model: llava/m0, layer_range: [0, 1]}]
      - sources: [{model: llava/m0, layer_range: [2, 3]}]
  vision_tower:
    models: [{model: llava/m1}]
"""
    merged(text, tmp_path / "out")
    module = load("llava", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == 2
    assert config["vision_config"]["num_hidden_layers"] == 3
    zoo, state = models["llava"], module.state_dict()
    language = "model.language_model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(state[language.format(1)], zoo["m0"][language.format(2)])
    towers = [key for key in state if "vision_tower" in key and state[key].is_floating_point()]
    assert towers and all(torch.equal(state[key], zoo["m1"][key]) for key in towers)


def test_models_of_other_kinds_are_refused(models):
    with pytest.raises(RecipeError) as raised:
        plan("merge_method: linear\nmodels: [{model: llama/m0}, {model: gpt2/m0}]\n"
             "parameters: {weight: 1}\n")  # fmt: skip
    assert any("has no tensor" in line for line in raised.value.problems)
    text = "merge_method: passthrough\nslices: [{sources: [{model: t5/m0, layer_range: [0, 1]}]}]"
    with pytest.raises(RecipeError, match="slices need one list of layers") as raised:
        plan(text)
    assert "decoder.block (3 layers)" in str(raised.value)
