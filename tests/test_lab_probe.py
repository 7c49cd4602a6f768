"""The generalized loss against scikit-learn, and that each number is made once."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import wspace as ws
from tests.lab_base import save_base, save_data
from wspace.lab.data import load_tasks
from wspace.lab.encoders import open_encoder
from wspace.lab.evaluation import Evaluator
from wspace.lab.points import Direction, Point, origin, vertex
from wspace.lab.probe import ProbeError, fit_probe
from wspace.lab.settings import Probe, load_settings


def blobs(n, classes, hidden=6, seed=0):
    draw = np.random.default_rng(seed)
    y = draw.integers(0, classes, n)
    centers = np.random.default_rng(7).normal(0, 1, (classes, hidden))
    scales = np.array([1, 10, 0.1, 1, 1, 1])[:hidden]
    return ((centers[y] + draw.normal(0, 1.2, (n, hidden))) * scales).astype(np.float32), y


@pytest.mark.parametrize("classes", [2, 5])
def test_the_linear_probe_is_logistic_regression(classes):
    from sklearn.linear_model import LogisticRegression

    (x, y), (other, answers) = blobs(300, classes), blobs(200, classes, seed=1)
    l2 = 1e-2
    found = fit_probe(x, y, other, answers, classes, l2)
    mean, spread = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    model = LogisticRegression(C=1 / (l2 * len(x)), tol=1e-10, max_iter=10000)
    chances = model.fit((x - mean) / spread, y).predict_proba((other - mean) / spread)
    if classes == 2:  # one row of weights there, two here: the same function at half the penalty
        model = LogisticRegression(C=2 / (l2 * len(x)), tol=1e-10, max_iter=10000)
        chances = model.fit((x - mean) / spread, y).predict_proba((other - mean) / spread)
    loss = -np.log(chances[np.arange(len(answers)), answers]).mean()
    assert found.converged and found.loss == pytest.approx(loss, rel=1e-5)
    assert found.accuracy == pytest.approx((chances.argmax(1) == answers).mean())
    assert found == fit_probe(x, y, other, answers, classes, l2)


def test_scaled_features_have_the_same_loss():
    (x, y), (other, answers) = blobs(200, 3), blobs(100, 3, seed=1)
    plain = fit_probe(x, y, other, answers, 3)
    scaled = fit_probe(x * 1024, y, other * 1024, answers, 3)
    assert scaled.loss == pytest.approx(plain.loss, rel=1e-6)


def test_features_that_are_not_finite_and_labels_out_of_range():
    (x, y), (other, answers) = blobs(50, 2), blobs(20, 2, seed=1)
    broken = x.copy()
    broken[3, 2] = np.inf
    found = fit_probe(broken, y, other, answers, 2)
    assert math.isnan(found.loss) and math.isnan(found.accuracy) and not found.converged
    with pytest.raises(ProbeError, match="expected labels from 0 to 1"):
        fit_probe(x, y + 1, other, answers, 2)


def test_a_hidden_layer_learns_what_a_line_cannot():
    draw = np.random.default_rng(0)
    x = draw.normal(0, 1, (400, 2)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    wide = np.concatenate([x, draw.normal(0, 1, (400, 14)).astype(np.float32)], axis=1)
    parts = wide[:300], y[:300], wide[300:], y[300:], 2
    assert fit_probe(*parts, 1e-2).accuracy < 0.65
    mlp = fit_probe(*parts, 1e-3, kind="mlp")
    assert mlp.accuracy > 0.8 and mlp == fit_probe(*parts, 1e-3, kind="mlp")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """An encoder, two models beside it, and their evaluator's parts."""
    root = tmp_path_factory.mktemp("probe")
    save_base(root / "base")
    for k in range(2):
        save_base(root / f"model-{k}", seed=k + 1)
    save_data(root / "data", {"snli": "nli", "sst2": "sentiment"})
    settings = load_settings(
        {"name": "t", "tasks": ["snli", "sst2"], "data": str(root / "data"), "base": str(root)}
    )
    encoder = open_encoder(str(root / "base"), device="cpu", bf16="no")
    resident = ws.ResidentZoo(ws.open_zoo(str(root / "model-*"), base=root / "base"))
    return encoder, resident, load_tasks(settings)


def test_losses_are_those_of_the_mixed_model_and_made_once(lab, tmp_path):
    encoder, resident, tasks = lab
    settings = Probe(train_rows=24, test_rows=16)
    names = ["a", "b", "base"]
    cache = tmp_path / "losses.jsonl"
    one = Evaluator(encoder, resident, tasks, settings, cache, identities=names)
    wanted = [Point((0.3, 0.6)), vertex(2, 1), origin(2), Point((0.3, 0.6))]
    found = one.losses(wanted, ["snli", "sst2"])
    assert one.forward_passes == 6 and found[0] == found[3]
    (state,) = resident.mix([[0.3, 0.6]])
    module = encoder.module(state)
    train, test, _ = one._encoded("snli")
    x = [encoder.features(module, part) for part in (train, test)]
    assert found[0]["snli"] == fit_probe(x[0], train.labels, x[1], test.labels, 2)
    assert (found[0]["snli"].n_train, found[0]["snli"].n_test) == (24, 16)
    # another evaluator, another run: nothing is computed
    again = Evaluator(encoder, resident, tasks, settings, cache, identities=names)
    assert again.losses(wanted, ["snli", "sst2"]) == found and again.forward_passes == 0
    # other models, rows, penalty or direction are other numbers
    assert one.key(vertex(2, 0), "snli") != one.key(vertex(2, 1), "snli")
    assert one.key(wanted[0], "snli") != one.key(wanted[0], "sst2")
    pushed = dataclasses.replace(wanted[0], direction=Direction(0, 1.0))
    assert one.key(pushed, "snli") != one.key(wanted[0], "snli")
    stronger = Evaluator(encoder, resident, tasks, Probe(l2=1.0), identities=names)
    assert stronger.key(wanted[0], "snli") != one.key(wanted[0], "snli")


def test_a_kept_line_cut_short_is_made_again(lab, tmp_path):
    encoder, resident, tasks = lab
    cache = tmp_path / "losses.jsonl"
    settings = Probe(train_rows=24, test_rows=16)
    names = ["a", "b", "base"]
    one = Evaluator(encoder, resident, tasks, settings, cache, identities=names)
    found = one.losses([vertex(2, 0), vertex(2, 1)], ["snli"])
    cache.write_text(cache.read_text()[:-20])
    again = Evaluator(encoder, resident, tasks, settings, cache, identities=names)
    assert again.losses([vertex(2, 0), vertex(2, 1)], ["snli"]) == found
    assert again.forward_passes == 1


def test_far_points_have_losses_too(lab):
    encoder, resident, tasks = lab
    one = Evaluator(encoder, resident, tasks, Probe(train_rows=24, test_rows=16))
    (far,) = one.losses([Point((1e30, 0.0))], ["sst2"])
    assert math.isnan(far["sst2"].loss) or far["sst2"].loss > 0
    (one_model,) = one.losses([vertex(2, 0)], ["sst2"])
    assert math.isfinite(one_model["sst2"].loss)


def test_features_do_not_depend_on_the_other_rows(lab):
    encoder, _, tasks = lab
    module = encoder.module()
    whole = encoder.features(module, encoder.encode(tasks["snli"].train, 16))
    part = encoder.features(module, encoder.encode(tasks["snli"].train.take([5, 2]), 16))
    assert np.allclose(part, whole[[5, 2]], atol=1e-6)
    assert not torch.is_grad_enabled() or module.training is False
