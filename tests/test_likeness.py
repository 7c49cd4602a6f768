"""What a catalogue tells of a model's relatives, against what is known and what is measured."""

import csv
import io
import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wspace as ws
from bench.zoo import make_llama, make_minilm
from tests.zoos import save, state
from wkernels.sketches import ERROR, SIZE
from wspace.catalogue import estimates
from wspace.catalogue.likeness import RELATED, ROUNDING, WITHIN
from wspace.cli.main import main, parser
from wspace.errors import CheckpointError

LAYERS = {f"layers.{k}.weight": (300, 130) for k in range(6)}
SHAPES = LAYERS | {"embed.weight": (500, 8), "head.weight": (3, 130), "norm.weight": (130,)}


def mixed(*terms):
    """``sum_i w_i m_i`` of state dicts, in float64, stored as float32."""
    names = terms[0][1]
    return {n: sum(w * m[n].double() for w, m in terms).float() for n in names}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Two families of one shape that know nothing of each other, and what was made in the first."""
    root = tmp_path_factory.mktemp("zoo")
    states = {}

    def add(name, tensors, **layout):
        save(root / name, tensors, **layout)
        states[name] = tensors

    for letter, seed in (("a", 0), ("b", 500)):
        base = state(seed, shapes=SHAPES)
        add(f"{letter}/base", base)
        for k in range(6):
            step = 1e-2 * (1 + k % 3)
            tuned = state(seed + 10 + k, shapes=SHAPES, like=base, step=step)
            add(f"{letter}/tuned-{k}", tuned, shards=1 + k % 3, reverse=k % 2 == 1)
    base, tuned = states["a/base"], [states[f"a/tuned-{k}"] for k in range(6)]
    add("made/soup", mixed((0.5, tuned[0]), (0.3, tuned[1]), (0.2, tuned[2])))
    add("made/arithmetic", mixed((0.7, base), (0.7, tuned[3]), (-0.4, tuned[4])))
    add("made/grandchild", state(99, shapes=SHAPES, like=tuned[5], step=3e-3))
    add("made/copy", tuned[2], shards=2)
    add("made/half", {name: t.bfloat16() for name, t in tuned[1].items()})
    add("made/nudged", mixed((1 - 2e-5, tuned[4]), (2e-5, base)))
    other_head = state(98, shapes=SHAPES, like=base, step=2e-2)
    add("made/other-head", other_head | {"head.weight": torch.ones(7, 130)})
    ws.index_zoo(root)
    return root, states


def relatives(zoo, name, **settings):
    root, _ = zoo
    return {r.path: r for r in ws.open_catalogue(root).like(root / name, **settings).relatives}


def parents(zoo, name):
    found = relatives(zoo, name)
    return {path: r.weight for path, r in found.items() if r.relation == "parent"}


@pytest.mark.parametrize("letter", ["a", "b"])
@pytest.mark.parametrize("k", range(6))
def test_a_fine_tune_has_its_base_for_parent(zoo, letter, k):
    found = parents(zoo, f"{letter}/tuned-{k}")
    assert list(found) == [f"{letter}/base"]
    assert math.isnan(found[f"{letter}/base"])


def test_of_a_chain_the_nearest_is_the_parent(zoo):
    assert list(parents(zoo, "made/grandchild")) == ["a/tuned-5"]
    found = relatives(zoo, "a/tuned-5", n=20)
    assert {path for path, r in found.items() if r.relation == "child"} == {"made/grandchild"}


def test_the_base_has_children_and_no_parent(zoo):
    for name in ("a/base", "b/base"):
        found = relatives(zoo, name, n=20)
        tuned = [path for path in found if path.startswith(f"{name[0]}/tuned")]
        assert len(tuned) == 6
        assert {found[path].relation for path in tuned} == {"child"}
        assert "parent" not in {r.relation for r in found.values()}


def test_a_mix_has_its_parents_and_their_weights(zoo):
    """To far better than the sketches' error, as they are linear."""
    expected = {
        "made/soup": {"a/tuned-0": 0.5, "a/tuned-1": 0.3, "a/tuned-2": 0.2},
        "made/arithmetic": {"a/base": 0.7, "a/tuned-3": 0.7, "a/tuned-4": -0.4},
    }
    for name, weights in expected.items():
        found = parents(zoo, name)
        # a copy of a parent does as well as the parent
        found = {{"made/copy": "a/tuned-2", "made/nudged": "a/tuned-4"}.get(path, path): weight
                 for path, weight in found.items()}  # fmt: skip
        assert found == pytest.approx(weights, abs=1e-4)
    root, _ = zoo
    assert ws.open_catalogue(root).like(root / "made/soup").explained > 0.999999


