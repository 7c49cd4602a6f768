"""Fisher-weighted means: recipes with diagonals against float64, and diagonals that are wrong."""

import pytest
import torch

import wspace as ws
from tests.recipes import least_memory, merged, plan
from tests.zoos import SHAPES, save, state
from wkernels import cpu, reference
from wkernels.arguments import pointers_to
from wspace.devices import device_named
from wspace.elementwise.work import layout_of
from wspace.recipes import RecipeError, cost
from wspace.recipes.chosen import works_of

WEIGHTS = [1.0, 0.25, 2.0]
TENSOR = "layers.0.weight"


def make(root, dtype):
    """Models ``m0`` to ``m2`` and their diagonals ``f0`` to ``f2``, zero in a tenth of places."""
    zoo = {}
    for k in range(3):
        zoo[f"m{k}"] = state(k, dtype)
        diagonals = {name: t.square() * 1e-6 for name, t in state(10 + k).items()}
        for name, t in diagonals.items():
            zero = torch.rand(t.shape, generator=torch.Generator().manual_seed(3)) < 0.05
            own = torch.rand(t.shape, generator=torch.Generator().manual_seed(k)) < 0.05
            diagonals[name] = t.masked_fill(zero | own, 0)
        kind = torch.bfloat16 if k == 1 else torch.float32
        zoo[f"f{k}"] = {name: t.to(kind) for name, t in diagonals.items()}
    for name, tensors in zoo.items():
        save(root / name, tensors)
    return zoo


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make(tmp_path, torch.float32)


def recipe(more="", weights=WEIGHTS, n=3):
    models = "".join(
        f"  - {{model: m{k}, fisher: f{k}, parameters: {{weight: {weights[k]}}}}}\n"
        for k in range(n)
    )
    return f"merge_method: fisher\nmodels:\n{models}{more}"


def truth(x, diagonals, weights=WEIGHTS, floor=0.0):
    x, diagonals = (torch.stack([t.double() for t in rows]) for rows in (x, diagonals))
    return reference.precision_mean(x, diagonals, torch.tensor(weights[: len(x)]), floor)


def assert_rounded_once(out, expected, x, name):
    """Half a unit in the last place, and what a float64 sum loses where terms cancel."""
    spacing = torch.finfo(out.dtype).eps / 2 * expected.abs()
    lost = 16 * torch.finfo(torch.float64).eps * sum(t.double().abs() for t in x)
    assert ((out.double() - expected).abs() <= spacing + lost).all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("floor", [0, 1e-7])
def test_against_float64(tmp_path, monkeypatch, dtype, floor):
    """One rounding, also where some or all models have no information."""
    monkeypatch.chdir(tmp_path)
    zoo = make(tmp_path, dtype)
    found = merged(recipe(f"parameters: {{epsilon: {floor}}}\n"), tmp_path / "out")
    assert found.keys() == SHAPES.keys()
    for name, out in found.items():
        x, diagonals = ([zoo[f"{kind}{k}"][name] for k in range(3)] for kind in "mf")
        expected = truth(x, diagonals, floor=floor)
        assert out.dtype == dtype and out.shape == expected.shape
        assert_rounded_once(out, expected, x, name)
    none = torch.stack([zoo[f"f{k}"][TENSOR].float() for k in range(3)]).sum(0) == 0
    assert none.any()


def test_weight_is_one_by_default_and_equal_diagonals_are_a_plain_mean(zoo, tmp_path):
    text = "merge_method: {}\nmodels:\n- {{model: m0, fisher: f0}}\n- {{model: m1, fisher: f0}}\n"
    found = merged(text.format("fisher"), tmp_path / "out")
    for name, out in found.items():
        expected = (zoo["m0"][name].double() + zoo["m1"][name].double()) / 2
        assert_rounded_once(out, expected, [zoo["m0"][name], zoo["m1"][name]], name)


def test_memory_and_layout_do_not_change_bits(zoo, tmp_path):
    expected = merged(recipe(), tmp_path / "out")
    (work,) = works_of([plan(recipe())[0]])
    memory = least_memory(work)  # 16384 elements of six checkpoints, two tensors have more
    assert len(layout_of(work, device_named("cpu"), memory).cut) == 2
    small = merged(recipe(), tmp_path / "small", memory=memory, max_shard_size="50KB")
    for name, tensors in zoo.items():
        save(tmp_path / name, tensors, shards=3, reverse=name in ("m1", "f2"))
    other = merged(recipe(), tmp_path / "other")
    for out in (small, other):
        assert out.keys() == expected.keys()
        assert all(torch.equal(out[name], expected[name]) for name in expected)


def test_diagonals_count_in_what_is_read(zoo):
    nbytes = sum(t.nbytes for tensors in zoo.values() for t in tensors.values())
    assert cost(plan(recipe())[0]).read_bytes == nbytes


