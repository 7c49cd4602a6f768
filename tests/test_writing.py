"""Outputs: shards, names, companions; complete under their name, or not there at all."""

import errno
import json
import os
import shutil
from collections import namedtuple
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import wspace as ws
from tests.checkpoints import assert_same, load, save_model, save_pickle, save_shards
from wspace.errors import OutputError
from wspace.storage import files, writing
from wspace.storage.checkpoints import INDEX
from wspace.storage.companions import companions
from wspace.storage.fingerprints import fingerprint
from wspace.storage.headers import BITS, read_header
from wspace.storage.outputs import OutputTensor, plan_shards
from wspace.storage.writers import checkpoint_writers
from wspace.storage.writing import NewCheckpoint
from wspace.version import VERSION

CONFIG = {"architectures": ["Toy"], "dtype": "float32"}


def state(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (300, 100), "b": (7,), "c": (64, 512), "d": (), "e": (0, 3)}
    tensors = {n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()}
    return tensors | {"steps": torch.tensor([3, 4])}


@pytest.fixture
def runs(tmp_path):
    """``runs/0`` and ``runs/1`` with a config; returns the zoo."""
    for seed in range(2):
        save_model(tmp_path / f"runs/{seed}", state(seed), CONFIG)
    return ws.open_zoo(f"{tmp_path}/runs/*")


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def everything_under(folder):
    """Each file and folder, its size and time: what a refusal must leave as it was."""
    return sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*"))


@pytest.mark.parametrize(
    ("sizes", "limit", "shards"),
    [
        ([4, 4, 4], 100, [3]),
        ([4, 4, 4], 8, [2, 1]),
        ([4, 4, 4], 7, [1, 1, 1]),
        ([4, 40, 4], 10, [1, 1, 1]),
        ([40, 4, 4], 10, [1, 2]),
        ([4, 4, 40], 10, [2, 1]),
        ([40], 1, [1]),
        ([0, 0], 1, [2]),
        ([4, 0, 4], 4, [2, 1]),
        ([], 10, [0]),
    ],
    ids=str,
)
def test_shards_are_filled_in_order(sizes, limit, shards):
    tensors = [OutputTensor(f"t{k}", "U8", (size,)) for k, size in enumerate(sizes)]
    planned = plan_shards(tensors, limit)
    assert [len(shard) for shard in planned] == shards
    assert [tensor for shard in planned for tensor in shard] == tensors


@pytest.mark.parametrize("dtype", [code for code in BITS if BITS[code] % 8 == 0])
def test_sizes_are_those_of_the_type(dtype):
    assert OutputTensor("x", dtype, (3, 5)).nbytes == 15 * BITS[dtype] // 8


def test_one_shard_has_the_hubs_name_and_no_index(runs, tmp_path):
    (out,) = ws.merge(runs, [0.5, 0.5], tmp_path / "out")
    assert names_in(out) == ["config.json", "model.safetensors", "wspace.json"]


@pytest.mark.parametrize("size", [1, "60KB", 130000, "150 KB"])
def test_several_shards_have_the_hubs_names_and_an_index(runs, tmp_path, size):
    (whole,) = ws.merge(runs, [0.25, 0.75], tmp_path / "whole")
    (out,) = ws.merge(runs, [0.25, 0.75], tmp_path / "out", max_shard_size=size)
    shards = sorted(out.glob("*.safetensors"))
    count = len(shards)
    assert count > 1
    numbered = [f"model-{k + 1:05}-of-{count:05}.safetensors" for k in range(count)]
    assert [shard.name for shard in shards] == numbered
    index = json.loads((out / INDEX).read_text())
    tensors = load(out)
    assert index["weight_map"] == {name: s.name for s in shards for name in load_file(s)}
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"] == {"total_size": sum(tensor.nbytes for tensor in tensors.values())}
    assert_same(tensors, load(whole))
    assert len(ws.open_zoo(out)) == 1


