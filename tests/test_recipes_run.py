"""Recipes run: every linear method against float64, and the same bits however it is run."""

import json

import pytest
import torch
from safetensors.torch import load_file

import wspace as ws
from tests import method_truth as truth
from tests.recipes import merged, plan
from tests.zoos import save, state
from wspace.devices import device_named
from wspace.elementwise.work import layout_of
from wspace.recipes import RecipeError
from wspace.recipes.chosen import works_of
from wspace.storage.writing import CheckpointWriter

SHAPES = {
    "embed.weight": (50, 8),
    **{
        f"layers.{k}.{name}": shape
        for k in range(4)
        for name, shape in {
            "attn.weight": (37, 23), "mlp.weight": (150, 131), "norm.weight": (23,),
        }.items()
    },
    "head.weight": (50, 8),
    "scale": (),
    "empty": (0, 8),
}  # fmt: skip
EPS = torch.finfo(torch.float32).eps


def make(root, step, dtype=torch.float32, n=3):
    base = state(0, dtype, SHAPES)
    states = {"base": base}
    states |= {f"m{i}": state(i + 1, dtype, SHAPES, base, step) for i in range(n)}
    for name, tensors in states.items():
        save(root / name, tensors)
    return {name: {k: t.double() for k, t in s.items()} for name, s in states.items()}


