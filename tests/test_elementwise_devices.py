"""Methods that choose elements on a device with its own memory: the bits are the CPU's.

The device is host memory and threads (``tests.host_accelerator``), and kernels are interpreted.
"""

import math
import time
from functools import partial
from itertools import chain

import pytest
import torch

from tests.host_accelerator import HostAccelerator
from tests.recipes import plan
from tests.zoos import save
from wkernels import bands
from wkernels.gpu import ranks
from wspace import cuda, devices, pipeline, placement
from wspace.devices import Cpu, device_named
from wspace.elementwise.choices import Largest
from wspace.elementwise.lanes import LANES, Lane, at_once, cost_of_lanes, lanes_of
from wspace.elementwise.work import layout_of
from wspace.errors import WspaceError
from wspace.placement import Choice
from wspace.profiling import PASS, READS, profiled, stage
from wspace.recipes import merge_recipe
from wspace.recipes.chosen import works_of
from wspace.recipes.devices import device_for, job_of
from wspace.stream import CUT

SHAPES = {"a.weight": (30, 41), "b.weight": (7,), "c.weight": (3, 70)}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    root = tmp_path_factory.mktemp("chosen")
    write(root, SHAPES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


def write(root, shapes):
    """A base, three models in two types, and Fisher diagonals of each."""
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for k in range(4):
        model = {
            name: t + 0.1 * k * torch.randn(t.shape, generator=generator)
            for name, t in base.items()
        }
        for kind, dtype in (("full", torch.float32), ("half", torch.bfloat16)):
            folder = root / kind / (f"m{k - 1}" if k else "base")
            save(folder, {name: tensor.to(dtype) for name, tensor in model.items()})
        save(root / f"fisher{k - 1}", {name: t.square() for name, t in model.items()})


@pytest.fixture
def accelerators(monkeypatch):
    made = []

    def make(name):
        made.append(HostAccelerator(seed=len(made)))
        return made[-1]

    monkeypatch.setattr(cuda, "Cuda", make)
    monkeypatch.setattr(pipeline, "SLICE", 512)
    monkeypatch.setattr(ranks, "TILE", 256)  # sorting is slow in the interpreter
    monkeypatch.setattr(ranks, "MERGED", 256)
    return made


def recipe(method, own="weight: 0.7", parameters="", zoo="half", n=3):
    kinds = [zoo] * n if zoo != "mixed" else ["half", "full", "half"][:n]
    lines = [f"merge_method: {method}", "models:"]
    if method != "fisher":
        lines.insert(1, f"base_model: {kinds[0]}/base")
    for k, kind in enumerate(kinds):
        diagonals = f"fisher: fisher{k}, " if method == "fisher" else ""
        lines.append(f"  - {{model: {kind}/m{k}, {diagonals}parameters: {{{own}}}}}")
    return "\n".join([*lines, f"parameters: {{{parameters}}}"]) + "\n"


RECIPES = {
    "ties": recipe("ties", "weight: 0.7, density: 0.3"),
    "ties, float32": recipe("ties", "weight: 0.7, density: 0.3", "lambda: 1.5", "full"),
    "ties, two types": recipe("ties", "weight: 0.7, density: 0.5", zoo="mixed"),
    "dare": recipe("dare_ties", "weight: 0.4, density: 0.6", "rescale: true"),
    "breadcrumbs": recipe("breadcrumbs_ties", "weight: 0.7, density: 0.6, gamma: 0.1"),
    "sce": recipe("sce", "", "select_topk: 0.4"),
    "ram": recipe("ramplus_tl", ""),
    "nearswap": recipe("nearswap", "", "t: 0.01", n=1),
    "della": recipe("della", "weight: 0.7, density: 0.5, epsilon: 0.1", "rescale: true"),
    "della_linear, two types": recipe(
        "della_linear", "weight: 0.7, density: 0.5, epsilon: 0.2", "rescale: false", zoo="mixed"
    ),
    "della of the paper": recipe("della/paper", "weight: 0.7, density: 0.4, epsilon: 0.2"),
    "arcee_fusion": recipe("arcee_fusion", "", n=1),
    "nuslerp of columns": recipe(
        "nuslerp", "weight: 0.7", "nuslerp_flatten: false, nuslerp_row_wise: true", n=2
    ),
    "nuslerp of columns, two types": recipe(
        "nuslerp", "weight: 0.7", "nuslerp_flatten: false, nuslerp_row_wise: true", "mixed", n=2
    ),
    "fisher": recipe("fisher", "weight: 0.5"),
}


def files(path):
    return {file.name: file.read_bytes() for file in sorted(path.glob("*.safetensors"))}


def merged(text, out, device, **options):
    merge_recipe(plan(text)[0], out, device=device, **options)
    return files(out)


@pytest.mark.parametrize("text", RECIPES.values(), ids=RECIPES)
def test_a_recipe_has_the_bits_of_the_cpus(zoo, accelerators, tmp_path, text):
    expected = merged(text, tmp_path / "cpu", "cpu")
    assert merged(text, tmp_path / "cuda", "cuda") == expected
    assert any(accelerator.steps for accelerator in accelerators)  # one was used
    base = {file.name: file.read_bytes() for file in (zoo / "half" / "base").glob("*.safetensors")}
    assert expected != base


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    root = tmp_path_factory.mktemp("alike")
    write(root, {f"{k}.weight": (30 + k % 3, 41) for k in range(12)})
    return root


OF_WHOLE_MODELS = recipe("ties/paper", "density: 0.3", "lambda: 1.5")


@pytest.mark.parametrize("threads", [2, 5])
@pytest.mark.parametrize("text", [*RECIPES.values(), OF_WHOLE_MODELS], ids=[*RECIPES, "whole"])
def test_a_recipe_has_the_same_bits_with_any_number_of_processors(
    alike, tmp_path, monkeypatch, text, threads
):
    monkeypatch.chdir(alike)
    works = works_of([plan(text)[0]])
    assert len(lanes_of(works, Cpu(threads), 1 << 30)) == min(threads, LANES)
    monkeypatch.setattr(devices, "processors", lambda: 1)
    expected = merged(text, tmp_path / "alone", "cpu")
    monkeypatch.setattr(devices, "processors", lambda: threads)
    assert merged(text, tmp_path / "together", "cpu") == expected


def test_processors_are_divided_where_none_has_much_more_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"a": (400, 500), "b": (400, 500)})
    (even,) = works_of([plan(RECIPES["ties"])[0]])
    assert len(lanes_of([even], Cpu(2), 1 << 30)) == 2
    counts = set()
    for budget in range(2 << 20, 40 << 20, 1 << 20):
        lanes, alone = lanes_of([even], Cpu(2), budget), Lane(Cpu(2), [even], budget)
        counts.add(len(lanes))  # one, where half of the memory would mean more reads
        assert cost_of_lanes(lanes).read_bytes == cost_of_lanes([alone]).read_bytes
        assert cost_of_lanes(lanes).held_bytes <= budget
    assert counts == {1, 2}
    write(tmp_path, {"a": (400, 500), "b": (200, 500)})
    (uneven,) = works_of([plan(RECIPES["ties"])[0]])
    assert len(lanes_of([uneven], Cpu(2), 1 << 30)) == 1