def test_shards_hold_no_more_than_asked(runs, tmp_path):
    (out,) = ws.merge(runs, [0.5, 0.5], tmp_path / "out", max_shard_size=125_000)
    shards = [list(read_header(shard).tensors.values()) for shard in out.glob("*.safetensors")]
    too_large = [shard for shard in shards if sum(record.nbytes for record in shard) > 125_000]
    assert [[record.shape for record in shard] for shard in too_large] == [[(64, 512)]]


def test_shards_on_disk_do_not_change_the_bits(tmp_path):
    tensors = [state(0), state(1)]
    save_shards(tmp_path / "a", {"c": tensors[0].pop("c")}, tensors[0])
    save_model(tmp_path / "b", tensors[1])
    zoo = ws.open_zoo([tmp_path / "a", tmp_path / "b"])
    ws.merge(zoo, [0.3, 0.7], tmp_path / "out")
    for seed in range(2):
        save_model(tmp_path / f"plain/{seed}", state(seed))
    ws.merge(ws.open_zoo(f"{tmp_path}/plain/*"), [0.3, 0.7], tmp_path / "expected")
    assert_same(load(tmp_path / "out"), load(tmp_path / "expected"))


@pytest.mark.parametrize("max_shard_size", ["5GB", "40KB"])
def test_transformers_loads_the_output(tmp_path, max_shard_size):
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=101, max_position_embeddings=64,
    )  # fmt: skip
    for name in "ab":
        torch.manual_seed(ord(name))
        LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / name)
    (tmp_path / "a" / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    zoo = ws.open_zoo([tmp_path / "a", tmp_path / "b"])
    (out,) = ws.merge(
        zoo, [0.5, 0.5], tmp_path / "out", dtype="float32", max_shard_size=max_shard_size
    )
    loaded = AutoModelForCausalLM.from_pretrained(out)
    a, b = load(tmp_path / "a"), load(tmp_path / "b")
    assert names_in(out) == sorted(
        {*names_in(tmp_path / "a"), "wspace.json", *(p.name for p in out.glob("model*"))}
        - ({"model.safetensors"} if max_shard_size == "40KB" else set())
    )
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    parameters = dict(loaded.named_parameters())
    assert parameters.keys() == a.keys()
    for name, parameter in parameters.items():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, (a[name].float() + b[name].float()) / 2), name


def test_the_donors_small_files_come_along(tmp_path):
    files = {
        "config.json": '{"a": 1}',
        "tokenizer.json": "{}",
        "generation_config.json": "{}",
        "vocab.txt": "a\nb",
        "merges.txt": "",
        "chat_template.jinja": "{{ x }}",
        "modeling_toy.py": "x = 1",
    }
    others = {
        "wspace.json": "{}",
        "other.safetensors.index.json": "{}",
        "training.log": "",
        "x.bin": "",
    }
    save_model(tmp_path / "a", state(0))
    save_model(tmp_path / "b", state(1), {"b": 1})
    for name, text in (files | others).items():
        (tmp_path / "a" / name).write_text(text)
    (tmp_path / "a" / "tokenizer.model").write_bytes(b"\0\xff")
    (tmp_path / "a" / "runs.json").mkdir()
    zoo = ws.open_zoo([tmp_path / "a", tmp_path / "b"])
    (out,) = ws.merge(zoo, [0.5, 0.5], tmp_path / "out")
    expected = {*files, "tokenizer.model", "model.safetensors", "wspace.json"}
    assert names_in(out) == sorted(expected)
    for name, text in files.items():
        assert (out / name).read_text() == text
    (based,) = ws.merge(ws.open_zoo(tmp_path / "a", base=tmp_path / "b"), [0.5], tmp_path / "based")
    assert (based / "config.json").read_text() == (tmp_path / "b" / "config.json").read_text()


