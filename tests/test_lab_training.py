"""One training: BitFit's parameters, early stopping, accumulation, and going on inside a model."""

import dataclasses

import pytest
import torch

from tests.lab_base import save_base, save_data
from wspace.lab import training as lab_training
from wspace.lab.data import load_tasks
from wspace.lab.encoders import EncoderError, open_encoder
from wspace.lab.settings import Training, load_settings
from wspace.lab.training import TrainingError, bitfit, train


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    root = tmp_path_factory.mktemp("training")
    save_base(root / "base")
    save_data(root / "data", {"snli": "nli"}, pair=("snli",))
    settings = load_settings({"name": "t", "tasks": ["snli"], "data": str(root / "data")})
    return open_encoder(str(root / "base"), device="cpu", bf16="no"), load_tasks(settings)["snli"]


FAST = Training(batch=8, epochs=2, learning_rate=3e-3, patience=None)


def trained(lab, seed=0, folder=None, **changes):
    encoder, task = lab
    model = encoder.fresh(seed, len(task.labels), dropout=changes.get("dropout"))
    result = train(model, encoder, task, dataclasses.replace(FAST, **changes), seed, folder=folder)
    return result, {name: tensor.detach() for name, tensor in model.named_parameters()}


def test_full_fine_tuning_moves_everything_and_learns(lab):
    result, state = trained(lab, epochs=8)
    assert result.status == "done" and result.steps == 48 and result.rows == 48
    assert result.test["accuracy"] > 0.8 > result.base_rate
    # rows of words that no text has stay; all other tensors move
    moved = [n for n, t in lab[0].state.items() if not torch.equal(t, state[f"encoder.{n}"])]
    assert len(moved) == len(lab[0].state)


def test_bitfit_moves_biases_alone_and_shares_the_head(lab):
    encoder, task = lab
    before = encoder.fresh(5, 2)
    result = bitfit(encoder, encoder.state, task, FAST, 5)
    assert result.status == "done"
    model = encoder.fresh(5, 2)
    for (name, one), (_, two) in zip(
        before.named_parameters(), model.named_parameters(), strict=True
    ):
        assert torch.equal(one, two), f"{name}: a seed is one head"
    train(model, encoder, task, dataclasses.replace(FAST, method="bitfit"), 5)
    for name, tensor in encoder.state.items():
        same = torch.equal(tensor, dict(model.encoder.named_parameters())[name])
        # a key's bias adds the same to all scores of a query: softmax does not see it
        assert same != ("bias" in name) or "key.bias" in name, name


def test_seeds_differ_and_repeat(lab):
    one, two, again = (trained(lab, seed)[1] for seed in (0, 1, 0))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["classifier.1.weight"], two["classifier.1.weight"])


def test_training_stops_when_nothing_is_gained(lab):
    # a rate of nothing never gains: the first epoch sets the best, two more are waited for
    result, _ = trained(lab, epochs=9, patience=2, learning_rate=1e-12)
    assert result.steps == 3 * 6
    longer, _ = trained(lab, epochs=9, patience=None, learning_rate=1e-12)
    assert longer.steps == 9 * 6


def test_accumulated_batches_are_one_step(lab):
    whole, one = trained(lab, dropout=0.0, epochs=1)
    parts, two = trained(lab, dropout=0.0, epochs=1, accumulate=2)
    assert whole.steps == parts.steps == 6
    # where a gradient is nearly 0 its rounding decides a step of Adam: so not element by element
    start = dict(lab[0].fresh(0, 2).named_parameters())
    name = "classifier.1.weight"
    moved = (one[name] - start[name]).norm()
    assert (one[name] - two[name]).norm() < 0.05 * moved
    other, three = trained(lab, dropout=0.0, epochs=1, batch=4)
    assert other.steps == 12 and (one[name] - three[name]).norm() > 0.2 * moved
    with pytest.raises(TrainingError, match="batch 8 is no multiple of 3"):
        trained(lab, accumulate=3)


def test_a_training_goes_on_from_its_checkpoint(lab, tmp_path, monkeypatch):
    """Stopped between two checkpoints, it ends with the weights of one that was not."""
    whole, one = trained(lab, folder=tmp_path / "whole", checkpoint_steps=5, epochs=3)
    watch = lab_training._watch

    def stops(progress):
        made = watch(progress)
        step = made.on_step_end

        def ends(args, state, control, **kwargs):
            step(args, state, control, **kwargs)
            if state.global_step == 8:
                raise KeyboardInterrupt

        made.on_step_end = ends
        return made

    monkeypatch.setattr(lab_training, "_watch", stops)
    with pytest.raises(KeyboardInterrupt):
        trained(lab, folder=tmp_path / "part", checkpoint_steps=5, epochs=3)
    monkeypatch.undo()
    steps = []
    encoder, task = lab
    model = encoder.fresh(0, 2)
    rest = train(
        model, encoder, task, dataclasses.replace(FAST, checkpoint_steps=5, epochs=3), 0,
        folder=tmp_path / "part", progress=lambda done, total: steps.append(done),
    )  # fmt: skip
    assert steps[0] == 6 and rest.steps == whole.steps == 18
    two = dict(model.named_parameters())
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_base_that_is_no_encoder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(EncoderError, match="not a model that transformers loads"):
        open_encoder(str(tmp_path), device="cpu")
