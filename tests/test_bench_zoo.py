"""The zoos that the benchmarks and the README's examples are made of are real checkpoints."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from bench import zoo


def parameters_of(folder):
    tensors = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(shard))
    return tensors


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    out = tmp_path_factory.mktemp("zoo") / "llama"
    assert zoo.main(["llama", str(out), "--models", "2", "--mixed-shards"]) == 0
    return out


@pytest.mark.parametrize(("name", "shards"), [("base", 4), ("model-0", 4), ("model-1", 5)])
def test_llama_loads_in_transformers_from_its_shards(llama, name, shards):
    from transformers import AutoModelForCausalLM

    folder = llama / name
    assert len(list(folder.glob("*.safetensors"))) == shards
    assert (folder / "model.safetensors.index.json").exists()
    module = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    stored = parameters_of(folder)
    assert stored.keys() == dict(module.named_parameters()).keys()
    for key, parameter in module.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert torch.equal(parameter, stored[key]), key


def test_llama_models_are_one_step_from_the_base(llama):
    base, model = parameters_of(llama / "base"), parameters_of(llama / "model-0")
    key = "model.layers.0.mlp.up_proj.weight"
    distance = (model[key].double() - base[key].double()).norm() / base[key].double().norm()
    # the step is 1e-3, and half of a bfloat16's last place is up to 2e-3 of the larger elements
    assert 5e-4 < distance < 3e-3


def test_llama_is_the_same_again_for_a_seed(llama, tmp_path):
    list(zoo.make_llama(tmp_path / "same", models=1))
    list(zoo.make_llama(tmp_path / "other", models=1, seed=1))
    first = parameters_of(llama / "model-0")
    same, other = (
        parameters_of(tmp_path / "same/model-0"),
        parameters_of(tmp_path / "other/model-0"),
    )
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_minilm_models_form_two_groups_around_the_base(tmp_path, capsys):
    assert zoo.main(["minilm", str(tmp_path / "zoo")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0].rsplit("/", 1)[1] for line in lines] == [
        "base", "model-0", "model-1", "model-2", "model-3",
    ]  # fmt: skip
    base = parameters_of(tmp_path / "zoo/base")
    deltas = []
    for i in range(4):
        model = parameters_of(tmp_path / f"zoo/model-{i}")
        assert model.keys() == base.keys()
        assert torch.equal(model["embeddings.position_ids"], base["embeddings.position_ids"])
        floats = [key for key in base if base[key].is_floating_point()]
        deltas.append(torch.cat([(model[key] - base[key]).flatten() for key in floats]))
    groups = (tmp_path / "zoo/labels.csv").read_text().splitlines()
    assert groups[:3] == ["model,label", "model-0,even", "model-1,odd"]
    deltas = torch.nn.functional.normalize(torch.stack(deltas), dim=1)
    cosines = deltas @ deltas.T
    group = torch.tensor([0, 1, 0, 1])
    same = group[:, None] == group
    expected = torch.where(same, 0.64, 0.0).fill_diagonal_(1)
    torch.testing.assert_close(cosines, expected, atol=0.01, rtol=0)


def test_minilm_model_loads_in_transformers(tmp_path):
    from transformers import AutoModel, AutoTokenizer

    list(zoo.make_minilm(tmp_path, models=1))
    module = AutoModel.from_pretrained(tmp_path / "model-0")
    text = AutoTokenizer.from_pretrained(tmp_path / "model-0")("weights", return_tensors="pt")
    assert module(**text).last_hidden_state.isfinite().all()


def test_a_folder_in_use_is_refused(llama, capsys):
    assert zoo.main(["llama", str(llama)]) == 1
    assert capsys.readouterr().err == f"error: {llama}: the folder is not empty\n"


def test_too_many_shards_are_refused(tmp_path, capsys):
    assert zoo.main(["llama", str(tmp_path / "zoo"), "--shards", "100"]) == 1
    assert "cannot be cut into 100 shards" in capsys.readouterr().err