def test_what_was_mixed_from_a_model_is_its_child(zoo):
    for k in range(3):
        assert relatives(zoo, f"a/tuned-{k}", n=20)["made/soup"].relation == "child"


def test_copies_and_near_duplicates(zoo):
    found = relatives(zoo, "made/copy")["a/tuned-2"]
    assert (found.relation, found.distance, found.equal, found.tensors) == ("identical", 0, 9, 9)
    half = relatives(zoo, "a/tuned-1")["made/half"]
    assert half.relation == "near-duplicate"
    assert 1e-3 < half.relative < ROUNDING["BF16"]
    nudged = relatives(zoo, "made/nudged")["a/tuned-4"]
    assert nudged.relation == "near-duplicate"
    assert 0 < nudged.relative < 1e-6 * 30


def test_duplicates(zoo):
    root, _ = zoo
    groups = ws.open_catalogue(root).duplicates()
    found = {(g.first, r.path): r.relation for g in groups for r in g.others}
    assert found == {
        ("a/tuned-1", "made/half"): "near-duplicate",
        ("a/tuned-2", "made/copy"): "identical",
        ("a/tuned-4", "made/nudged"): "near-duplicate",
    }
    wider = ws.open_catalogue(root).duplicates(within=0.015)  # base and the three at 1e-2
    first = next(group for group in wider if group.first == "a/base")
    assert {"a/tuned-0", "a/tuned-3"} <= {r.path for r in first.others}


def test_other_heads_are_compared_in_the_layers(zoo):
    root, states = zoo
    catalogue = ws.open_catalogue(root)
    found = catalogue.like(root / "made/other-head")
    assert (found.compared, found.candidates) == ("layers", 20)
    nearest = found.relatives[0]
    assert (nearest.path, nearest.relation, nearest.tensors) == ("a/base", "parent", 8)
    one, other = states["made/other-head"], states["a/base"]
    truth = math.sqrt(sum((one[n] - other[n]).double().square().sum().item() for n in LAYERS))
    assert nearest.distance == pytest.approx(truth, rel=4 * found.error)


def test_families_without_a_tensor_in_common_are_not_compared(zoo, tmp_path):
    root, _ = zoo
    save(tmp_path / "other", state(0, shapes={"x": (10, 10)}))
    found = ws.open_catalogue(root).like(tmp_path / "other")
    assert (found.candidates, found.relatives) == (0, ())


def test_distances_and_angles_are_estimates_of_the_stated_error(zoo):
    """All pairs of a family, none of which the sketches were made for."""
    root, states = zoo
    catalogue = ws.open_catalogue(root)
    names = ["b/base", *(f"b/tuned-{k}" for k in range(6))]
    flat = {name: torch.cat([states[name][n].flatten() for n in LAYERS]).double() for name in names}
    errors = []
    for name in names:
        found = catalogue.like(root / name, n=6).relatives
        assert sorted([name, *(relative.path for relative in found)]) == names
        truth = [(flat[name] - flat[relative.path]).norm().item() for relative in found]
        errors += [r.distance / d - 1 for r, d in zip(found, truth, strict=True)]
        origin = flat["b/base" if name != "b/base" else found[0].path]
        for relative in found:
            if not math.isnan(relative.cosine):
                pair = (flat[name] - origin, flat[relative.path] - origin)
                assert abs(relative.cosine - torch.cosine_similarity(*pair, dim=0)) < 4 * ERROR
    spread = np.sqrt(np.mean(np.square(errors)))
    # four and a half rows of SIZE, of which those that are different meet
    assert 0.3 * ERROR / 2 < spread < 1.2 * ERROR / 2


