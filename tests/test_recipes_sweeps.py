"""Several outputs of methods that choose elements: read once, with the bits of single recipes."""

from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from tests.recipes import least_memory, merged
from tests.zoos import save
from wkernels import cpu
from wspace import devices
from wspace.devices import Cpu, device_named
from wspace.elementwise.work import layout_of
from wspace.errors import NonFiniteError
from wspace.recipes import Problems, cost, merge_outputs, places_of, plan_outputs
from wspace.recipes.chosen import works_of
from wspace.storage import writing

SHAPES = {
    "embed.weight": (300, 131), "layers.0.patch": (4, 5, 3, 3), "layers.0.norm": (23,),
    "layers.1.mlp": (130, 131), "layers.1.norm": (23,), "scale": (), "empty": (0, 8),
}  # fmt: skip
MODELS = ("base", "m0", "m1", "m2")
WHOLE = 1 << 30


def make(root, name, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    save(root / name, {
        k: torch.randn(shape, generator=generator).to(dtype) for k, shape in SHAPES.items()
    })  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweeps")
    for seed, name in enumerate(MODELS):
        make(root, name, seed)
        make(root, f"half-{name}", seed, torch.bfloat16)
        make(root, f"fisher-{name}", seed + 9)
        path = root / f"fisher-{name}" / "model.safetensors"
        save(root / f"fisher-{name}", {k: t.abs() for k, t in load_file(path).items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


def recipe(method, parameters, own="weight: 0.7", models=MODELS[1:], base="base"):
    lines = [f"merge_method: {method}", *([f"base_model: {base}"] if base else []), "models:"]
    for model in models:
        fisher = f"fisher: fisher-{model}, " if method == "fisher" else ""
        lines.append(f"  - {{model: {model}, {fisher}parameters: {{{own}}}}}")
    return "\n".join([*lines, f"parameters: {{{parameters}}}"]) + "\n"


ONE = ("m0",)
SWEEPS = {
    "ties": recipe("ties", "density: {sweep: [0.2, 0.6]}, lambda: {sweep: [1, 1.5]}"),
    "ties, bfloat16": recipe(
        "ties", "density: {sweep: [0.1, 0.2, 1]}", base="half-base",
        models=["half-m0", "half-m1", "half-m2"],
    ),
    "dare_ties": recipe("dare_ties", "density: {sweep: [0.2, 0.6]}, lambda: {sweep: [1, 1.5]}"),
    "breadcrumbs": recipe("breadcrumbs", "density: 0.6, gamma: {sweep: [0.1, 0.2, 0.3]}"),
    "della": recipe(
        "della", "density: {sweep: [0.4, 0.6]}, epsilon: 0.1, lambda: {sweep: [1, 1.5]}"
    ),
    "sce": recipe("sce", "select_topk: {sweep: [0.2, 0.6, 1]}", ""),
    "ramplus_tl": recipe("ramplus_tl", "epsilon: {sweep: [0.5, 1]}, r: 0.1, alpha: 0.3", ""),
    "nearswap": recipe("nearswap", "t: {sweep: [0.01, 0.1]}", "", ONE),
    "arcee_fusion": recipe("arcee_fusion", "", "", ONE) + "dtype: {sweep: [float32, bfloat16]}\n",
    "fisher": recipe("fisher", "epsilon: {sweep: [0, 0.5]}", base=""),
    "ties/paper": recipe("ties/paper", "density: {sweep: [0.2, 0.6]}, lambda: {sweep: [1, 1.5]}"),
    "nuslerp": recipe(
        "nuslerp", "nuslerp_flatten: false, nuslerp_row_wise: true", "weight: 0.7", ("m0", "m1"),
    ).replace("0.7", "{sweep: [0.3, 0.5]}", 1),
}  # fmt: skip


def load(folder):
    return {
        k: t for file in sorted(folder.glob("*.safetensors")) for k, t in load_file(file).items()
    }


def run(text, out, **options):
    outputs = plan_outputs(text, Problems("r.yml"))
    merge_outputs(outputs, places_of(outputs, [str(out)]), **options)
    return outputs


def assert_as_single(outputs, tmp_path, largest="embed.weight"):
    written = set()
    for k, output in enumerate(outputs):
        single = merged(output.recipe.text, tmp_path / f"single-{k}")
        found = load(tmp_path / "out" / output.name)
        assert found.keys() == single.keys()
        for name, tensor in found.items():
            assert tensor.dtype == single[name].dtype
            assert torch.equal(tensor, single[name]), (output.name, name)
        written.add(found[largest].view(torch.uint8).numpy().tobytes())
    assert len(written) == len(outputs), "they differ"


def in_parts(outputs):
    """A budget for 16384 elements of all models, not the 39300 and 17030 of two tensors."""
    (work,) = works_of([output.plan for output in outputs])
    memory = least_memory(work)
    memory += memory // 4  # or thresholds would take turns, and sieves have no room
    assert len(layout_of(work, device_named("cpu"), memory).cut) == 2
    return memory


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in parts"])
@pytest.mark.parametrize("text", SWEEPS.values(), ids=SWEEPS)
def test_a_sweep_reads_once_and_makes_what_single_recipes_make(tmp_path, counted, text, whole):
    seen = []
    memory = WHOLE if whole else in_parts(plan_outputs(text, Problems("r.yml")))
    outputs = run(
        text,
        tmp_path / "out",
        memory=memory,
        progress=lambda done, total: seen.append((done, total)),
    )
    read, counted[0] = counted[0], 0
    told = outputs.cost(memory=memory).read_bytes
    if "half" not in text:  # where equal magnitudes are divided, their block is read again
        assert told == read
    assert told <= read
    assert seen[-1][0] == seen[-1][1]
    assert all(first <= second for (first, _), (second, _) in pairwise(seen))
    singly = max(
        cost(output.plan, memory=WHOLE if whole else in_parts([output])).read_bytes
        for output in outputs
    )
    assert told == singly, "as much as the one that reads most"
    assert outputs.cost(memory=memory).memory_bytes <= memory
    assert_as_single(outputs, tmp_path)


SEVERAL = "---\n".join(
    [
        recipe("ties", "density: 0.4"),
        recipe("dare_ties", "density: 0.5", models=("m2", "m0")),
        recipe("nearswap", "t: 0.1", "", ("base",), "m1"),
        recipe("ram", "", "", models=("m0", "m1", "m2")) + "dtype: bfloat16\n",
    ]
)


def size(*models):
    return sum(
        t.nbytes for model in models for t in load_file(f"{model}/model.safetensors").values()
    )


def test_recipes_that_read_some_of_the_same_models_share_their_reads(tmp_path, counted):
    outputs = run(SEVERAL, tmp_path / "out")
    assert counted[0] == size(*MODELS) == outputs.cost().read_bytes
    assert_as_single(outputs, tmp_path)


def test_statistics_of_whole_models_are_found_in_the_same_reads(tmp_path, counted):
    text = "---\n".join(
        [recipe("ties/paper", f"density: {k / 10}", models=("m0", f"m{k}")) for k in (1, 2)]
    )
    outputs = run(text, tmp_path / "out")
    # three digits, the signs, and the output; of either's models, as neither has all of the other's
    expected = 5 * size("base", "m0", "m1") + 5 * size("base", "m0", "m2")
    assert counted[0] == expected == outputs.cost().read_bytes
    counted[0] = 0
    outputs = run(SWEEPS["ties/paper"], tmp_path / "sweep")
    assert counted[0] == 5 * size(*MODELS) == outputs.cost().read_bytes


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in parts"])
def test_what_is_kept_alike_is_found_once(tmp_path, monkeypatch, whole):
    made = []

    class Counted(cpu.Sieve):
        def __init__(self, *arguments, **options):
            made.append(1)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(cpu, "Sieve", Counted)
    text = recipe("ties", "density: 0.4, lambda: 1")
    several = text.replace("0.4", "{sweep: [0.4, 0.5, 0.6]}")
    memory = WHOLE if whole else in_parts(plan_outputs(several, Problems("r.yml")))
    run(text, tmp_path / "one", memory=memory)
    once = len(made)
    run(text.replace("lambda: 1", "lambda: {sweep: [1, 2, 3]}"), tmp_path / "alike", memory=memory)
    assert len(made) == 2 * once
    run(several, tmp_path / "other", memory=memory)
    assert len(made) == 5 * once


def test_a_model_that_one_output_alone_reads_is_named_for_it(tmp_path):
    state = load_file("m1/model.safetensors")
    state["layers.1.mlp"][3, 5] = torch.nan
    save(tmp_path / "broken", state)
    good, bad = (
        recipe("ties", "density: 0.4"),
        recipe("ties", "density: 0.5", models=("m0", tmp_path / "broken")),
    )
    with pytest.raises(NonFiniteError, match=r"broken.*'layers.1.mlp'|'layers.1.mlp'.*broken"):
        run(f"{good}---\n{bad}", tmp_path / "out")


def test_many_densities_take_turns_where_memory_is_scarce(tmp_path, folder, monkeypatch):
    """Candidates for the thresholds of a tensor that does not fit are held at a time, in memory."""
    for name, seed in (("wide-base", 1), ("wide-m0", 2)):
        generator = torch.Generator().manual_seed(seed)
        save(folder / name, {"w": torch.randn(40, 16384, generator=generator)})
    monkeypatch.setattr(Cpu, "chunk_bytes", 1 << 17)  # or chunks leave no room
    monkeypatch.setattr(devices, "processors", lambda: 2)  # each thread has some, too
    values = ", ".join(str(k / 20) for k in range(1, 11))
    text = recipe("ties", f"density: {{sweep: [{values}]}}", "weight: 1", ["wide-m0"], "wide-base")
    plans = [output.plan for output in plan_outputs(text, Problems("r.yml"))]
    (work,) = works_of(plans)
    memory = 2_500_000
    layout = layout_of(work, device_named("cpu"), memory)
    (rounds,) = layout.rounds
    assert 1 < len(rounds) < len(plans)
    assert sorted(use for uses in rounds for use in uses) == list(range(len(plans)))
    assert cost(*plans, memory=memory).memory_bytes <= memory
    outputs = run(text, tmp_path / "out", memory=memory)
    assert_as_single(outputs, tmp_path, "w")


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("memory", ["200MiB", "6MiB"], ids=["whole", "in parts"])
@pytest.mark.parametrize("method", ["ties", "della", "ties/paper"])
def test_a_sweep_goes_on(tmp_path, monkeypatch, method, memory):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writing, "COMMIT_SECONDS", 0)  # every block is journaled at once
    shapes = {"w": (700, 600), "v": (500, 600), "norm": (600,)}  # several blocks of the journal
    for seed, name in enumerate(MODELS):
        generator = torch.Generator().manual_seed(seed)
        save(tmp_path / name, {k: torch.randn(s, generator=generator) for k, s in shapes.items()})

    def stop(done, total):
        if done > 0.9 * total:
            raise StoppedError

    run(SWEEPS[method], tmp_path / "expected")
    with pytest.raises(StoppedError):
        run(SWEEPS[method], tmp_path / "out", memory="6MiB", progress=stop)
    said, seen = [], []
    outputs = run(
        SWEEPS[method], tmp_path / "out", memory=memory, note=said.append,
        progress=lambda done, total: seen.append(done / total),
    )  # fmt: skip
    assert sum("going on from" in line for line in said) == len(outputs)
    assert seen[-1] == 1
    for output in outputs:
        found, expected = (load(tmp_path / k / output.name) for k in ("out", "expected"))
        assert all(torch.equal(found[name], expected[name]) for name in shapes)
