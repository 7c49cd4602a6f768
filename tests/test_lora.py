"""Adapters alone as a zoo: inner products and mixes of what they add, from their factors."""

import json

import numpy as np
import pytest
import torch

import wspace as ws
from tests.adapters import adapter, factors, save_adapter
from tests.checkpoints import load, save_model
from tests.test_adapters import PEFT
from wspace.cli.main import main
from wspace.derived.adapters import open_adapter
from wspace.errors import BudgetError, CheckpointError, MisalignedZooError, NonFiniteError
from wspace.zoo import Zoo

SHAPES = {"layers.0.q": (30, 50), "layers.1.q": (64, 20), "layers.1.v": (7, 64)}


@pytest.fixture
def zoo(tmp_path):
    """Three adapters of different ranks and scales; the last lacks a module."""
    added = []
    for k, alpha in enumerate((8, 3, 16)):
        shapes = dict(list(SHAPES.items())[: 3 - (k == 2)])
        added.append(adapter(tmp_path / f"lora-{k}", k + 1, shapes, rank=2 + k, alpha=alpha))
    return tmp_path, added


def rows(added):
    """What each adapter adds, as vectors, tensor by tensor."""
    names = [f"{module}.weight" for module in SHAPES]
    zeros = {f"{module}.weight": torch.zeros(shape).double() for module, shape in SHAPES.items()}
    return {
        name: torch.stack([a.get(name, zeros[name]).flatten() for a in added]) for name in names
    }


def test_inner_products_are_those_of_the_updates(zoo):
    root, added = zoo
    gram = ws.gram(ws.open_zoo(f"{root}/lora-*"))
    truth = rows(added)
    assert gram.has_base and gram.members == ("lora-0", "lora-1", "lora-2")
    assert gram.per_tensor is not None
    for name, found in zip(gram.tensors, gram.per_tensor, strict=True):
        torch.testing.assert_close(found, truth[name] @ truth[name].T, rtol=1e-9, atol=1e-9)
    whole = torch.cat(list(truth.values()), dim=1)
    torch.testing.assert_close(gram.total, whole @ whole.T, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ws.distances(gram), torch.cdist(whole, whole), rtol=1e-6, atol=1e-6)


def test_the_factors_give_what_the_updates_written_out_give(zoo):
    """The streaming passes see each update as a tensor: another way to the same numbers."""
    root, _ = zoo
    found = ws.open_zoo(f"{root}/lora-*")
    plain = Zoo(found.members, None, found.tensors, (), {})
    torch.testing.assert_close(ws.gram(found).total, ws.gram(plain).total, rtol=1e-5, atol=1e-6)
    distances = ws.pairwise_distances(found)
    torch.testing.assert_close(ws.distances(ws.gram(found)), distances, rtol=1e-5, atol=1e-5)


def test_factors_that_differ_and_updates_that_do_not(tmp_path):
    """``B A = (B Q) (Q^-1 A)``: only the product counts."""
    a, b = factors(1, 4, (30, 50))
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0]
    save_adapter(tmp_path / "x", {"m.lora_A.weight": a, "m.lora_B.weight": b})
    save_adapter(tmp_path / "y", {"m.lora_A.weight": turn.T @ a, "m.lora_B.weight": b @ turn})
    cosines = ws.cosines(ws.gram(ws.open_zoo([tmp_path / "x", tmp_path / "y"])))
    torch.testing.assert_close(cosines, torch.ones(2, 2).double(), rtol=0, atol=1e-6)


def updates_of(folder):
    """What an adapter on disk adds, in float64."""
    found = {}
    for name, update in open_adapter(folder).updates.items():
        product = update.left.whole(np.float64) @ update.right.whole(np.float64)
        found[name] = torch.from_numpy(update.scale * product)
    return found


@pytest.mark.parametrize("weights", [[0.5, 0.25, 2], [0, -1, 0], [1, 0, 1]])
def test_a_mix_is_one_adapter_with_no_cross_terms(zoo, tmp_path, weights):
    root, added = zoo
    ws.merge(ws.open_zoo(f"{root}/lora-*"), weights, tmp_path / "out")
    found = updates_of(tmp_path / "out")
    for name, updates in rows(added).items():
        truth = (torch.tensor(weights).double() @ updates).view(SHAPES[name[:-7]])
        if truth.any():
            torch.testing.assert_close(found[name], truth, rtol=1e-5, atol=1e-6)
        else:
            assert name not in found
    assert (tmp_path / "out/wspace.json").exists()
    # the adapter is one like any other, and on its model it is the mix of the models
    base = {f"{m}.weight": torch.randn(shape).double() for m, shape in SHAPES.items()}
    save_model(tmp_path / "base", base)
    ws.merge(ws.open_zoo(f"{tmp_path}/base+{tmp_path}/out"), [1.0], tmp_path / "one")
    models = ws.open_zoo(f"{root}/lora-*", base=tmp_path / "base")
    assert not models.adapters
    ws.merge(models, weights, tmp_path / "other")
    one, other = load(tmp_path / "one"), load(tmp_path / "other")
    for name in base:
        torch.testing.assert_close(one[name], other[name], rtol=1e-6, atol=1e-6)


