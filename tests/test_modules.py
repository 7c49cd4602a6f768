"""Mixes in live modules: what the files would hold, without the files."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import wspace as ws
from tests.zoos import save, zoo_on_disk
from wkernels import arguments
from wkernels.ops import FAST_ERROR
from wspace.errors import DeviceError, MisalignedZooError
from wspace.grams import EXACT

WEIGHTS = [0.5, 1.5, -0.75]


def tiny_llama(seed, base=None):
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=211, max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if base is not None:
        with torch.no_grad():
            for own, other in zip(model.parameters(), base.parameters(), strict=True):
                own.copy_(other + 0.05 * own)
    return model


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """A base and three models with several shards each, as transformers writes them."""
    root = tmp_path_factory.mktemp("llamas")
    base = tiny_llama(0)
    models = [tiny_llama(i + 1, base) for i in range(3)]
    for name, model in zip(("run-0", "run-1", "run-2", "base"), [*models, base], strict=True):
        model.save_pretrained(root / name, max_shard_size="40KB")
    assert len(list((root / "base").glob("*.safetensors"))) > 2
    zoo = ws.open_zoo(f"{root}/run-*", base=root / "base")
    return root, zoo, models, base


def float64_mix(models, base, weights):
    """A module of the mixed state dicts, mixed in float64."""
    states = [model.state_dict() for model in models]
    mixed = {
        name: origin.double()
        + sum(
            weight * (tensors[name].double() - origin.double())
            for weight, tensors in zip(weights, states, strict=True)
        )
        for name, origin in base.state_dict().items()
    }
    module = tiny_llama(0).double()
    module.load_state_dict(mixed)
    return module


def test_a_merged_llama_gives_the_logits_of_the_float64_mix(llamas, tmp_path):
    _, zoo, models, base = llamas
    (out,) = ws.merge(zoo, WEIGHTS, tmp_path / "out", max_shard_size="100KB")
    merged = AutoModelForCausalLM.from_pretrained(out)
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        logits = merged.double()(tokens).logits
        truth = float64_mix(models, base, WEIGHTS)(tokens).logits
    # weights are rounded to float32, once: a relative 6e-8 each, through two layers
    assert (logits - truth).abs().max() <= 1e-5 * truth.abs().max()
    assert (logits - base.double()(tokens).logits).abs().max() > 1e-2 * truth.abs().max()
    base.float()


def test_mix_into_loads_what_merge_writes(llamas, tmp_path):
    _, zoo, _, _ = llamas
    (out,) = ws.merge(zoo, WEIGHTS, tmp_path / "out")
    written = load_file(out / "model.safetensors")
    module = tiny_llama(9)
    assert ws.mix_into(module, zoo, torch.tensor(WEIGHTS)) == ()
    resident = tiny_llama(10)
    assert ws.ResidentZoo(zoo).mix_into(resident, WEIGHTS) == ()
    for name, tensor in written.items():
        assert torch.equal(module.state_dict()[name], tensor)
        assert torch.equal(resident.state_dict()[name], tensor)


def test_mix_into_rounds_once_to_the_modules_type(llamas):
    _, zoo, models, base = llamas
    module = tiny_llama(9).bfloat16()
    ws.mix_into(module, zoo, WEIGHTS)
    truth = float64_mix(models, base, WEIGHTS).state_dict()
    for name, tensor in module.state_dict().items():
        bound = torch.finfo(torch.bfloat16).eps * 0.5 * truth[name].abs() + 1e-6
        assert ((tensor.double() - truth[name]).abs() <= bound).all()


def test_what_the_zoo_lacks_stays_and_is_named(llamas):
    root, _, _, _ = llamas
    zoo = ws.open_zoo(f"{root}/run-*", base=root / "base", exclude=["lm_head.*", "*.mlp.*"])
    module = tiny_llama(9)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    untouched = ws.mix_into(module, zoo, WEIGHTS)
    assert "lm_head.weight" in untouched
    assert len(untouched) == 1 + 2 * 3
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]) is (name in untouched)


def test_a_module_of_another_shape_is_refused(llamas):
    _, zoo, _, _ = llamas
    with pytest.raises(MisalignedZooError, match="the module has no such tensor"):
        ws.mix_into(torch.nn.Linear(2, 2), zoo, WEIGHTS)
    module = tiny_llama(9)
    module.lm_head = torch.nn.Linear(32, 5, bias=False)
    with pytest.raises(MisalignedZooError, match=r"'lm_head.weight'.*shape \[5, 32\]"):
        ws.mix_into(module, zoo, WEIGHTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_resident_zoo_is_the_zoo(tmp_path, dtype):
    zoo_on_disk(tmp_path, dtype=dtype, shards=2)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    resident = ws.ResidentZoo(zoo)
    weights = [[0.25, 0.25, 0.5], [0, 0, 0], [3, -1, 0], [0, 0, 1]]
    outs = ws.merge(zoo, weights, [tmp_path / f"mix-{j}" for j in range(4)])
    for mixed, out in zip(resident.mix(weights), outs, strict=True):
        written = load_file(out / "model.safetensors")
        assert mixed.keys() == written.keys()
        assert all(torch.equal(mixed[name], written[name]) for name in written)
    difference = resident.gram().total - ws.gram(zoo).total
    # other blocks, so other roundings, in float64
    assert difference.abs().max() <= 1e-12 * ws.gram(zoo).total.abs().max()


def test_a_fast_gram_is_refined_by_its_own_error(tmp_path, monkeypatch):
    """Of resident rows; on the kernels' GPU path, interpreted."""
    base = torch.randn(500, generator=torch.Generator().manual_seed(0))
    steps = torch.randn((3, 500), generator=torch.Generator().manual_seed(1))
    rows = [base + 1e-2 * step for step in (steps[0], steps[1], steps[0] + 1e-4 * steps[2])]
    for name, row in zip(("run-0", "run-1", "run-2", "base"), [*rows, base], strict=True):
        save(tmp_path / name, {"weight": row})
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    resident = ws.ResidentZoo(zoo)
    assert resident.gram(fast=True).error == EXACT  # there is no other on the CPU
    monkeypatch.setattr(arguments, "on_gpu", lambda rows: True)
    gram = resident.gram(fast=True)
    monkeypatch.undo()
    assert gram.error == FAST_ERROR
    raw = ws.distances(gram)
    truth = (rows[0].double() - rows[2].double()).norm()
    assert abs(raw[0, 2] - truth) > 1e-4 * truth
    refined = ws.refine(raw, gram, zoo)
    assert abs(refined[0, 2] - truth) <= 1e-12 * truth
    assert refined[0, 1] == raw[0, 1]


def test_a_gpu_that_is_not_there(llamas, monkeypatch):
    _, zoo, _, _ = llamas
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for ask in (lambda: ws.gram(zoo, device="cuda"), lambda: ws.ResidentZoo(zoo, "cuda:1")):
        with pytest.raises(DeviceError, match="torch finds no GPU; use --device cpu"):
            ask()
    with pytest.raises(DeviceError, match="expected auto, cpu, cuda, cuda:N"):
        ws.gram(zoo, device="tpu")