def test_thresholds_of_whole_models(zoo, accelerators, tmp_path):
    text = OF_WHOLE_MODELS
    (work,) = works_of([plan(text)[0]])
    assert isinstance(work.choices[0].keep, Largest)
    assert work.choices[0].keep.whole
    expected = merged(text, tmp_path / "cpu", "cpu")
    assert merged(text, tmp_path / "cuda", "cuda") == expected


def test_a_tensor_that_does_not_fit_is_read_in_pieces(accelerators, tmp_path, monkeypatch):
    write(tmp_path, {"a.weight": (CUT + 30,)})
    monkeypatch.chdir(tmp_path)
    text = recipe("ties", "weight: 0.7, density: 0.3", n=2)
    expected = merged(text, tmp_path / "cpu", "cpu")
    memory = 900_000
    (work,) = works_of([plan(text)[0]])
    assert len(layout_of(work, device_named("cuda"), memory).cut) == 1
    assert merged(text, tmp_path / "cuda", "cuda", memory=memory) == expected


def test_columns_that_do_not_fit_are_read_in_bands(accelerators, tmp_path, monkeypatch):
    monkeypatch.setattr(bands, "BAND", 4096)
    write(tmp_path, {"a.weight": (600, 131)})
    monkeypatch.chdir(tmp_path)
    text = RECIPES["nuslerp of columns"]
    whole = merged(text, tmp_path / "whole", "cuda")
    memory = 1_500_000
    (work,) = works_of([plan(text)[0]])
    (plans,) = layout_of(work, device_named("cuda"), memory).cut
    assert len(plans) > 1
    assert all(part.pieces[0].start % (16 * 131) == 0 for part in plans)
    assert merged(text, tmp_path / "pieces", "cuda", memory=memory) == whole