def test_types_and_config_of_a_mix(zoo, tmp_path):
    root, _ = zoo
    opened = ws.open_zoo(f"{root}/lora-*")
    ws.merge(
        opened, [[1, 1, 1], [0, 0, 1]], [tmp_path / "all", tmp_path / "last"], dtype="bfloat16"
    )
    for out, ranks in (("all", {9, 5}), ("last", {4})):
        tensors = load(tmp_path / out)
        assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
        assert {t.shape[0] for name, t in tensors.items() if "lora_A" in name} == ranks
    config = json.loads((tmp_path / "all/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (9, 9)
    assert config["rank_pattern"] == config["alpha_pattern"] == {"layers.1.v": 5}
    assert config["target_modules"] == sorted(SHAPES)


def test_turned_factors_and_embeddings(tmp_path):
    """GPT-2's own adapter twice, with 1/4 and 3/4 of it: the same adapter."""
    for k in range(2):
        (tmp_path / f"x{k}").mkdir()
        config = json.loads((PEFT / "gpt2-lora/adapter_config.json").read_text())
        tensors = {
            name.removeprefix("base_model.model."): tensor
            for name, tensor in load(PEFT / "gpt2-lora").items()
            if "lora_" in name
        }
        save_adapter(tmp_path / f"x{k}", tensors, **config | {"bias": "none"})
    ws.merge(ws.open_zoo(f"{tmp_path}/x*"), [0.25, 0.75], tmp_path / "out")
    expected = updates_of(tmp_path / "x0")
    for name, update in updates_of(tmp_path / "out").items():
        torch.testing.assert_close(update, expected[name], rtol=1e-6, atol=1e-7)
    embedding = {"e.lora_embedding_A": torch.randn(2, 9), "e.lora_embedding_B": torch.randn(5, 2)}
    save_adapter(tmp_path / "e", embedding, r=2)
    ws.merge(ws.open_zoo(tmp_path / "e"), [0.5], tmp_path / "half")
    full, half = updates_of(tmp_path / "e")["e.weight"], updates_of(tmp_path / "half")["e.weight"]
    assert full.shape == (9, 5)
    torch.testing.assert_close(half, full / 2)


def test_the_command_line(zoo, tmp_path, capsys):
    root, added = zoo
    models = [f"{root}/lora-{k}" for k in range(3)]
    assert main(["distances", *models, "--metric", "cosine", "--format", "json", "--quiet"]) in (
        0,
        None,
    )
    whole = torch.cat(list(rows(added).values()), dim=1)
    unit = whole / whole.norm(dim=1, keepdim=True)
    table = json.loads(capsys.readouterr().out)
    found = torch.tensor([[row[f"lora-{k}"] for k in range(3)] for row in table]).double()
    torch.testing.assert_close(found, unit @ unit.T, rtol=1e-6, atol=1e-6)
    main(["cluster", *models, "-k", "2", "--quiet"])
    main(["merge", *models, "--weights", "0.5,0.5,0.5", "-o", str(tmp_path / "out"), "--quiet"])
    assert (tmp_path / "out/adapter_model.safetensors").exists()


def test_what_cannot_be_is_refused(zoo, tmp_path):
    root, _ = zoo
    save_model(tmp_path / "base", {f"{m}.weight": torch.randn(s) for m, s in SHAPES.items()})
    with pytest.raises(MisalignedZooError, match=r"is a LoRA adapter and .* is not"):
        ws.open_zoo([root / "lora-0", tmp_path / "base"])
    opened = ws.open_zoo(f"{root}/lora-*")
    with pytest.raises(MisalignedZooError, match="open the zoo with the base"):
        ws.mix_into(torch.nn.Linear(2, 2), opened, [1, 1, 1])
    with pytest.raises(MisalignedZooError, match="leave nothing to write"):
        ws.merge(opened, [0, 0, 0], tmp_path / "out")
    with pytest.raises(BudgetError, match=r"factors of 'layers.0.q.weight' in 3 adapters take"):
        ws.gram(opened, memory=1000)
    adapter(tmp_path / "other", 1, {"layers.0.q": (30, 51)})
    with pytest.raises(CheckpointError, match="adapters of different models"):
        ws.open_zoo([root / "lora-0", tmp_path / "other"])
    whole = ws.open_zoo(PEFT / "llama-lora")
    assert whole.left_out["lm_head.weight"] == "a whole tensor, not an update"
    with pytest.raises(MisalignedZooError, match="holds whole tensors"):
        ws.merge(whole, [1], tmp_path / "out")
    a, b = factors(1, 4, (3, 5))
    b[0, 0] = torch.nan
    save_adapter(tmp_path / "nan", {"m.lora_A.weight": a, "m.lora_B.weight": b})
    with pytest.raises(NonFiniteError, match="NaN or Inf"):
        ws.gram(ws.open_zoo(tmp_path / "nan"))
    with pytest.raises(NonFiniteError, match=r"lora_B of 'm.weight' has NaN"):
        ws.merge(ws.open_zoo(tmp_path / "nan"), [1], tmp_path / "out")
    turned = {"m.lora_A.weight": torch.randn(2, 5), "m.lora_B.weight": torch.randn(5, 2)}
    save_adapter(tmp_path / "t0", turned, fan_in_fan_out=True)
    save_adapter(tmp_path / "t1", turned)
    with pytest.raises(MisalignedZooError, match="stored turned"):
        ws.merge(ws.open_zoo([tmp_path / "t0", tmp_path / "t1"]), [1, 1], tmp_path / "out")
    assert not (tmp_path / "out").exists()