def test_a_file_among_other_things_brings_only_what_has_a_config(tmp_path):
    save_model(tmp_path, state(0))
    (tmp_path / "notes.txt").write_text("private")
    checkpoint = ws.open_checkpoint(tmp_path / "model.safetensors")
    assert companions(checkpoint) == []
    (tmp_path / "config.json").write_text("{}")
    assert [file.name for file in companions(checkpoint)] == ["config.json", "notes.txt"]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "float32", "x": "ü"}, {"dtype": "bfloat16", "x": "ü"}),
        ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({"x": 1}, {"x": 1}),
    ],
    ids=str,
)
def test_the_config_names_the_type_that_was_asked_for(tmp_path, config, expected):
    save_model(tmp_path / "a", state(0), config)
    (out,) = ws.merge(ws.open_zoo(tmp_path / "a"), [1.0], tmp_path / "out", dtype="bfloat16")
    assert json.loads((out / "config.json").read_text()) == expected
    tensors = load(out)
    assert {n: t.dtype for n, t in tensors.items()} == {
        name: torch.int64 if name == "steps" else torch.bfloat16 for name in tensors
    }
    assert json.loads((tmp_path / "a" / "config.json").read_text()) == config


@pytest.mark.parametrize(
    "content",
    [b"{", b"\xff", b"[]", b'"dtype"', b"[" * 10**5],
    ids=["cut off", "not UTF-8", "array", "text", "deep"],
)
def test_a_config_that_is_no_object_is_copied_as_it_is(tmp_path, content):
    save_model(tmp_path / "a", state(0), {})
    (tmp_path / "a" / "config.json").write_bytes(content)
    (out,) = ws.merge(ws.open_zoo(tmp_path / "a"), [1.0], tmp_path / "out", dtype="bfloat16")
    assert (out / "config.json").read_bytes() == content


def test_the_record_says_how_it_was_made(tmp_path):
    tied = state(0) | {"f": torch.zeros(3)}
    tied["head"] = tied["a"]
    save_pickle(tmp_path / "base/pytorch_model.bin", tied)
    for seed in range(2):
        save_model(tmp_path / f"runs/{seed}", state(seed, torch.float16) | {"f": torch.ones(3)})
    zoo = ws.open_zoo(f"{tmp_path}/runs/*", base=tmp_path / "base", exclude="b")
    outs = [tmp_path / "x", tmp_path / "y"]
    ws.merge(zoo, [[0.25, 0.5], [1.0, -1.0]], outs, dtype="float16")
    for out, weights in zip(outs, [[0.25, 0.5], [1.0, -1.0]], strict=True):
        record = json.loads((out / "wspace.json").read_text())
        made = {
            "version": VERSION,
            "method": "linear",
            "models": [str(tmp_path / "runs/0"), str(tmp_path / "runs/1")],
            "base": str(tmp_path / "base"),
            "weights": weights,
            "dtype": "float16",
        }
        assert record["made"] == made
        assert record["tensors"] == {
            "mixed": 5,
            "copied": {"steps": "not floating point, equal in all"},
            "left_out": {"b": "excluded by b"},
            "tied": {"head": "a"},
        }
        assert record["mixed_dtypes"] == [["F16", "F16", "F32"]]
        metadata = read_header(out / "model.safetensors").metadata
        assert metadata == {"format": "pt", "wspace": json.dumps(made)}
        assert load(out).keys() == {"a", "c", "d", "e", "f", "steps"}