@pytest.fixture(scope="module")
def zoos(tmp_path_factory):
    """Folders ``far``, ``near`` and ``half`` (bfloat16), each with a base and three models."""
    root = tmp_path_factory.mktemp("recipes-run")
    found = {
        "far": make(root / "far", 0.5),
        "near": make(root / "near", 1e-2),
        "half": make(root / "half", 0.5, torch.bfloat16),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield found


def recipe(method, models=("m0", "m1", "m2"), parameters="", base="", more="", zoo="far"):
    lines = [f"merge_method: {method}", "models:"]
    for k, model in enumerate(models):
        own = ["{weight: 0.3}", "{weight: 0.5}", "{weight: 1.1}"][k]
        given = f", parameters: {own}" if "weight" in WEIGHTED.get(method, "") else ""
        lines.append(f"  - {{model: {zoo}/{model}{given}}}")
    if base:
        lines.append(f"base_model: {zoo}/{base}")
    if parameters:
        lines.append(f"parameters: {{{parameters}}}")
    return "\n".join([*lines, more]) + "\n"


WEIGHTED = dict.fromkeys(("linear", "task_arithmetic", "nuslerp", "multislerp"), "weight")
W = [0.3, 0.5, 1.1]

CASES = {
    "linear": (
        recipe("linear"), lambda b, *x: truth.linear(x, W)),
    "linear-as-it-is": (
        recipe("linear", parameters="normalize: false"), lambda b, *x: truth.linear(x, W, False)),
    "task_arithmetic": (
        recipe("task_arithmetic", base="base", parameters="lambda: 1.7"),
        lambda b, *x: truth.task_arithmetic(x, b, W, 1.7)),
    "task_arithmetic-normalized": (
        recipe("task_arithmetic", base="base", parameters="normalize: true"),
        lambda b, *x: truth.task_arithmetic(x, b, W, 1, True)),
    "slerp": (
        recipe("slerp", ["m0"], "t: 0.3", "base"),
        lambda b, *x: truth.flat(lambda a, c: truth.slerp(a, c, 0.3), b, x[0])),
    "slerp-beyond": (
        recipe("slerp", ["m0"], "t: 1.5", "base"),
        lambda b, *x: truth.flat(lambda a, c: truth.slerp(a, c, 1.5), b, x[0])),
    "nuslerp": (
        recipe("nuslerp", ["m0", "m1"]),
        lambda b, *x: truth.flat(lambda a, c: truth.nuslerp(a, c, W), x[0], x[1])),
    "nuslerp-deltas": (
        recipe("nuslerp", ["m0", "m1"], base="base"),
        lambda b, *x: b + truth.flat(lambda a, c: truth.nuslerp(a, c, W), x[0] - b, x[1] - b)),
    "nuslerp-rows": (
        recipe("nuslerp", ["m0", "m1"], "nuslerp_flatten: false"),
        lambda b, *x: truth.by_rows(lambda a, c: truth.nuslerp(a, c, W), x[0], x[1])),
    "nuslerp-deltas-rows": (
        recipe("nuslerp", ["m0", "m1"], "nuslerp_flatten: false", "base"),
        lambda b, *x: b + truth.by_rows(lambda a, c: truth.nuslerp(a, c, W), x[0] - b, x[1] - b)),
    "nuslerp-columns": (
        recipe("nuslerp", ["m0", "m1"], "nuslerp_flatten: false, nuslerp_row_wise: true"),
        lambda b, *x: truth.by_columns(lambda a, c: truth.nuslerp(a, c, W), x[0], x[1])),
    "nuslerp-deltas-columns": (
        recipe("nuslerp", ["m0", "m1"], "nuslerp_flatten: false, nuslerp_row_wise: true", "base"),
        lambda b, *x: b + truth.by_columns(
            lambda a, c: truth.nuslerp(a, c, W), x[0] - b, x[1] - b)),
    "multislerp": (
        recipe("multislerp"),
        lambda b, *x: truth.flat(lambda *v: truth.multislerp(v, W), *x)),
    "multislerp-deltas": (
        recipe("multislerp", base="base"),
        lambda b, *x: b + truth.flat(lambda *v: truth.multislerp(v, W), *[v - b for v in x])),
    "multislerp-as-it-is": (
        recipe("multislerp", parameters="normalize_weights: false"),
        lambda b, *x: truth.flat(lambda *v: truth.multislerp(v, W, False), *x)),
    "karcher": (
        recipe("karcher"), lambda b, *x: truth.flat(lambda *v: truth.karcher(v), *x)),
    "karcher-2-steps": (
        recipe("karcher", parameters="max_iter: 2, tol: 0.001"),
        lambda b, *x: truth.flat(lambda *v: truth.karcher(v, 2, 1e-3), *x)),
    "model_stock": (
        recipe("model_stock", base="base"),
        lambda b, *x: truth.flat(lambda c, *v: truth.model_stock(v, c), b, *x)),
    "model_stock-exact": (
        recipe("model_stock/exact", base="base"),
        lambda b, *x: truth.flat(lambda c, *v: truth.model_stock(v, c, 0.0), b, *x)),
    "model_stock-rows": (
        recipe("model_stock", parameters="filter_wise: true", base="base"),
        lambda b, *x: truth.by_rows(lambda c, *v: truth.model_stock(v, c), b, *x)),
    "passthrough": (recipe("passthrough", ["m0"]), lambda b, *x: x[0]),
    "passthrough-scaled": (
        recipe("passthrough", ["m0"], "scale: -1.25"), lambda b, *x: -1.25 * x[0]),
}  # fmt: skip
LARGEST = 3
"""No factor of these cases is larger."""

N_ROUNDINGS = 6
"""Of a float32 sum of up to four terms, differences from a base, and its factors."""


def check(out, truths, inputs, dtype=torch.float32):
    """Float32 sums of four terms and one rounding, of factors that float64 knows."""
    assert out.keys() == truths.keys()
    for name, expected in truths.items():
        assert out[name].dtype == dtype and out[name].shape == expected.shape, name
        terms = LARGEST * sum(tensors[name].abs() for tensors in inputs)
        spacing = torch.finfo(dtype).eps / 2 * expected.abs() + N_ROUNDINGS * EPS * terms
        error = (out[name].double() - expected).abs()
        assert (error <= spacing).all(), f"{name}: {float((error - spacing).max()):.3e} too much"


def truths_of(method, zoo):
    return {
        name: method(*(zoo[model][name] for model in ("base", "m0", "m1", "m2")))
        if zoo["base"][name].numel()
        else zoo["base"][name]
        for name in SHAPES
    }


CURVED = [case for case in CASES if case.startswith(("slerp", "nu", "multi", "karcher", "model"))]


@pytest.mark.parametrize(
    ("case", "kind"), [(case, "far") for case in CASES] + [(case, "near") for case in CURVED]
)
def test_against_float64(zoos, tmp_path, case, kind):
    text, method = CASES[case]
    zoo = zoos[kind]
    out = merged(text.replace("far/", f"{kind}/"), tmp_path / "out")
    check(out, truths_of(_on_rows(method), zoo), zoo.values())


def _on_rows(method):
    """0-d tensors as vectors of one."""
    return lambda *x: method(*x) if x[0].ndim else method(*(v[None] for v in x))[0]


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_the_float64_result_rounded_once(zoos, tmp_path, case):
    """Within half a unit of the last place, but for what a float32 sum loses where it cancels."""
    text, method = CASES[case]
    zoo = zoos["half"]
    out = merged(text.replace("far/", "half/"), tmp_path / "out")
    check(out, truths_of(_on_rows(method), zoo), zoo.values(), torch.bfloat16)


def test_both_branches_of_slerp_are_taken(zoos):
    for kind, straight in (("far", False), ("near", True)):
        a, b = (zoos[kind][model]["layers.0.mlp.weight"].flatten() for model in ("base", "m0"))
        assert (a @ b / (a.norm() * b.norm()) > 0.9995) == straight


@pytest.mark.parametrize(
    ("method", "base"), [("slerp", "base"), ("karcher", ""), ("model_stock", "base"),
                         ("multislerp", "base"), ("nuslerp", "base")]
)  # fmt: skip
def test_zero_parallel_and_opposite_tensors(tmp_path, monkeypatch, method, base):
    """What has no direction or no angle comes out finite, and a model that moved nowhere stays."""
    v = torch.randn(7, generator=torch.Generator().manual_seed(0))
    kinds = {
        "zero": (0 * v, 0 * v, 0 * v), "same": (v, v, v), "scaled": (v, 2 * v, 3 * v),
        "opposite": (v, 2 * v, 0 * v), "one": (v[:1], v[1:2], v[2:3]),
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for k, model in enumerate(("base", "m0", "m1")):
        save(tmp_path / "far" / model, {name: x[k].clone() for name, x in kinds.items()})
    models = ["m0"] if method == "slerp" else ["m0", "m1"]
    text = recipe(method, models, "t: 0.25" if method == "slerp" else "", base)
    try:
        out = merged(text, tmp_path / "out")
    except RecipeError as error:
        assert method == "multislerp" and "directions of 'opposite' cancel" in str(error)
        return
    assert all(t.isfinite().all() for t in out.values())
    assert not out["zero"].any()
    assert torch.allclose(out["same"], v, rtol=4 * EPS, atol=0)


def test_gradients_and_filters(zoos, tmp_path):
    out = merged(
        """\
merge_method: linear
models:
  - {model: far/m0, parameters: {weight: [0.2, 0.8, 0.1]}}
  - {model: far/m1, parameters: {weight: [{filter: mlp, value: [1, 0]}, {value: 2}]}}
""",
        tmp_path / "out",
    )
    x, y = zoos["far"]["m0"], zoos["far"]["m1"]
    middle = {0: 0.2, 1: 0.6, 2: 0.8 - 0.7 / 3, 3: 0.1}  # 0.2, 0.8, 0.1 at depths 0, 1/2, 1
    truths = {}
    for name in SHAPES:
        layer = int(name.split(".")[1]) if name.startswith("layers") else 0
        other = 1 - layer / 3 if "mlp" in name else 2
        truths[name] = truth.linear([x[name], y[name]], [middle[layer], other])
    check(out, truths, (x, y))


def test_slices(zoos, tmp_path):
    out = merged(
        """\
merge_method: linear
slices:
  - sources:
      - {model: far/m0, layer_range: [0, 2], parameters: {weight: [0.1, 0.9]}}
      - {model: far/m1, layer_range: [1, 3], parameters: {weight: 0.4}}
  - sources:
      - {model: far/m2, layer_range: [1, 4]}
      - {model: far/m1, layer_range: [0, 3], parameters: {weight: [{filter: .1., value: 5}]}}
      - {model: far/m0, layer_range: [1, 4], parameters: {weight: 1}}
    parameters: {weight: 0.5}
""",
        tmp_path / "out",
    )
    m = [zoos["far"][f"m{i}"] for i in range(3)]

    def first(k, t):
        return truth.linear([m[0][f"layers.{k}.{t}"], m[1][f"layers.{k + 1}.{t}"]],
                            [(0.1, 0.9)[k], 0.4])  # fmt: skip

    def second(k, t):
        tensors = [
            m[2][f"layers.{k + 1}.{t}"],
            m[1][f"layers.{k}.{t}"],
            m[0][f"layers.{k + 1}.{t}"],
        ]
        return truth.linear(tensors, [0.5, 5 if k == 1 else 0.5, 1])

    inner = ("attn.weight", "mlp.weight", "norm.weight")
    truths = {f"layers.{k}.{t}": first(k, t) for k in range(2) for t in inner}
    truths |= {f"layers.{k + 2}.{t}": second(k, t) for k in range(3) for t in inner}
    before = ["embed.weight"]
    for name in ("embed.weight", "head.weight", "scale", "empty"):
        used = (m[:2], [0.1, 0.4]) if name in before else ([m[2], m[1], m[0]], [0.5, 0.5, 1])
        truths[name] = truth.linear([x[name] for x in used[0]], used[1])
    assert out.keys() == truths.keys()
    for name, expected in truths.items():
        error = (out[name].double() - expected).abs()
        assert (error <= 8 * EPS * 4).all(), name


def test_a_franken_merge_copies_bytes(zoos, tmp_path):
    text = """\
merge_method: passthrough
slices:
  - sources: [{model: half/m0, layer_range: [0, 3]}]
  - sources: [{model: half/m1, layer_range: [1, 4], parameters: {scale: [1, 0.5, 1]}}]
"""
    out = merged(text, tmp_path / "out")
    a, b = (load_file(f"half/{m}/model.safetensors") for m in ("m0", "m1"))
    assert torch.equal(out["embed.weight"], a["embed.weight"])
    assert torch.equal(out["head.weight"], b["head.weight"])
    for k in range(6):
        source = a[f"layers.{k}.mlp.weight"] if k < 3 else b[f"layers.{k - 2}.mlp.weight"]
        scale = 0.5 if k == 4 else 1  # a power of two: exact
        assert torch.equal(out[f"layers.{k}.mlp.weight"], source * scale), k


def test_scaling_rounds_once_and_leaves_what_it_does_not_name(tmp_path, monkeypatch):
    """1000 x 1.003 is 1003, which is between the bfloat16 numbers 1000 and 1004."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "m", {"o_proj.weight": torch.full((3,), 1000.0), "q": torch.ones(3) / 3})
    out = merged(
        "merge_method: passthrough\nmodels: [{model: m}]\nout_dtype: bfloat16\n"
        "parameters: {scale: [{filter: o_proj, value: 1.003}]}\n",
        tmp_path / "out",
    )
    assert out["o_proj.weight"].tolist() == [1004.0] * 3
    assert torch.equal(out["q"], (torch.ones(3) / 3).bfloat16())


def test_weights_that_are_no_powers_of_two_do_not_scale(tmp_path, monkeypatch):
    """bfloat16(1/3) is 0.334: three such weights would make everything 1.002 times too large."""
    monkeypatch.chdir(tmp_path)
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    for k in range(3):
        save(tmp_path / f"m{k}", {"w": x.clone()})
    models = ", ".join(f"{{model: m{k}, parameters: {{weight: 0.3333}}}}" for k in range(3))
    out = merged(f"merge_method: linear\nmodels: [{models}]\ndtype: bfloat16\n", tmp_path / "out")
    assert torch.equal(out["w"], x)


def test_float16_near_its_end_does_not_overflow(tmp_path, monkeypatch):
    """3 * 60000 is no float16: weights are divided by their sum before anything is rounded (28)."""
    monkeypatch.chdir(tmp_path)
    for k in range(2):
        save(tmp_path / f"m{k}", {"w": torch.full((8,), 60000.0, dtype=torch.float16)})
    text = "merge_method: linear\nmodels: [{model: m0}, {model: m1}]\nparameters: {weight: 3}\n"
    assert merged(text, tmp_path / "out")["w"].tolist() == [60000.0] * 8


MIXED = {"m0": torch.bfloat16, "m1": torch.float16, "base": torch.float32}


def test_dtypes_mix(tmp_path, monkeypatch):
    """Each tensor is read as it is; written in the base's type, else the first model's."""
    monkeypatch.chdir(tmp_path)
    zoo = {}
    for k, (name, dtype) in enumerate(MIXED.items()):
        tensors = state(k, dtype, SHAPES)
        save(tmp_path / "far" / name, tensors)
        zoo[name] = {key: t.double() for key, t in tensors.items()}
    out = merged(recipe("task_arithmetic", ["m0", "m1"], base="base"), tmp_path / "based")
    truths = {
        k: truth.task_arithmetic([zoo["m0"][k], zoo["m1"][k]], zoo["base"][k], W[:2])
        for k in SHAPES
    }
    check(out, truths, zoo.values())
    out = merged(recipe("linear", ["m0", "m1"]), tmp_path / "plain")
    truths = {k: truth.linear([zoo["m0"][k], zoo["m1"][k]], W[:2]) for k in SHAPES}
    check(out, truths, [zoo["m0"], zoo["m1"]], torch.bfloat16)
    for key in ("dtype", "out_dtype"):
        text = recipe("linear", ["m0", "m1"], more=f"{key}: float64")
        out = merged(text, tmp_path / key)
        check(out, truths, [zoo["m0"], zoo["m1"]], torch.float64)


def test_tensors_that_some_models_lack(tmp_path, monkeypatch):
    """Merged over the models that have them, by the numbers of those; what one alone has stays."""
    monkeypatch.chdir(tmp_path)
    zoo = {}
    for k, name in enumerate(("base", "m0", "m1", "m2")):
        tensors = state(k, shapes=SHAPES)
        if name in ("m1", "m2"):
            del tensors["head.weight"]
        if name == "m1":
            del tensors["scale"]
        save(tmp_path / "far" / name, tensors)
        zoo[name] = {key: t.double() for key, t in tensors.items()}
    text = recipe("linear")
    out = merged(text, tmp_path / "linear")
    x = [zoo[f"m{i}"] for i in range(3)]
    assert out.keys() == SHAPES.keys()
    assert torch.equal(out["head.weight"], x[0]["head.weight"].float())
    scale = truth.linear([x[0]["scale"], x[2]["scale"]], [W[0], W[2]])
    assert (out["scale"].double() - scale).abs() <= 6 * EPS * scale.abs().clamp_min(1)
    out = merged(recipe("task_arithmetic", base="base"), tmp_path / "deltas")
    expected = truth.task_arithmetic([x[0]["head.weight"]], zoo["base"]["head.weight"], W[:1])
    assert ((out["head.weight"].double() - expected).abs() <= 12 * EPS * 4).all()
    _, problems = plan(text)
    assert problems.warnings == [
        "r.yml: far/m1 has no tensor 'head.weight' and 1 more: merged from the models that do",
        "r.yml: far/m2 has no tensor 'head.weight': merged from the models that do",
    ]
    # two are needed, besides the base; so is the base itself
    for wrong in (recipe("model_stock", base="base"), recipe("task_arithmetic", base="m1")):
        with pytest.raises(RecipeError, match=r"has no tensor 'head.weight'.*--exclude"):
            plan(wrong)


@pytest.mark.parametrize("lost", ["layers.2.mlp.weight", "embed.weight"])
def test_a_damaged_model_is_refused(tmp_path, monkeypatch, lost):
    monkeypatch.chdir(tmp_path)
    for name in ("m0", "m1"):
        tensors = state(0, shapes=SHAPES)
        if name == "m1":
            del tensors[lost]
        save(tmp_path / "far" / name, tensors)
    with pytest.raises(RecipeError, match=rf"far/m1 has no tensor '{lost}', which far/m0 has"):
        plan(recipe("linear", ["m0", "m1"]))
    assert lost not in merged_without(recipe("linear", ["m0", "m1"]), lost, tmp_path / "out")


def merged_without(text, pattern, out):
    found, _ = plan(text, exclude=[pattern])
    from wspace.recipes import merge_recipe

    merge_recipe(found, out)
    record = json.loads((out / "wspace.json").read_text())
    assert record["tensors"]["left_out"] == {pattern: f"excluded by {pattern}"}
    return load_file(out / "model.safetensors")


def test_tied_heads(tmp_path, monkeypatch):
    """A head that one model stores and another has as its embeddings is merged with those."""
    monkeypatch.chdir(tmp_path)
    shapes = {"model.embed_tokens.weight": (6, 4), "model.norm.weight": (4,)}
    tied = state(0, shapes=shapes)
    untied = state(1, shapes=shapes | {"lm_head.weight": (6, 4)})
    for name, tensors in (("tied", tied), ("untied", untied)):
        save(tmp_path / name, tensors)
        (tmp_path / name / "config.json").write_text(
            json.dumps({"tie_word_embeddings": name == "tied", "dtype": "float32"})
        )
    text = "merge_method: linear\nmodels: [{model: tied}, {model: untied}]\n"
    out = merged(text + "parameters: {weight: 1}\n", tmp_path / "out")
    expected = (tied["model.embed_tokens.weight"].double() + untied["lm_head.weight"].double()) / 2
    assert ((out["lm_head.weight"].double() - expected).abs() <= 4 * EPS * 4).all()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    both = text.replace("untied", "tied/../tied")
    out = merged(both + "parameters: {weight: 1}\n", tmp_path / "both")
    assert out.keys() == tied.keys()
    config = json.loads((tmp_path / "both" / "config.json").read_text())
    assert config["tie_word_embeddings"] is True


def test_integers_are_copied_where_equal_and_refused_where_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = torch.arange(5)
    for k, more in enumerate((0, 0, 1)):
        save(tmp_path / f"m{k}", {"w": torch.ones(3) * k, "embeddings.position_ids": ids + more})
    text = "merge_method: linear\nmodels: [{model: m0}, {model: m%d}]\nparameters: {weight: 1}\n"
    out = merged(text % 1, tmp_path / "out")
    assert torch.equal(out["embeddings.position_ids"], ids)
    with pytest.raises(ws.MisalignedZooError, match=r"'embeddings.position_ids' \(I64\) differs"):
        merged(text % 2, tmp_path / "other")
    assert not (tmp_path / "other").exists()


ALL = ["linear", "task_arithmetic", "slerp", "nuslerp-deltas-rows", "nuslerp-columns",
       "nuslerp-deltas-columns", "multislerp", "karcher",
       "model_stock", "model_stock-rows", "passthrough-scaled"]  # fmt: skip


@pytest.mark.parametrize("case", ALL)
def test_memory_and_layout_do_not_change_bits(zoos, tmp_path, monkeypatch, case):
    text = CASES[case][0]
    expected = merged(text, tmp_path / "expected")
    small = merged(text, tmp_path / "small", memory="3MiB", max_shard_size="60KB")
    for name, tensors in zoos["far"].items():
        layout = {"shards": 1 + len(name) % 3, "reverse": name in ("m1", "base")}
        save(tmp_path / "far" / name, {k: t.float() for k, t in tensors.items()}, **layout)
    monkeypatch.chdir(tmp_path)
    other = merged(text, tmp_path / "other")
    for out in (small, other):
        assert out.keys() == expected.keys()
        assert all(torch.equal(out[k], expected[k]) for k in expected)


@pytest.mark.parametrize("base", ["", "base"])
def test_columns_of_matrices_that_do_not_fit(tmp_path, monkeypatch, base):
    """Read in pieces: the same bits, and arcs of columns that are zero, equal or opposite."""
    monkeypatch.chdir(tmp_path)
    shapes = {"a": (600, 131), "b": (40, 30, 2, 3), "c": (1, 70), "d": (9, 1), "bias": (131,)}
    zoo = {name: state(k, shapes=shapes) for k, name in enumerate(("base", "m0", "m1"))}
    for model in ("base", "m0"):
        zoo[model]["a"][:, 0] = 0
    zoo["m1"]["a"][:, 1], zoo["m1"]["a"][:, 2] = zoo["m0"]["a"][:, 1], -zoo["m0"]["a"][:, 2]
    for name, tensors in zoo.items():
        save(tmp_path / "far" / name, tensors)
    text = recipe("nuslerp", ["m0", "m1"], "nuslerp_flatten: false, nuslerp_row_wise: true", base)
    (work,) = works_of([plan(text)[0]])
    memory = 4_500_000
    assert len(layout_of(work, device_named("cpu"), memory).cut) == 1
    whole = merged(text, tmp_path / "whole")
    small = merged(text, tmp_path / "small", memory=memory)
    assert all(torch.equal(whole[name], small[name]) for name in shapes)
    b, x, y = (
        {name: tensor.double() for name, tensor in zoo[model].items()}
        for model in ("base", "m0", "m1")
    )
    for name, out in whole.items():
        origin = b[name] if base else torch.zeros_like(b[name])
        expected = origin + truth.by_columns(
            lambda u, v: truth.nuslerp(u, v, W), x[name] - origin, y[name] - origin
        )
        error = (out.double() - expected).abs()
        terms = x[name].abs() + y[name].abs() + origin.abs()
        lost = N_ROUNDINGS * EPS if out.ndim == 1 else 1e-12  # columns are summed in float64
        assert (error <= EPS / 2 * expected.abs() + lost * LARGEST * terms).all(), name


def test_linear_recipes_are_mixes(zoos, tmp_path):
    """The same bits as ``wspace.merge`` of the same weights."""
    zoo = ws.open_zoo(["far/m0", "far/m1", "far/m2"])
    w = torch.tensor(W, dtype=torch.float64)
    ws.merge(zoo, w / w.sum(), tmp_path / "mix")
    mix = load_file(tmp_path / "mix" / "model.safetensors")
    out = merged(CASES["linear"][0], tmp_path / "out")
    assert all(torch.equal(out[k], mix[k]) for k in mix)
    based = ws.open_zoo(["far/m0", "far/m1", "far/m2"], base="far/base")
    ws.merge(based, 1.7 * w, tmp_path / "based")
    mix = load_file(tmp_path / "based" / "model.safetensors")
    out = merged(CASES["task_arithmetic"][0], tmp_path / "deltas")
    assert all(torch.equal(out[k], mix[k]) for k in mix)
    nothing = CASES["task_arithmetic"][0].replace("lambda: 1.7", "lambda: 0")
    base = load_file("far/base/model.safetensors")
    out = merged(nothing, tmp_path / "nothing")
    assert all(torch.equal(out[k], base[k]) for k in base), "no step gives back the base"


def test_nan_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k in range(2):
        tensors = state(k, shapes=SHAPES)
        tensors["layers.1.mlp.weight"][3, 3] = torch.nan if k else 0
        save(tmp_path / "far" / f"m{k}", tensors)
    for method in ("linear", "karcher"):
        text = recipe(method, ["m0", "m1"])
        with pytest.raises(ws.NonFiniteError, match=r"far/m1.*'layers.1.mlp.weight' has NaN"):
            merged(text, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    out = merged(recipe("linear", ["m0", "m1"]), tmp_path / "nan", allow_non_finite=True)
    assert out["layers.1.mlp.weight"].isnan().sum() == 1


@pytest.mark.parametrize("shard", ["5GB", "1KB"])  # a run of bytes, and one of each tensor
def test_blocks_are_looked_up_once_for_each_part_of_a_chunk(zoos, tmp_path, monkeypatch, shard):
    """Not for each run of neighbours in the file too: there may be thousands of both."""
    looked_up, blocks_in = [], CheckpointWriter.blocks_in

    def counting(self, shard, position, nbytes):
        looked_up.append((shard, position, nbytes))
        return blocks_in(self, shard, position, nbytes)

    monkeypatch.setattr(CheckpointWriter, "blocks_in", counting)
    text = recipe("model_stock", base="base")
    out = merged(text, tmp_path / "out", max_shard_size=shard)
    assert len(looked_up) == len(set(looked_up)) <= len(out)
    assert sum(nbytes for _, _, nbytes in looked_up) == sum(t.nbytes for t in out.values())
