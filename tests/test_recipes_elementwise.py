"""Methods that choose elements: recipes run against float64, their traps, and their statistics."""

import numpy as np
import pytest
import torch

import wspace as ws
from tests import elementwise_truth as truth
from tests.recipes import least_memory, merged, plan
from tests.zoos import save
from wspace.devices import device_named
from wspace.elementwise.work import layout_of
from wspace.recipes import RecipeError
from wspace.recipes.chosen import works_of

SHAPES = {
    "embed.weight": (50, 8),
    **{
        f"layers.{k}.{name}": shape
        for k in range(2)
        for name, shape in {
            "attn.weight": (37, 23), "mlp.weight": (300 - 170 * k, 131), "norm.weight": (23,),
            "patch.weight": (4, 5, 3, 3),
        }.items()
    },
    "one": (1,),
    "lines.weight": (9, 1),
    "scale": (),
    "empty": (0, 8),
}  # fmt: skip
WEIGHTS = [0.5, 0.25, 1.5]
EPS = torch.finfo(torch.float32).eps


def make(root, dtype=torch.float32, step=0.1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = {k: torch.randn(shape, generator=generator).to(dtype) for k, shape in SHAPES.items()}
    states = {"base": base}
    for i in range(3):
        states[f"m{i}"] = {
            k: (t.float() + step * torch.randn(t.shape, generator=generator)).to(dtype)
            for k, t in base.items()
        }
    for name, tensors in states.items():
        save(root / name, tensors)
    return states


@pytest.fixture(scope="module")
def zoos(tmp_path_factory):
    root = tmp_path_factory.mktemp("elementwise")
    found = {"full": make(root / "full"), "half": make(root / "half", torch.bfloat16)}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield found


def recipe(method, own="", parameters="", zoo="full", n=3, weighted=True):
    lines = [f"merge_method: {method}", f"base_model: {zoo}/base", "models:"]
    for k in range(n):
        given = ", ".join([f"weight: {WEIGHTS[k]}"] * weighted + [own] * bool(own))
        lines.append(f"  - {{model: {zoo}/m{k}, parameters: {{{given}}}}}")
    return "\n".join([*lines, f"parameters: {{{parameters}}}"]) + "\n"


def check(found, states, expected, n=3):
    """Every tensor is the float64 result rounded once, up to what float32 sums lose."""
    models = [states[f"m{k}"] for k in range(n)]
    for name, base in states["base"].items():
        out = found[name]
        x = [model[name] for model in models]
        wanted = expected(name, x, base).reshape(base.shape)
        assert out.dtype == base.dtype and out.shape == base.shape
        terms = sum((t.double() - base.double()).abs() for t in x) + base.double().abs()
        bound = torch.finfo(out.dtype).eps / 2 * wanted.abs() + 40 * EPS * terms
        wrong = (out.double() - wanted).abs() > bound
        assert not wrong.any(), (name, int(wrong.sum()), wrong.nonzero()[:3])


def vectors(chosen, *, consensus, normalize, rescale=False, scale=1.0, n=3):
    """The task-vector family: ``chosen(name, d, shape)`` keeps elements of the differences."""

    def expected(name, x, base):
        d = truth.differences(x, base)
        kept = chosen(name, d, base.shape)
        kept = truth.rescaled(kept, d) if rescale else kept
        return truth.task_vectors(
            kept, base.flatten(), WEIGHTS[:n], consensus=consensus, normalize=normalize, scale=scale
        )

    return expected


def trim(density):
    return lambda name, d, shape: truth.trimmed(d, [density] * len(d))


PLAIN = ("", {"normalize": True})
SCALED = ("normalize: false, lambda: 1.5", {"normalize": False, "scale": 1.5})
RESCALED = ("rescale: true", {"normalize": True, "rescale": True})


@pytest.mark.parametrize(
    ("zoo", "density", "parameters", "options"),
    [
        ("full", 0.3, *PLAIN), ("half", 0.01, *PLAIN), ("half", 1, *PLAIN),
        ("half", 0.3, *SCALED), ("full", 1, *SCALED), ("full", 0.01, *RESCALED),
        ("half", 0.3, *RESCALED),
    ],
)  # fmt: skip
def test_ties(zoos, tmp_path, zoo, density, parameters, options):
    found = merged(recipe("ties", f"density: {density}", parameters, zoo), tmp_path / "out")
    check(found, zoos[zoo], vectors(trim(density), consensus=True, **options))


def test_ties_by_hand(tmp_path, monkeypatch):
    """Half of four elements are kept; the elected sign is that of the sum; means of what agrees."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "full" / "base", {"w": torch.ones(4)})
    save(tmp_path / "full" / "m0", {"w": torch.tensor([5.0, 0.5, -1.0, 1.0])})
    save(tmp_path / "full" / "m1", {"w": torch.tensor([3.0, 1.0, 2.0, 5.0])})
    text = recipe("ties", "density: 0.5", n=2).replace("0.25", "0.5")
    found = merged(text, tmp_path / "out")["w"]
    # kept: [4, 0, -2, 0] and [2, 0, 0, 4]
    assert found.tolist() == [1 + 3.0, 1.0, 1 - 2.0, 1 + 4.0]


@pytest.mark.parametrize("zoo", ["full", "half"])
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "dare/paper"])
def test_dare(zoos, tmp_path, zoo, method):
    found = merged(recipe(method, "density: 0.4", "lambda: 0.7", zoo), tmp_path / "out", seed=3)
    paper = method == "dare/paper"

    def chosen(name, d, shape):
        kept = truth.kept_by_draw(d, name, [0.4] * 3, models(zoo), seed=3)
        return kept.double() / float(np.float32(0.4)) if paper else kept

    check(found, zoos[zoo], vectors(
        chosen, consensus=method == "dare_ties", normalize=False, rescale=not paper, scale=0.7
    ))  # fmt: skip


def models(zoo):
    """The numbers of the three models in a plan: as listed."""
    return range(3)


@pytest.mark.parametrize(
    ("zoo", "gamma", "method"),
    [
        ("half", 0.0, "breadcrumbs"), ("full", 0.01, "breadcrumbs"), ("half", 0.2, "breadcrumbs"),
        ("full", 0.2, "breadcrumbs_ties"), ("half", 0.01, "breadcrumbs_ties"),
    ],
)  # fmt: skip
def test_breadcrumbs(zoos, tmp_path, zoo, gamma, method):
    """With no outliers, as in tensors smaller than 1 / gamma, all of density is kept (trap 1)."""
    found = merged(recipe(method, f"density: 0.6, gamma: {gamma}", "", zoo), tmp_path / "out")

    def chosen(name, d, shape):
        return truth.without_outliers(d, [0.6] * 3, [gamma] * 3)

    check(found, zoos[zoo], vectors(chosen, consensus=method != "breadcrumbs", normalize=False))


@pytest.mark.parametrize("zoo", ["full", "half"])
@pytest.mark.parametrize("method", ["della", "della_linear", "della/paper"])
def test_della(zoos, tmp_path, zoo, method):
    found = merged(recipe(method, "density: 0.5, epsilon: 0.2", "", zoo), tmp_path / "out")
    paper = method == "della/paper"

    def chosen(name, d, shape):
        chances = [truth.rank_chances(row, shape, 0.5, 0.2).float() for row in d]
        kept = truth.kept_by_draw(d, name, chances, models(zoo))
        return kept.double() / torch.stack(chances) if paper else kept

    linear = method == "della_linear"
    check(found, zoos[zoo], vectors(
        chosen, consensus=not linear, normalize=not linear, rescale=not paper
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("zoo", "share", "method"),
    [
        ("full", 0, "sce"), ("half", 0.1, "sce"), ("full", 0.5, "sce"), ("half", 1, "sce"),
        ("full", 0.1, "sce/exact"), ("half", 0.5, "sce/exact"),
    ],
)  # fmt: skip
def test_sce(zoos, tmp_path, zoo, share, method):
    """A share of 0 is the base, in its shape (trap 26)."""
    text = recipe(method, "", f"select_topk: {share}", zoo, weighted=False)
    found = merged(text, tmp_path / "out")
    guard = 1e-6 if method == "sce" else 0.0

    def expected(name, x, base):
        return truth.sce(truth.differences(x, base), base.flatten(), share, guard)

    check(found, zoos[zoo], expected)


@pytest.mark.parametrize("zoo", ["full", "half"])
def test_ram(zoos, tmp_path, zoo):
    for method, r, alpha in (("ram", 0.0, 0.0), ("ramplus_tl", 0.3, 0.25)):
        more = f", r: {r}, alpha: {alpha}" if r else ""
        text = recipe(method, "", f"epsilon: 0.1{more}", zoo, weighted=False)
        found = merged(text, tmp_path / method)

        def expected(name, x, base, r=r, alpha=alpha):
            return truth.ram(truth.differences(x, base), base.flatten(), np.float32(0.1), r, alpha)

        check(found, zoos[zoo], expected)


@pytest.mark.parametrize("zoo", ["full", "half"])
def test_nearswap_and_fusion(zoos, tmp_path, zoo):
    text = recipe("nearswap", "", "t: 0.05", zoo, n=1, weighted=False)
    found = merged(text, tmp_path / "swap")
    check(found, zoos[zoo], lambda name, x, base: truth.nearswap(x[0], base, 0.05), n=1)
    found = merged(recipe("arcee_fusion", "", "", zoo, n=1, weighted=False), tmp_path / "fusion")
    wide = {k: t for k, t in zoos[zoo]["base"].items() if t.numel()}
    states = {name: {k: state[k] for k in wide} for name, state in zoos[zoo].items()}
    check(found, states, lambda name, x, base: truth.fusion(x[0], base), n=1)


def test_ties_of_the_paper(zoos, tmp_path):
    """One threshold for each whole model; what is undecided goes with most of it."""
    states = zoos["half"]
    text = recipe("ties/paper", "density: 0.3", "lambda: 1.5", "half", weighted=False)
    found = merged(text, tmp_path / "out")
    names = list(states["base"])
    d = {k: truth.differences([states[f"m{i}"][k] for i in range(3)], states["base"][k])
         for k in names}  # fmt: skip
    whole = torch.cat([d[k] for k in names], dim=1)
    size = whole.shape[1]
    limits = [row.abs().kthvalue(size - int(0.3 * size)).values for row in whole]
    kept = {
        k: torch.stack(
            [
                torch.where(row.abs() >= limit, row, 0.0)
                for row, limit in zip(d[k], limits, strict=True)
            ]
        )
        for k in names
    }
    balance = sum(float(kept[k].sum(0).sign().sum()) for k in names)
    assert balance != 0

    def expected(name, x, base):
        ones = [1.0] * 3
        return truth.joined(
            kept[name], base.flatten(), factor=ones, vote=ones, share=ones, scale=1.5, elect="sum",
            undecided=float(np.sign(balance)),
        )  # fmt: skip

    check(found, states, expected)


@pytest.mark.parametrize("frequency", [False, True])
def test_ties_of_peft(zoos, tmp_path, frequency):
    parameters = f"frequency: {str(frequency).lower()}"
    found = merged(recipe("ties/peft", "density: 0.3", parameters, "half"), tmp_path / "out")

    def expected(name, x, base):
        ones = [1.0] * 3
        return truth.joined(
            truth.trimmed(truth.differences(x, base), [0.3] * 3), base.flatten(), factor=WEIGHTS,
            vote=ones, share=ones, elect="signs" if frequency else "sum",
        )  # fmt: skip

    check(found, zoos["half"], expected)


ALL = {
    "ties": ("density: 0.3", ""),
    "ties/paper": ("density: 0.3", ""),
    "dare_ties": ("density: 0.3", ""),
    "dare/peft": ("density: 0.3", ""),
    "breadcrumbs": ("density: 0.3", ""),
    "della": ("density: 0.3", ""),
    "sce": ("", "select_topk: 0.4"),
    "ramplus_tl": ("", ""),
    "nearswap": ("", "t: 0.01"),
    "arcee_fusion": ("", ""),
}


@pytest.mark.parametrize("method", ALL)
def test_bits_do_not_depend_on_memory_or_shards(zoos, tmp_path, method):
    """A budget too small for the largest tensor reads it in pieces, once for each statistic."""
    own, parameters = ALL[method]
    n = 1 if method in ("nearswap", "arcee_fusion") else 3
    weighted = "weight" in str(plan_parameters(method))
    text = recipe(method, own, parameters, "half", n, weighted)
    found = merged(text, tmp_path / "all")
    (work,) = works_of([plan(text)[0]])
    memory = least_memory(work)  # 16384 elements of all models, not the 39300 and 17030 of two
    assert len(layout_of(work, device_named("cpu"), memory).cut) == 2
    small = merged(text, tmp_path / "small", memory=memory, max_shard_size="20KB")
    assert found.keys() == small.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor.view(torch.int16), small[name].view(torch.int16)), name


def test_quantiles_of_a_tensor_in_pieces_are_found_by_a_sieve_or_digits(tmp_path, monkeypatch):
    """The same bits: importances in memory, in pieces with room for a sieve, and without."""
    monkeypatch.chdir(tmp_path)
    for seed, model in enumerate(("base", "m0")):
        generator = torch.Generator().manual_seed(seed)
        save(tmp_path / "zoo" / model, {"x": torch.randn(5000, 131, generator=generator)})
    text = recipe("arcee_fusion", zoo="zoo", n=1, weighted=False)
    found = merged(text, tmp_path / "all")["x"]
    (work,) = works_of([plan(text)[0]])
    least = least_memory(work)
    for memory, sifted in ((least, False), (least + 3 * 655_000, True)):
        layout = layout_of(work, device_named("cpu"), memory)
        assert [0 in uses for uses in layout.sifted] == [sifted]
        out = merged(text, tmp_path / f"{sifted}", memory=memory)["x"]
        assert torch.equal(out.view(torch.int32), found.view(torch.int32))


def plan_parameters(method):
    from wspace.recipes.methods import METHODS

    return [parameter.name for parameter in METHODS[method].each]


def test_seeds_and_places_make_the_draws(zoos, tmp_path):
    text = recipe("dare_linear", "density: 0.5")
    one, same, other = (
        merged(text, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    name = "layers.0.mlp.weight"
    assert torch.equal(one[name], same[name])
    assert not torch.equal(one[name], other[name])


def test_draws_are_unbiased_in_the_paper_and_keep_sums_in_mergekit(zoos, tmp_path):
    """Their names are not swapped (trap 3); the share of what is kept is the density (5 sigma)."""
    name, density, n = "layers.0.mlp.weight", 0.25, 300 * 131
    base, x = zoos["full"]["base"][name].double(), zoos["full"]["m0"][name].double()
    sums, shares = [], []
    for seed in range(8):
        for method in ("dare/paper", "dare_linear"):
            text = recipe(method, f"density: {density}", n=1).replace("weight: 0.5", "weight: 1")
            out = merged(text, tmp_path / f"{method.replace('/', '-')}-{seed}", seed=seed)
            d = out[name].double() - base
            if method == "dare/paper":
                sums.append(d)
                shares.append(float((d != 0).sum()))
            else:
                ratio = float(d.abs().sum() / (x - base).abs().sum())
                assert abs(ratio - 1) < 1e-5
    deviation = (n * density * (1 - density)) ** 0.5
    assert all(abs(share - n * density) < 5 * deviation for share in shares)
    mean = torch.stack(sums).mean(0)
    spread = ((x - base).square() * (1 / density - 1) / 8).sqrt()
    error = (mean - (x - base)) / spread
    assert abs(float(error.mean())) < 5 / n**0.5
    assert 0.95 < float(error.square().mean()) < 1.05


@pytest.mark.parametrize("method", ["ties", "dare_ties", "breadcrumbs", "della", "ties/paper"])
def test_density_zero_of_one_model_leaves_the_others(zoos, tmp_path, method):
    """No NaN, and nothing of that model (peft#3486)."""
    text = recipe(method, "density: 0", weighted=method != "ties/paper")
    text = text.replace("density: 0}", "density: 1}", 1)
    found = merged(text, tmp_path / "out")
    assert all(tensor.isfinite().all() for tensor in found.values())
    name = "layers.1.mlp.weight"
    moved = found[name] - zoos["full"]["base"][name]
    if method != "ties/paper":
        d = zoos["full"]["m0"][name] - zoos["full"]["base"][name]
        scale = 1.0 if method in ("ties", "della") else 0.5
        torch.testing.assert_close(moved, scale * d, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "own", "parameters", "message"),
    [
        ("ties", "density: 0", "", "r.yml:1: density prunes all"),
        ("ties", "density: 1.5", "", "r.yml:4: density 1.5: expected 0 to 1"),
        ("dare_ties", "density: [0.5, -1]", "", "density -1: expected 0 to 1"),
        ("sce", "", "select_topk: 2", "r.yml:7: select_topk 2: expected 0 to 1"),
        ("della", "density: 0.9, epsilon: 0.2", "", "density 0.9 with epsilon 0.2"),
        ("ties/paper", "density: [0.1, 0.2]", "", "one threshold for each whole model"),
        ("nearswap", "", "", "takes 1 models besides the base, found 3"),
        ("tise", "", "", "did you mean ties"),
    ],
)
def test_what_is_refused(zoos, method, own, parameters, message):
    with pytest.raises(RecipeError, match=message.replace(".", r"\.")):
        plan(recipe(method, own, parameters, weighted=method not in ("sce", "ties/paper")))


def test_small_tensors_that_a_density_prunes_are_named(zoos):
    _, problems = plan(recipe("ties", "density: 0.02"))
    assert any("density keeps no element of" in note for note in problems.notes)


def test_nan_in_an_input_is_refused_with_its_name(zoos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("base", "m0", "m1", "m2"):
        tensor = torch.ones(50)
        tensor[7] = torch.nan if name == "m1" else 1
        save(tmp_path / "full" / name, {"w": tensor})
    with pytest.raises(Exception, match=r"m1.*'w' has NaN or Inf"):
        merged(recipe("dare_ties", "density: 0.5"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_geometric_median_is_that_of_each_tensor(zoos, tmp_path):
    """The sum of distances is that of the median found by another algorithm, on the same Gram."""
    text = recipe("geometric_median", "", weighted=False)
    found = merged(text, tmp_path / "out")
    for name in ("layers.0.mlp.weight", "embed.weight"):
        base, *rows = (zoos["full"][k][name].double().flatten() for k in ("base", "m0", "m1", "m2"))
        d = torch.stack(rows) - base
        weights = ws.geometric_median(d @ d.T)[0]

        def total(point, rows=rows):
            return float(sum((row - point).norm() for row in rows))

        best = total(base + weights @ d)
        assert total(found[name].double().flatten()) <= best * (1 + 1e-6)
        assert best < total(base + d.mean(0))