def test_a_model_whose_name_is_not_utf_8_is_recorded(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    save_model(folder, {"x": torch.ones(2)}, {"name": "\ud800"})
    (out,) = ws.merge(ws.open_zoo(folder), [1.0], tmp_path / "out", dtype="float32")
    record = json.loads((out / "wspace.json").read_text(encoding="utf-8"))
    assert Path(record["made"]["models"][0]) == folder


def test_the_name_appears_when_everything_is_written(runs, tmp_path):
    seen = []

    def progress(done, total):
        seen.append((done, total))
        assert not (tmp_path / "out").exists()
        (partial,) = [name for name in names_in(tmp_path) if name != "runs"]
        assert partial.startswith(".out.")
        assert partial.endswith(".partial")

    ws.merge(runs, [0.5, 0.5], tmp_path / "out", progress=progress)
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] == sum(2 * t.numel * 4 for t in runs.tensors)
    assert names_in(tmp_path) == ["out", "runs"]
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_every_file_is_flushed_before_the_name_and_the_name_after(runs, tmp_path, monkeypatch):
    events = []
    fsync, fdatasync, pwrite, rename = os.fsync, os.fdatasync, os.pwrite, Path.rename

    def path_of(descriptor):
        return Path(f"/proc/self/fd/{descriptor}").readlink()

    def record_fsync(descriptor):
        events.append(("flush", path_of(descriptor).name))
        fsync(descriptor)

    def record_fdatasync(descriptor):
        events.append(("flush", path_of(descriptor).name))
        fdatasync(descriptor)

    def record_pwrite(descriptor, *arguments):
        events.append(("write", path_of(descriptor).name))
        return pwrite(descriptor, *arguments)

    def record_rename(path, target):
        events.append(("name", Path(target).name))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "fdatasync", record_fdatasync)
    monkeypatch.setattr(os, "pwrite", record_pwrite)
    monkeypatch.setattr(Path, "rename", record_rename)
    ws.merge(runs, [0.5, 0.5], tmp_path / "out", max_shard_size="60KB")
    files = names_in(tmp_path / "out")
    assert len(files) > 3
    named = events.index(("name", "out"))
    for file in files:
        written = [k for k, event in enumerate(events) if event == ("write", file)]
        flushed = [k for k, event in enumerate(events) if event == ("flush", file)]
        assert max(written, default=-1) < max(flushed) < named, file
    assert [name for kind, name in events[named + 1 :] if kind == "flush"] == [tmp_path.name]
    assert events[named - 1] == ("flush", "output")  # the folder, before it gets its name


class StoppedError(Exception):
    """Something that nobody expects."""


def stop_at(error, share):
    def progress(done, total):
        if done >= share * total:
            raise error

    return progress


@pytest.mark.parametrize("error", [KeyboardInterrupt, StoppedError, MemoryError])
@pytest.mark.parametrize("share", [0, 0.5, 1], ids=["at the start", "midway", "at the end"])
@pytest.mark.parametrize("shard", ["5GB", "60KB"])
def test_nothing_is_left_of_a_merge_that_stops_early(
    runs, tmp_path, monkeypatch, error, share, shard
):
    monkeypatch.setattr(writing, "COMMIT_SECONDS", 1000)  # before anything is journaled
    before = everything_under(tmp_path)
    outs = [tmp_path / "x", tmp_path / "y"]
    with pytest.raises(error):
        ws.merge(
            runs, [[0.5, 0.5], [1, 0]], outs, max_shard_size=shard, memory="4MiB",
            progress=stop_at(error, share),
        )  # fmt: skip
    assert everything_under(tmp_path) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, StoppedError])
def test_nothing_is_left_when_making_the_files_stops(runs, tmp_path, monkeypatch, error):
    before = everything_under(tmp_path)
    monkeypatch.setattr(files, "in_memory", lambda descriptor: False)  # wherever the tests run
    allocate, calls = os.posix_fallocate, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 4:  # the second shard of the second output
            raise error
        allocate(*arguments)

    monkeypatch.setattr(os, "posix_fallocate", stop)
    outs = [tmp_path / "x", tmp_path / "y"]
    with pytest.raises(error):
        ws.merge(runs, [[0.5, 0.5], [1, 0]], outs, max_shard_size=200_000)
    assert everything_under(tmp_path) == before


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_file_stays_open(runs, tmp_path):
    ws.merge(runs, [0.5, 0.5], tmp_path / "first")  # what is loaded once, is now
    before = open_descriptors()
    ws.merge(runs, [0.5, 0.5], tmp_path / "out", max_shard_size=1)
    with pytest.raises(StoppedError):
        ws.merge(runs, [0.5, 0.5], tmp_path / "never", progress=stop_at(StoppedError, 1))
    assert open_descriptors() == before


def test_an_output_made_meanwhile_is_not_replaced(runs, tmp_path):
    def progress(done, total):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "mine").write_text("mine")

    with pytest.raises(OutputError, match="out: was made by something else while this ran"):
        ws.merge(runs, [0.5, 0.5], tmp_path / "out", progress=progress)
    assert names_in(tmp_path) == ["out", "runs"]
    assert names_in(tmp_path / "out") == ["mine"]


Usage = namedtuple("Usage", "total used free")


