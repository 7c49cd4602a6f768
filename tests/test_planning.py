"""Planning without a step for each tensor: the same as with one."""

import gc
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.recipes import merged, plan
from wspace.errors import CheckpointError
from wspace.recipes import layers
from wspace.storage import headers
from wspace.storage.checkpoints import open_checkpoint


def names_of(seed):
    """Names of numbered lists in lists, some with gaps, some short, some at the start."""
    random.seed(seed)
    found = {"embed.weight", "norm.weight"}
    heads = ["", "model.layers.", "h.", "enc.block.", "a.", "a.b.", "vision.layers."]
    for _ in range(120):
        name = random.choice(heads) + str(random.choice([0, 1, 2, 3, 3, 7, 10]))
        if random.random() < 0.5:
            name += random.choice([".experts.", ".layers.", "."]) + str(random.randrange(4))
        found.add(name + random.choice([".w", ".bias", ".q.weight", ".0.weight", ""]))
    return sorted(found, key=lambda name: random.random())


def plain_stacks(names):
    """Every number of every name on its own."""
    counts = {}
    for name in names:
        for match in layers._NUMBER.finditer(name):
            of_prefix = counts.setdefault(name[: match.start()], {})
            of_prefix[int(match[1])] = of_prefix.get(int(match[1]), 0) + 1
    stacks = {
        prefix: len(found)
        for prefix, found in counts.items()
        if max(found) == len(found) - 1
        and (
            prefix.rpartition(".")[2] in layers._LISTS
            or (len(found) > 1 and min(found.values()) >= 4)
        )
    }
    return {
        prefix: n
        for prefix, n in stacks.items()
        if not any(prefix.startswith(f"{outer}.") for outer in stacks)
    }


@pytest.mark.parametrize("seed", range(60))
def test_stacks_and_depths_are_those_of_each_name_alone(seed):
    names = names_of(seed)
    stacks = layers.find_stacks(names)
    assert stacks == plain_stacks(names)
    expected = []
    for name in names:
        place = layers.place_of(name, stacks)
        expected.append(layers.depth(place.layer, stacks[place.stack]) if place else 0.0)
    assert list(layers.depths(names, stacks)) == expected


def make(path, seed, **metadata):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"layers.{k}.{name}": torch.randn(shape, generator=generator)
        for k in range(4)
        for name, shape in {"attn.w": (6, 5), "mlp.w": (5, 7), "norm": (5,)}.items()
    }
    tensors |= {"embed.w": torch.randn(9, 5, generator=generator), "ids": torch.arange(3)}
    path.mkdir()
    save_file(tensors, path / "model.safetensors", metadata)
    return path


@pytest.fixture
def parsed(monkeypatch):
    """Which files' headers were parsed."""
    files, parse = [], headers.parse_header

    def counting(text, n_data, path):
        files.append(path.parent.name)
        return parse(text, n_data, path)

    monkeypatch.setattr(headers, "parse_header", counting)
    return files


def test_equal_headers_are_parsed_once_as_long_as_a_checkpoint_has_them(tmp_path, parsed):
    paths = [make(tmp_path / name, seed) for seed, name in enumerate("abc")]
    other = make(tmp_path / "other", 3, note="different")
    opened = [open_checkpoint(path) for path in (*paths, other)]
    assert parsed == ["a", "other"]
    assert opened[0].tensors is opened[1].tensors
    assert opened[1].files == (paths[1] / "model.safetensors",)
    assert opened[3].metadata == {"note": "different"}
    assert opened[0].metadata == {}
    del opened
    gc.collect()
    open_checkpoint(paths[2])
    assert parsed == ["a", "other", "c"]


def test_headers_that_differ_in_their_metadata_alone_are_parsed_once(tmp_path, parsed):
    paths = [make(tmp_path / name, seed, note=name) for seed, name in enumerate("abc")]
    opened = [open_checkpoint(path) for path in paths]
    assert parsed == ["a"]
    assert opened[0].tensors is opened[2].tensors
    assert [checkpoint.metadata for checkpoint in opened] == [{"note": name} for name in "abc"]
    assert len({checkpoint.stamps[0].digest for checkpoint in opened}) == 3