SEVERAL = "cuda:1,cuda:0,cuda:2"


@pytest.mark.parametrize("method", ["ties, two types", "dare", "della", "arcee_fusion", "fisher"])
def test_several_gpus_have_tensors_of_their_own(zoo, accelerators, tmp_path, method):
    expected = merged(RECIPES[method], tmp_path / "cpu", "cpu")
    assert merged(RECIPES[method], tmp_path / "cuda", SEVERAL) == expected
    assert sum(accelerator.steps > 0 for accelerator in accelerators) == 3


def test_thresholds_of_whole_models_on_several_gpus(zoo, accelerators, tmp_path):
    text = OF_WHOLE_MODELS
    expected = merged(text, tmp_path / "cpu", "cpu")
    assert merged(text, tmp_path / "cuda", SEVERAL) == expected
    assert sum(accelerator.steps > 0 for accelerator in accelerators) == 3


def test_as_many_gpus_work_as_the_budget_has_buffers_for(zoo, accelerators):
    works = works_of([plan(RECIPES["ties"])[0]])
    device = device_named(SEVERAL)
    plenty = lanes_of(works, device, 1 << 30)
    assert [lane.worker.name for lane in plenty] == ["cuda:1", "cuda:0", "cuda:2"]
    names = [[t.name for work in lane.works for t in work.zoo.tensors] for lane in plenty]
    assert sorted(chain(*names)) == sorted(SHAPES)
    (alone,) = lanes_of(works, device.devices[0], 1 << 30)
    assert cost_of_lanes(plenty).read_bytes == cost_of_lanes([alone]).read_bytes
    few = [len(lanes_of(works, device, budget)) for budget in range(0, 1 << 22, 1 << 16)]
    assert few == sorted(few)
    assert set(few) == {1, 2, 3}


def test_the_error_of_one_ends_the_others():
    told = []

    def failing(progress):
        raise WspaceError("one")

    def endless(progress):
        while True:
            progress(1)

    with pytest.raises(WspaceError, match="one"):
        at_once([endless, failing, endless], told.append)
    counting = partial(lambda n, progress: [progress(1) for _ in range(n)] and n)
    assert at_once([partial(counting, n) for n in (1000, 2000)], told.append) == [1000, 2000]


def test_what_several_wait_for_at_once_counts_once():
    def waiting(progress):
        with stage(READS):
            time.sleep(0.2)

    with profiled() as profile:
        at_once([waiting] * 3, print)
    assert 0 < profile.seconds[READS] <= profile.seconds[PASS] <= profile.elapsed


H200 = placement.Found("NVIDIA H200", "hopper")


def test_where_a_recipe_runs_is_estimated_and_said(zoo, monkeypatch):
    ties, linear = (plan(text)[0] for text in (RECIPES["ties"], recipe("task_arithmetic")))
    numel = sum(math.prod(shape) for shape in SHAPES.values())
    job = job_of([ties])
    assert (job.read, job.written) == (8 * numel, 2 * numel)
    assert job.flops == 0
    assert job.choices == 4 * 2 * numel  # once for the thresholds, once for the output
    assert device_for([ties], "auto") == Choice("cpu")  # no GPU: nothing to choose
    monkeypatch.setattr(placement, "_may_have_gpu", lambda: True)
    monkeypatch.setattr(placement, "_found", lambda: H200)
    few = device_for([ties, linear], "auto")
    assert few.name == "cpu"
    assert str(few.reason).startswith("device cpu: estimated 0.0 s")
    monkeypatch.setattr(placement, "STARTING_SECONDS", 0)
    assert device_for([ties], "auto").name == "cuda"
    assert device_for([ties], "cuda:1") == Choice("cuda:1")