def test_slices_find_the_diagonals_of_the_input(zoo, tmp_path):
    shapes = {f"layers.{k}.weight": (5, 3) for k in range(3)} | {"embed.weight": (4, 3)}
    for k in range(2):
        zoo[f"m{k}"], zoo[f"f{k}"] = state(k, shapes=shapes), state(k + 5, shapes=shapes)
        zoo[f"f{k}"] = {name: t.abs() for name, t in zoo[f"f{k}"].items()}
        for kind in "mf":
            (tmp_path / f"{kind}{k}" / "model.safetensors").unlink()
            save(tmp_path / f"{kind}{k}", zoo[f"{kind}{k}"])
    text = """\
merge_method: fisher
slices:
- sources:
  - {model: m0, fisher: f0, layer_range: [0, 2]}
  - {model: m1, fisher: f1, layer_range: [1, 3]}
"""
    found = merged(text, tmp_path / "out")
    assert found.keys() == {"embed.weight", "layers.0.weight", "layers.1.weight"}
    for k in range(2):
        names = f"layers.{k}.weight", f"layers.{k + 1}.weight"
        x, diagonals = ([zoo[f"{m}{i}"][names[i]] for i in range(2)] for m in "mf")
        assert_rounded_once(found[names[0]], truth(x, diagonals, [1, 1]), x, names[0])


def test_what_one_model_alone_has_needs_no_diagonals(zoo, tmp_path):
    extra = {"head.bias": torch.randn(5), "position_ids": torch.arange(4)}
    save(tmp_path / "m0", zoo["m0"] | extra)
    found = merged(recipe(), tmp_path / "out")
    assert torch.equal(found["head.bias"], extra["head.bias"])
    assert torch.equal(found["position_ids"], extra["position_ids"])


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf")])
def test_wrong_diagonals_are_refused_by_name(zoo, tmp_path, value):
    zoo["f1"][TENSOR][200, 7] = value
    save(tmp_path / "f1", zoo["f1"])
    message = rf"f1.model.safetensors: tensor '{TENSOR}' has Fisher diagonals that are negative"
    for allow in (False, True):
        with pytest.raises(ws.CheckpointError, match=message):
            merged(recipe(), tmp_path / "out", allow_non_finite=allow)
    assert not (tmp_path / "out").exists()


def test_nan_in_a_model_is_refused(zoo, tmp_path):
    zoo["m2"][TENSOR][3, 3] = torch.nan
    save(tmp_path / "m2", zoo["m2"])
    with pytest.raises(ws.NonFiniteError, match=rf"m2.*'{TENSOR}' has NaN"):
        merged(recipe(), tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (", fisher: f1", "", "r.yml:4: m1 has no fisher; give its diagonals with fisher: PATH"),
        ("fisher: f1", "fisher: gone", "r.yml:4: fisher: gone"),
        ("fisher: f1", "fisher: short", "fisher short has no tensor 'head.weight' and 1 more"),
        ("fisher: f1", "fisher: wide", r"'norm.weight' has shape \[2\]; expected \[1\]"),
        ("fisher: f1", "fisher: whole", "'norm.weight' has type I64; expected floating point"),
        ("weight: 0.25", "weight: -1", "r.yml:4: weight -1: expected 0 or more"),
        ("models:", "parameters: {epsilon: -1}\nmodels:", "epsilon -1: expected 0 or more"),
        ("models:", "base_model: short\nmodels:", "r.yml:2: short is base_model, which fisher"),
        ("models:", "tokenizer_source: union\nmodels:", "fisher with a tokenizer key"),
    ],
)
def test_what_is_refused_before_anything_is_read(zoo, tmp_path, old, new, message):
    f = zoo["f1"]
    save(tmp_path / "short", {k: t for k, t in f.items() if k not in ("scale", "head.weight")})
    save(tmp_path / "wide", f | {"norm.weight": torch.ones(2)})
    save(tmp_path / "whole", f | {"norm.weight": torch.ones(1, dtype=torch.int64)})
    with pytest.raises(RecipeError, match=message):
        plan(recipe().replace(old, new))


def test_weights_that_are_all_zero(zoo):
    with pytest.raises(RecipeError, match="the weights are all 0"):
        plan(recipe(weights=[0, 0, 0]))


def test_other_methods_say_that_diagonals_have_no_effect(zoo):
    _, problems = plan(recipe().replace("merge_method: fisher", "merge_method: linear"))
    assert problems.warnings[0] == "r.yml:3: fisher has no effect in linear"


def test_the_kernel_with_float64_and_several_segments():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 40_000, generator=generator, dtype=torch.float64)
    f = torch.rand(2, 40_000, generator=generator, dtype=torch.float64)
    out = torch.full((40_000,), torch.nan, dtype=torch.float64)
    segments = [(0, 25_000), (25_000, 40_000)]
    weights, floors = [(1.0, 3.0), (0.5, 0.25)], [0.0, 0.5]
    wrong = torch.zeros(2, 2, dtype=torch.int64).numpy()
    f[1, 30_000:30_003] = -1
    cpu.precision_mean(
        pointers_to(list(x)), pointers_to(list(f)), torch.tensor(segments).numpy(),
        torch.tensor(weights).double().numpy(), torch.tensor(floors).double().numpy(),
        pointers_to([out]), wrong, threads=2,
    )  # fmt: skip
    assert wrong.tolist() == [[0, 0], [0, 3]]
    for (start, stop), w, floor in zip(segments, weights, floors, strict=True):
        expected = truth(list(x[:, start:stop]), list(f[:, start:stop]), list(w), floor)
        torch.testing.assert_close(out[start:stop], expected, rtol=1e-13, atol=1e-13)