def no_space(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_too_small_is_refused_before_anything_is_written(runs, tmp_path, monkeypatch):
    need = sum(tensor.nbytes for tensor in load(tmp_path / "runs/0").values())
    before = everything_under(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 2 * need - 1))
    words = rf"x: the output takes {2 * need} bytes, and the disk of .* has {2 * need - 1} free"
    with pytest.raises(OutputError, match=words):
        ws.merge(runs, [[0.5, 0.5], [1, 0]], [tmp_path / "x", tmp_path / "y"])
    assert everything_under(tmp_path) == before
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 2 * need))
    ws.merge(runs, [[0.5, 0.5], [1, 0]], [tmp_path / "x", tmp_path / "y"])


@pytest.mark.parametrize("function", ["posix_fallocate", "pwrite", "fdatasync", "fsync"])
def test_a_disk_that_fills_up_leaves_nothing(runs, tmp_path, monkeypatch, function):
    before = everything_under(tmp_path)
    monkeypatch.setattr(files, "in_memory", lambda descriptor: False)
    monkeypatch.setattr(os, function, no_space)
    monkeypatch.setattr(files, "SYNC", 1)
    with pytest.raises(OutputError, match=r"/x: .*No space left on device"):
        ws.merge(runs, [[0.5, 0.5], [1, 0]], [tmp_path / "x", tmp_path / "y"])
    assert everything_under(tmp_path) == before


def test_a_disk_that_fills_up_before_anything_is_journaled_leaves_nothing(
    runs, tmp_path, monkeypatch
):
    monkeypatch.setattr(writing, "COMMIT_SECONDS", 1000)
    before = everything_under(tmp_path)
    pwrite, calls = os.pwrite, []

    def fill_up(descriptor, *arguments):
        calls.append(descriptor)
        return no_space() if len(calls) > 4 else pwrite(descriptor, *arguments)

    monkeypatch.setattr(os, "pwrite", fill_up)
    with pytest.raises(OutputError, match=r"model.*safetensors: No space left on device"):
        ws.merge(runs, [0.5, 0.5], tmp_path / "x", max_shard_size="60KB")
    assert everything_under(tmp_path) == before


def test_companions_that_cannot_be_copied_cost_no_weights(runs, tmp_path, monkeypatch):
    said = []
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", no_space)
        with pytest.raises(OutputError, match="/x: No space left on device"):
            ws.merge(runs, [0.5, 0.5], tmp_path / "x")
    assert names_in(tmp_path) == [".x.partial", "runs"]
    ws.merge(runs, [0.5, 0.5], tmp_path / "x", note=said.append)
    assert said == [f"{tmp_path / 'x'}: going on from 251 KB of 251 KB, checked"]
    assert names_in(tmp_path) == ["runs", "x"]


def test_short_writes_are_continued(runs, tmp_path, monkeypatch):
    (expected,) = ws.merge(runs, [0.3, 0.7], tmp_path / "expected")
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:999], at))
    (out,) = ws.merge(runs, [0.3, 0.7], tmp_path / "out")
    assert_same(load(out), load(expected))


def test_short_reads_are_continued(runs, tmp_path, monkeypatch):
    (expected,) = ws.merge(runs, [0.3, 0.7], tmp_path / "expected")
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, parts, at: preadv(file, [parts[0][:999]], at))
    (out,) = ws.merge(runs, [0.3, 0.7], tmp_path / "out")
    assert_same(load(out), load(expected))