def test_a_header_that_is_wrong_is_refused_in_each_file(tmp_path):
    for name in "ab":
        file = make(tmp_path / name, 0) / "model.safetensors"
        file.write_bytes(file.read_bytes().replace(b'"F32"', b'"F31"', 1))
        with pytest.raises(CheckpointError, match=rf"/{name}/model.safetensors: tensor .*F31"):
            open_checkpoint(tmp_path / name)


def test_a_file_that_is_cut_off_is_refused_though_its_header_is_known(tmp_path):
    whole, cut = (make(tmp_path / name, 0) for name in ("whole", "cut"))
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[:-4])
    kept = open_checkpoint(whole)
    with pytest.raises(CheckpointError, match=r"it is cut off|lie outside"):
        open_checkpoint(cut)
    assert kept.tensors


def test_a_file_with_longer_metadata_is_refused_if_it_is_as_long_as_one_that_is_known(tmp_path):
    known, other = (make(tmp_path / n, 0, note=n) for n in ("a", "a" * 9))
    length = len((known / "model.safetensors").read_bytes())
    data = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(data[:length])
    kept = open_checkpoint(known)
    with pytest.raises(CheckpointError, match=r"it is cut off|lie outside"):
        open_checkpoint(other)
    assert kept.tensors


RECIPE = """\
merge_method: {}
base_model: {}
models:
  - {{model: {}, parameters: {{weight: [{{filter: mlp, value: [0.2, 0.9]}}, {{value: 0.5}}]}}}}
  - {{model: {}, parameters: {{weight: [0.1, 0.3, 0.7]}}}}
parameters: {{{}}}
dtype: bfloat16
"""


@pytest.mark.parametrize(
    ("method", "parameters"), [("task_arithmetic", "lambda: 0.5"), ("ties", "density: 0.6")]
)
def test_models_of_equal_headers_are_planned_like_any_others(tmp_path, method, parameters):
    plans, outputs = [], []
    for kind in ("equal", "different"):
        paths = []
        for seed in range(3):
            note = {"note": str(10 ** (9 * seed))} if kind == "different" else {}
            paths.append(make(tmp_path / f"{kind}-{seed}", seed, **note))
        text = RECIPE.format(method, *paths, parameters)
        plans.append(plan(text)[0])
        outputs.append(merged(text, tmp_path / kind))
    for one, other in zip(plans[0].tensors, plans[1].tensors, strict=True):
        assert one[:5] == other[:5]  # but for where the data start
        assert one.inputs == other.inputs
        assert (one.step is None) == (other.step is None)
        assert one.step is None or one.step.numbers == other.step.numbers
    assert len({id(t.step) for t in plans[0].tensors}) == len(
        {id(t.step) for t in plans[1].tensors}
    )
    assert len({t.step.numbers.each["weight"] for t in plans[0].tensors if t.step}) > 4
    assert all(torch.equal(outputs[0][name], outputs[1][name]) for name in outputs[1])


def test_tensors_that_differ_in_type_or_place_are_planned_as_each_on_its_own(tmp_path):
    """A pattern that takes all is looked at for each tensor, and none is planned in short."""
    paths = [make(tmp_path / name, seed) for seed, name in enumerate("abc")]
    for k, kind in enumerate((torch.float16, torch.bfloat16, torch.float64)):
        path = paths[k]
        tensors = load_file(path / "model.safetensors")
        ids = tensors.pop("ids")
        for name in list(tensors)[k::3]:
            tensors[name] = tensors[name].to(kind)
        tensors["layers.1.third.w"] = tensors["layers.1.mlp.w"].clone()
        tensors["layers.1.other.w"] = tensors["layers.1.mlp.w"].clone()
        if k == 0:  # the base, whose types are written
            tensors |= {"ids": ids, "more": ids.clone()}
            tensors["layers.1.other.w"] = tensors["layers.1.other.w"].to(torch.bfloat16)
        save_file(dict(reversed(tensors.items())), path / "model.safetensors")
    text = RECIPE.format("task_arithmetic", *paths, "lambda: 0.5")
    text = text.replace("dtype: bfloat16\n", "").replace("mlp", "1.mlp")
    short, each = plan(text)[0].tensors, plan(text, include=["*"])[0].tensors
    assert len(short) == 17
    assert {t.dtype for t in short} >= {"F32", "I64"}
    assert len({tuple(s.record.dtype for s in t.stored) for t in short}) > 3
    for one, other in zip(short, each, strict=True):
        assert one[:7] == other[:7]
        assert one.step is None or one.step.numbers == other.step.numbers