def test_exact_distances_and_cosines(zoo):
    root, states = zoo
    others = ["a/base", "a/tuned-1", "made/nudged", "a/tuned-4"]
    apart, angles = ws.open_catalogue(root).distances(root / "made/nudged", others)
    flat = [
        torch.cat([states[name][n].flatten() for n in LAYERS]).double()
        for name in ("made/nudged", *others)
    ]
    truth = torch.stack([(flat[0] - other).norm() for other in flat[1:]])
    torch.testing.assert_close(apart, truth, rtol=1e-4, atol=0)  # as ws.refine promises
    steps = [row - flat[1] for row in flat]
    for k in (2, 3, 4):
        expected = torch.cosine_similarity(steps[0], steps[k], dim=0)
        assert abs(angles[k - 1] - expected) < 1e-6


def test_exact_distances_read_the_models_asked_for(zoo, counted):
    root, states = zoo
    catalogue = ws.open_catalogue(root)
    counted[0] = 0
    catalogue.distances(root / "a/tuned-0", ["a/base", "a/tuned-1"])
    assert counted[0] == 3 * sum(states["a/base"][name].nbytes for name in LAYERS)


def test_a_real_encoder_and_llamas(tmp_path):
    """all-MiniLM-L6-v2, tuned and merged; and two families of Llamas, in other files."""
    for _ in make_minilm(tmp_path / "minilm", models=2):
        pass
    for letter, seed in (("x", 1), ("y", 2)):
        for _ in make_llama(tmp_path / letter, models=2, seed=seed, mixed_shards=True, step=2e-2):
            pass
    models = [tmp_path / "minilm" / f"model-{k}" for k in range(2)]
    pair = ws.open_zoo(models, base=tmp_path / "minilm" / "base")
    ws.merge(pair, [0.6, 0.4], tmp_path / "minilm" / "merged")
    catalogue = ws.index_zoo(tmp_path)
    assert len(catalogue) == 10
    merged = catalogue.like(tmp_path / "minilm" / "merged")
    assert merged.compared == "all"
    assert {r.path: r.weight for r in merged.parents} == pytest.approx(
        {"minilm/model-0": 0.6, "minilm/model-1": 0.4}, abs=1e-3
    )
    for letter in "xy":
        found = catalogue.like(tmp_path / letter / "model-1")
        assert [r.path for r in found.parents] == [f"{letter}/base"]
        assert found.candidates == 5
        assert found.relatives[-1].relative > RELATED  # the other family
    apart, _ = catalogue.distances(models[0], ["minilm/base", "minilm/model-1"])
    gram = ws.gram(ws.open_zoo(models, base=tmp_path / "minilm" / "base"))
    assert apart[0] == gram.total[0, 0].sqrt()
    assert apart[1] == ws.distances(gram)[0, 1]


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 16), scale=st.sampled_from([1.0, 1e3]))
def test_close_pairs_misses_none(seed, n, scale):
    """Groups of rows near each other, in two types with limits of their own."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((3, SIZE), np.float32) * scale
    apart = np.array([0.0, 3e-4, 3e-3])[random.integers(0, 3, n)] * math.sqrt(SIZE) * scale
    steps = random.standard_normal((n, SIZE), np.float32)
    steps *= (apart / np.linalg.norm(steps, axis=1))[:, None].astype(np.float32)
    rows = centres[random.integers(0, 3, n)] + steps
    kinds = random.integers(0, 2, n)
    limits = np.array([[1e-4, 2e-3], [2e-3, 1e-3]]) * math.sqrt(SIZE) * scale
    found = estimates.close_pairs(list(rows), limits, kinds)
    for i in range(n):
        distances = np.linalg.norm(rows[i + 1 :].astype(float) - rows[i], axis=1)
        limit = limits[kinds[i], kinds[i + 1 :]]
        assert set(found[i]) >= set(i + 1 + np.flatnonzero(distances <= limit))
        assert set(found[i]) <= set(i + 1 + np.flatnonzero(distances <= 2 * limit))


def test_a_mix_of_as_many_as_are_looked_for():
    """Nearly orthogonal rows of very different lengths, among others."""
    random = np.random.default_rng(0)
    base = random.standard_normal(SIZE) * 100
    lengths = 10.0 ** random.uniform(-0.3, 0.3, 60)[:, None]
    rows = list((base + lengths * random.standard_normal((60, SIZE))).astype(np.float32))
    chosen = random.choice(60, estimates.MIXED, replace=False).tolist()
    weights = np.full(len(chosen), 1 / len(chosen))
    mix = sum(w * rows[k].astype(float) for w, k in zip(weights, chosen, strict=True))
    row = mix.astype(np.float32)
    found = estimates.origins(rows, row, estimates.distances(rows, row), math.inf)
    assert {k: w for k, w in found.weights.items() if abs(w) > 1e-3} == pytest.approx(
        dict(zip(chosen, weights, strict=True)), abs=2e-3
    )
    assert found.explained > 0.9999


def run(capsys, *argv):
    status = main(["index", *map(str, argv)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_indexes(tmp_path, capsys):
    base = state(0, shapes=SHAPES)
    save(tmp_path / "base", base)
    save(tmp_path / "tuned", state(1, shapes=SHAPES, like=base))
    save(tmp_path / "else", state(1, shapes={"x": (3,)}))
    status, out, err = run(capsys, tmp_path, "--format", "json")
    assert status == 0
    rows = json.loads(out)
    assert [(row["models"], row["tensors"]) for row in rows] == [(2, 9), (1, 1)]
    assert rows[1]["layers"] is None
    assert "3 models: 3 added, 0 changed, 0 removed" in err
    save(tmp_path / "bad", {"x": torch.tensor([math.inf])})
    status, out, err = run(capsys, tmp_path, "--format", "csv")
    assert status == 1
    assert len(list(csv.DictReader(io.StringIO(out)))) == 2
    last = err.splitlines()[-1]
    assert last.startswith("error: 1 of 4 models are not in the catalogue; the first is bad: ")
    assert "tensor 'x' has NaN or Inf" in last


def test_the_command_answers(zoo, capsys):
    root, _ = zoo
    status, out, err = run(capsys, root, "--like", root / "made/soup", "-n", "3")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].split() == [
        "model", "relation", "distance", "relative", "cosine", "weight", "equal", "tensors",
    ]  # fmt: skip
    assert len(lines) >= 4
    assert "a mix of 3 models explains 100.000% of its squared distance" in err
    _, out, _ = run(capsys, root, "--like", root / "made/soup", "--format", "json", "--exact")
    found = json.loads(out)
    assert (found["model"], found["compared"]) == ("made/soup", "layers")
    for relative in found["relatives"]:
        assert relative["exact"] == pytest.approx(relative["distance"], rel=0.012)
    _, out, err = run(capsys, root, "--duplicates", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["like"] for row in rows] == ["a/tuned-1", "a/tuned-2", "a/tuned-4"]
    assert "3 of 21 models are near-duplicates of another" in err


def test_the_command_says_what_it_does_not_know_yet(zoo, tmp_path, capsys):
    save(tmp_path / "a", state(0))
    run(capsys, tmp_path)
    save(tmp_path / "b", state(1))
    _, _, err = run(capsys, tmp_path, "--duplicates")
    assert "note: 1 models are new, changed or gone (b); wspace index" in err
    assert run(capsys, tmp_path, "--duplicates", "--quiet")[2] == ""


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["."], "no model in this folder"),
        ([".", "--duplicates"], "holds no catalogue"),
        ([".", "--exact"], "give --like MODEL too"),
        ([".", "--like", "x", "-n", "0"], "-n must be at least 1"),
        ([".", "--within", "nan"], "--within 0 or more"),
        ([".", "--memory", "1KB"], "no model in this folder"),
    ],
)
def test_refusals(tmp_path, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *argv)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_there(zoo):
    root, _ = zoo
    with pytest.raises(CheckpointError, match="no such file or folder"):
        ws.open_catalogue(root).like(root / "missing")


def test_a_budget_too_small_for_a_model_is_refused(tmp_path):
    save(tmp_path / "a", state(0))
    for memory in ("2MB", "1"):
        with pytest.raises(ws.BudgetError, match="memory budget") as told:
            ws.index_zoo(tmp_path, memory=memory)
        least = int(re.findall(r"needs (\d+) bytes", str(told.value))[0])
        with pytest.raises(ws.BudgetError):
            ws.index_zoo(tmp_path, memory=least - 1)
    assert ws.index_zoo(tmp_path, memory=least).changes.added == ("a",)


def test_the_option_says_the_library_s_default():
    assert parser().parse_args(["index", "zoo"]).within == WITHIN