PLACES = {
    "an existing folder": ("there", "there: exists; choose another name, or remove it first"),
    "an existing file": ("file", "file: exists; choose another name"),
    "a dangling link": ("link", "link: exists; choose another name"),
    "an input": ("runs/0", "runs/0: exists"),
    "inside an input": ("runs/0/out", "runs/0/out: lies inside the input .*runs/0; choose another"),
    "deep inside an input": ("runs/1/a/b", "runs/1/a/b: lies inside the input"),
    "inside an input by a detour": ("runs/0/../1/out", "lies inside the input"),
    "inside an input by a link": ("linked/out", "linked/out: lies inside the input"),
    "inside the base": ("base/out", "base/out: lies inside the input .*base"),
    "below a file": ("file/out", "file/out: .*file cannot be written to"),
    "deep below a file": ("file/a/out", "file cannot be written to"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("position", [0, 1])
def test_places_that_are_refused(runs, tmp_path, place, position):
    save_model(tmp_path / "base", state(5))
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "linked").symlink_to("runs/0")
    zoo = ws.open_zoo(f"{tmp_path}/runs/*", base=tmp_path / "base")
    before = everything_under(tmp_path / "runs"), names_in(tmp_path)
    name, words = PLACES[place]
    outs = [tmp_path / "fine", tmp_path / "fine"]
    outs[position] = tmp_path / name
    with pytest.raises(OutputError, match=words):
        ws.merge(zoo, [[0.5, 0.5], [1, 0]], outs)
    assert (everything_under(tmp_path / "runs"), names_in(tmp_path)) == before


def test_beside_an_input_that_is_a_file_is_allowed(tmp_path):
    save_model(tmp_path, {"x": torch.ones(2)})
    (out,) = ws.merge(ws.open_zoo(tmp_path / "model.safetensors"), [1.0], tmp_path / "out")
    assert torch.equal(load(out)["x"], torch.ones(2))


@pytest.mark.parametrize(
    ("outs", "words"),
    [
        (["x", "x"], "two outputs have the same path"),
        (["x", "y/../x"], "two outputs have the same path"),
        (["x", "x/y"], r"x/y: lies inside another output"),
        (["x/y/z", "x"], r"x/y/z: lies inside another output"),
        (["x"], "1 outputs for 2 rows of weights"),
        (["x", "y", "z"], "3 outputs for 2 rows of weights"),
    ],
    ids=str,
)
def test_outputs_that_are_in_each_others_way(runs, tmp_path, outs, words):
    before = everything_under(tmp_path)
    with pytest.raises(OutputError, match=words):
        ws.merge(runs, [[0.5, 0.5], [1, 0]], [tmp_path / out for out in outs])
    assert everything_under(tmp_path) == before


@pytest.mark.parametrize("share", [0, 1])
def test_parents_made_for_nothing_are_removed(runs, tmp_path, share):
    before = everything_under(tmp_path)
    outs = [tmp_path / "new/newer/x", tmp_path / "new/newer/y"]
    with pytest.raises(StoppedError):
        ws.merge(runs, [[0.5, 0.5], [1, 0]], outs, progress=stop_at(StoppedError, share))
    assert everything_under(tmp_path) == before


def test_parents_are_made(runs, tmp_path):
    (out,) = ws.merge(runs, [0.5, 0.5], tmp_path / "new" / "newer" / "out")
    assert load(out).keys() == state(0).keys()


def test_a_dtype_that_is_none_is_refused(runs, tmp_path):
    with pytest.raises(OutputError, match="dtype 'int8': expected float64, float32, float16 or"):
        ws.merge(runs, [0.5, 0.5], tmp_path / "out", dtype="int8")
    assert names_in(tmp_path) == ["runs"]


def test_the_writer_alone_puts_bytes_where_they_belong(tmp_path):
    tensors = [OutputTensor("x", "U8", (5,)), OutputTensor("y", "I16", (2,))]
    donor = ws.open_checkpoint(save_model(tmp_path / "donor", {"x": torch.ones(1)}))
    output = NewCheckpoint(tmp_path / "out", tensors, fingerprint({}, [donor]), 100)
    with checkpoint_writers([output]) as (writer,):
        places = [writer.place(name, 0) for name in "xy"]
        assert [shard for shard, _ in places] == [0, 0]
        assert [b - a for (_, a), (_, b) in pairwise(places)] == [5]
        for name, values in {"x": [1, 2, 3, 4, 5], "y": [1, 0, 2, 0]}.items():
            data = torch.tensor(values, dtype=torch.uint8).numpy()
            for start, part in ((2, data[2:]), (0, data[:2])):
                for future in writer.write(*writer.place(name, start), part):
                    future.result()
        writer.publish(donor, {})
    found = load(tmp_path / "out")
    assert found["x"].tolist() == [1, 2, 3, 4, 5]
    assert found["y"].tolist() == [1, 2]
