"""Zoos: aligned from headers, whatever the files look like, and refused where they differ."""

import re
import sys
from itertools import pairwise

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

import wspace as ws
from tests.checkpoints import (
    assert_same,
    load,
    save_model,
    save_pickle,
    save_shards,
    write_safetensors,
)
from wspace.errors import CheckpointError, MisalignedZooError
from wspace.zoo import short_names

STATE = {
    "embed": torch.arange(6.0).view(2, 3),
    "layer.0.weight": torch.arange(4.0),
    "layer.0.bias": torch.arange(2.0),
    "layer.1.weight": torch.arange(5.0),
    "steps": torch.tensor(3),
}
FLOATS = [name for name in STATE if name != "steps"]


def other(**changes):
    """The state dict with some tensors changed; None takes one away."""
    tensors = STATE | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


@pytest.fixture
def pair(tmp_path):
    """Opens a zoo of the state dict and another one."""

    def open_pair(tensors, **options):
        save_model(tmp_path / "a", STATE)
        save_model(tmp_path / "b", tensors)
        return ws.open_zoo([tmp_path / "a", tmp_path / "b"], **options)

    return open_pair


def test_files_and_order_do_not_matter(tmp_path):
    backwards = dict(reversed(STATE.items()))
    halves = [{n: STATE[n] for n in sorted(STATE)[k::2]} for k in range(2)]
    save_model(tmp_path / "one-file", STATE)
    save_shards(tmp_path / "shards", *halves)
    save_shards(tmp_path / "other-shards", *reversed(halves), index=False)
    save_pickle(tmp_path / "pickle" / "pytorch_model.bin", backwards)
    zoo = ws.open_zoo(f"{tmp_path}/*", base=tmp_path / "shards")
    assert zoo.names == ("one-file", "other-shards", "pickle")
    assert {tensor.name: tensor.shape for tensor in zoo.tensors} == {
        name: tuple(STATE[name].shape) for name in FLOATS
    }
    assert [tensor.name for tensor in zoo.copied] == ["steps"]
    for tensor in [*zoo.tensors, *zoo.copied]:
        for checkpoint, stored in zip(zoo.checkpoints, tensor.stored, strict=True):
            assert stored is checkpoint.find(tensor.name)
    assert zoo.numel == sum(STATE[name].numel() for name in FLOATS)
    assert zoo.left_out == {}
    mixes = torch.eye(3, dtype=torch.float64)
    outs = ws.merge(zoo, mixes, [tmp_path / f"out/{k}" for k in range(3)])
    for out in outs:
        assert_same(load(out), STATE)


def test_the_order_is_the_donors(tmp_path):
    save_model(tmp_path / "a", STATE)
    # safetensors sorts by size and name; a second file comes after the first
    save_shards(
        tmp_path / "b", {"layer.1.weight": STATE["layer.1.weight"]}, other(layer__1__weight=None)
    )
    with_base = ws.open_zoo(tmp_path / "a", base=tmp_path / "b")
    without = ws.open_zoo([tmp_path / "a", tmp_path / "b"])
    assert with_base.donor is with_base.base
    assert without.donor is without.members[0]
    assert with_base.tensors[0].name == "layer.1.weight"
    floats = [name for name in without.members[0].tensors if name in FLOATS]
    assert [tensor.name for tensor in without.tensors] == floats


def test_mixed_float_types_align_and_are_grouped(pair):
    zoo = pair(
        other(
            embed=STATE["embed"].bfloat16(),
            layer__0__bias=STATE["layer.0.bias"].to(torch.float8_e4m3fn),
            layer__1__weight=STATE["layer.1.weight"].bfloat16(),
        )
    )
    groups = [tensor.dtypes for tensor in zoo.tensors]
    assert {t.name: t.dtypes for t in zoo.tensors}["embed"] == ("F32", "BF16")
    assert sorted(set(groups)) == [("F32", "BF16"), ("F32", "F32"), ("F32", "F8_E4M3")]
    changes = sum(a != b for a, b in pairwise(groups))
    assert changes == 2


MISALIGNED = {
    "a tensor less": (
        other(embed=None),
        r"/b has no tensor 'embed', which .*/a has; leave it out with --exclude 'embed'",
    ),
    "a tensor more": (
        other(extra=torch.zeros(1)),
        r"/a has no tensor 'extra', which .*/b has; leave it out with --exclude 'extra'",
    ),
    "an integer tensor less": (other(steps=None), r"/b has no tensor 'steps', which .*/a has"),
    "another shape": (
        other(embed=torch.zeros(3, 2)),
        r"tensor 'embed' has shape \[3, 2\] in .*/b and \[2, 3\] in .*/a; leave it out with",
    ),
    "another rank": (other(embed=torch.zeros(6)), r"'embed' has shape \[6\] in .*/b and \[2, 3\]"),
    "a scalar for a row": (other(layer__0__bias=torch.tensor(1.0)), r"has shape \[\] in .*/b"),
    "integers for floats": (
        other(embed=torch.zeros(2, 3, dtype=torch.int32)),
        r"tensor 'embed' is F32 in .*/a and I32 in .*/b; leave it out with --exclude 'embed'",
    ),
    "floats for integers": (other(steps=torch.tensor(3.0)), r"'steps' is I64 in .*/a and F32 in"),
    "other integers": (
        other(steps=torch.tensor(3, dtype=torch.int32)),
        r"tensor 'steps' is I64 in .*/a and I32 in .*/b",
    ),
    "no floats at all": ({"steps": STATE["steps"]}, r"/b has no tensor '.*', which .*/a has"),
}


@pytest.mark.parametrize("case", MISALIGNED)
def test_a_tensor_that_differs_is_named(pair, case):
    tensors, words = MISALIGNED[case]
    with pytest.raises(MisalignedZooError, match=words):
        pair(tensors)


@pytest.mark.parametrize(
    "case", [case for case, (_, words) in MISALIGNED.items() if "--exclude" in words]
)
def test_the_advice_in_the_message_helps(pair, case):
    tensors, words = MISALIGNED[case]
    name = re.search(r"--exclude '(\w+)'", words)[1] if "--exclude '" in words else "embed"
    zoo = pair(tensors, exclude=name)
    assert zoo.left_out == {name: f"excluded by {name}"}


def test_the_base_must_align_too(tmp_path):
    save_model(tmp_path / "run", STATE)
    save_model(tmp_path / "base", other(embed=torch.zeros(9)))
    with pytest.raises(MisalignedZooError, match=r"\[2, 3\] in .*/run and \[9\] in .*/base"):
        ws.open_zoo(tmp_path / "run", base=tmp_path / "base")


def test_the_message_names_the_two_that_differ_in_kind(tmp_path):
    kinds = {"a": torch.float32, "b": torch.bfloat16, "c": torch.int64}
    for name, dtype in kinds.items():
        save_model(tmp_path / name, {"x": torch.zeros(2, dtype=dtype)})
    with pytest.raises(MisalignedZooError, match=r"'x' is F32 in .*/a and I64 in .*/c"):
        ws.open_zoo(f"{tmp_path}/*")


@pytest.mark.parametrize("tensors", [{}, {"steps": torch.tensor(3)}], ids=["empty", "integers"])
def test_a_zoo_without_floats_is_refused(tmp_path, tensors):
    save_model(tmp_path / "a", tensors)
    with pytest.raises(MisalignedZooError, match="no floating-point tensor is left to work on"):
        ws.open_zoo(tmp_path / "a")


def test_a_pattern_on_a_checkpoint_without_tensors_is_refused(tmp_path):
    save_model(tmp_path / "a", {})
    with pytest.raises(MisalignedZooError, match="pattern 'x' matches no tensor"):
        ws.open_zoo(tmp_path / "a", exclude="x")


@pytest.mark.parametrize(
    ("options", "kept", "reason"),
    [
        ({"include": "layer.*"}, {n for n in FLOATS if n != "embed"}, "not included by layer.*"),
        (
            {"include": ["embed", "*.bias"]},
            {"embed", "layer.0.bias"},
            "not included by embed *.bias",
        ),
        ({"exclude": "*.bias"}, set(FLOATS) - {"layer.0.bias"} | {"steps"}, "excluded by *.bias"),
        ({"exclude": ["layer.?.*", "steps"]}, {"embed"}, "excluded by layer.?.* steps"),
        ({"exclude": "layer.[0]*"}, {"embed", "layer.1.weight", "steps"}, "excluded by layer.[0]*"),
    ],
    ids=["pattern", "two patterns", "excluded", "two excluded", "class of letters"],
)
def test_filters_say_what_they_leave_out(pair, options, kept, reason):
    zoo = pair(STATE, **options)
    assert {tensor.name for tensor in [*zoo.tensors, *zoo.copied]} == kept
    assert zoo.left_out == dict.fromkeys([n for n in STATE if n not in kept], reason)


def test_include_and_exclude_together(pair):
    zoo = pair(STATE, include="layer.*", exclude="*.bias")
    assert [tensor.name for tensor in zoo.tensors] == ["layer.0.weight", "layer.1.weight"]
    assert zoo.left_out["layer.0.bias"] == "excluded by *.bias"
    assert zoo.left_out["embed"] == "not included by layer.*"


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_a_mistake(pair, option):
    with pytest.raises(
        MisalignedZooError, match=r"pattern 'layer.9.\*' matches no tensor; the first"
    ):
        pair(STATE, **{option: ["layer.*", "layer.9.*"]})


def test_nothing_left_is_refused(pair):
    with pytest.raises(MisalignedZooError, match="no floating-point tensor is left"):
        pair(STATE, exclude="*")


def test_one_model_is_a_zoo(tmp_path):
    zoo = ws.open_zoo(save_model(tmp_path / "a", STATE))
    assert len(zoo) == 1
    assert zoo.base is None
    assert zoo.names == ("a",)


def test_the_same_model_twice_counts_twice(tmp_path):
    save_model(tmp_path / "a", STATE)
    zoo = ws.open_zoo([tmp_path / "a", tmp_path / "a"])
    assert len(zoo) == 2
    assert zoo.names == ("a", "a#2")


def test_the_base_may_be_a_member_if_it_is_named(tmp_path):
    save_model(tmp_path / "a", STATE)
    zoo = ws.open_zoo([tmp_path / "a"], base=tmp_path / "a")
    assert len(zoo.checkpoints) == 2


def test_open_checkpoints_are_members(tmp_path):
    checkpoint = ws.open_checkpoint(save_model(tmp_path / "a", STATE))
    zoo = ws.open_zoo(checkpoint, base=checkpoint)
    assert zoo.members == (checkpoint,)
    assert zoo.base is checkpoint


@pytest.mark.parametrize("members", [[], (), iter([])], ids=["list", "tuple", "iterator"])
def test_no_models_is_refused(members):
    with pytest.raises(CheckpointError, match="no models: give at least one checkpoint"):
        ws.open_zoo(members)


def test_a_glob_takes_checkpoints_in_natural_order_without_the_base(tmp_path):
    for name in ["run-10", "run-2", "run-1", "run-base"]:
        save_model(tmp_path / name, STATE)
    save_file(STATE, tmp_path / "run-3.safetensors")
    (tmp_path / "run-notes.txt").write_text("not a model")
    (tmp_path / "run-empty").mkdir()
    save_model(tmp_path / ".run-0.abc.partial", STATE)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "run-base")
    assert zoo.names == ("run-1", "run-2", "run-3.safetensors", "run-10")


def test_the_base_stays_out_of_a_glob_by_any_name(tmp_path, monkeypatch):
    save_model(tmp_path / "runs/a", STATE)
    save_model(tmp_path / "runs/base", STATE)
    (tmp_path / "link").symlink_to("runs/base")
    monkeypatch.chdir(tmp_path / "runs")
    for base in ["base", "./base/", "../link", str(tmp_path / "runs/base")]:
        assert ws.open_zoo("*", base=base).names == ("a",)


def test_a_glob_with_only_the_base_matches_nothing(tmp_path):
    save_model(tmp_path / "base", STATE)
    with pytest.raises(CheckpointError, match=r"/\*: matches no checkpoint"):
        ws.open_zoo(f"{tmp_path}/*", base=tmp_path / "base")


def test_a_path_with_brackets_is_no_pattern(tmp_path):
    zoo = ws.open_zoo(save_model(tmp_path / "run[1]*", STATE))
    assert zoo.names == ("run[1]*",)


@pytest.mark.parametrize("name", ["1²3", "١٢", "a\udc80b"], ids=ascii)
def test_file_names_in_any_script_are_sorted(tmp_path, name):
    save_model(tmp_path / name, STATE)
    save_model(tmp_path / "b", STATE)
    assert len(ws.open_zoo(f"{tmp_path}/*")) == 2


def test_tied_names_are_found_where_they_are_stored_twice(tmp_path):
    embed, norm = torch.arange(4.0), torch.ones(1)
    tied = {"embed": embed, "norm": norm, "head": embed}
    save_pickle(tmp_path / "tied/pytorch_model.bin", tied)
    save_model(tmp_path / "once", {"embed": embed, "norm": norm})
    save_model(tmp_path / "twice", {"embed": embed, "norm": norm, "head": embed.clone() + 1})
    once = ws.open_zoo([tmp_path / "tied", tmp_path / "once"])
    assert sorted(tensor.name for tensor in once.tensors) == ["embed", "norm"]
    assert once.numel == 5
    twice = ws.open_zoo([tmp_path / "tied", tmp_path / "twice"])
    assert sorted(tensor.name for tensor in twice.tensors) == ["embed", "head", "norm"]
    (out,) = ws.merge(twice, [0.5, 0.5], tmp_path / "out")
    merged = load(out)
    assert torch.equal(merged["embed"], embed)
    assert torch.equal(merged["head"], embed + 0.5)
    with pytest.raises(MisalignedZooError, match=r"/once has no tensor 'head', which .*/twice has"):
        ws.open_zoo([tmp_path / "twice", tmp_path / "once"])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/a", "runs/b"], ("a", "b")),
        (["runs/a/last", "runs/b/last"], ("a/last", "b/last")),
        (["/x/runs/a"], ("a",)),
        (["runs/a", "runs/a"], ("a", "a#2")),
        (["runs/a", "runs/b", "runs/a"], ("a", "b", "a#2")),
        (["a", "runs/b"], ("a", "runs/b")),
        (["runs", "runs/b"], ("runs", "runs/b")),
        (["."], (".",)),
        ([".", "b"], (".", "b")),
        (["runs/a/model.safetensors", "runs/b"], ("a/model.safetensors", "b")),
    ],
    ids=str,
)
def test_names_are_paths_without_what_they_share(paths, names):
    assert short_names(paths) == names


def fetched(monkeypatch, result):
    """Replaces the download; returns the arguments that it was given."""
    calls = []

    def snapshot_download(*arguments, **options):
        calls.append((arguments, options))
        if isinstance(result, Exception):
            raise result
        return str(result)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_a_hub_id_is_fetched_without_pickles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = fetched(monkeypatch, save_model(tmp_path / "cache", STATE))
    zoo = ws.open_zoo("owner/model@v1.0", base="owner/base")
    assert zoo.members[0].tensors.keys() == STATE.keys()
    (base, base_options), (model, model_options) = calls
    assert (base, base_options["revision"]) == (("owner/base",), None)
    assert (model, model_options["revision"]) == (("owner/model",), "v1.0")
    assert "*.safetensors" in model_options["allow_patterns"]
    assert not any(p.endswith((".bin", ".pt", "*")) for p in model_options["allow_patterns"])


def test_a_local_folder_comes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = fetched(monkeypatch, LocalEntryNotFoundError("no"))
    save_model(tmp_path / "owner/model", STATE)
    assert len(ws.open_zoo("owner/model")) == 1
    assert not calls


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            LocalEntryNotFoundError("Cannot find a snapshot\nof it."),
            "gave none: Cannot find a snap",
        ),
        (ValueError("bad id"), "the Hub gave none: bad id"),
        (ConnectionError(), "the Hub gave none: ConnectionError"),
        (RuntimeError("a proxy in the way"), "the Hub gave none: a proxy in the way"),
    ],
    ids=["not cached", "bad id", "no text", "any other"],
)
def test_a_hub_id_that_cannot_be_fetched_is_one_line(tmp_path, monkeypatch, error, words):
    monkeypatch.chdir(tmp_path)
    fetched(monkeypatch, error)
    with pytest.raises(
        CheckpointError, match=f"owner/model: no such file or folder.*{words}"
    ) as caught:
        ws.open_zoo("owner/model")
    assert len(str(caught.value).splitlines()) == 1


def test_a_hub_id_without_the_hubs_client_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="fetch it from the Hub, install huggingface_hub"):
        ws.open_zoo("owner/model")


@pytest.mark.parametrize("path", ["model", "/no/such/model", "./owner/model", "a/b/c"])
def test_other_paths_are_never_asked_of_the_hub(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    calls = fetched(monkeypatch, LocalEntryNotFoundError("no"))
    with pytest.raises(CheckpointError, match=r"^\S+: no such file or folder$"):
        ws.open_zoo(path)
    assert not calls


def test_nothing_but_headers_is_read(tmp_path):
    # a tensor of a terabyte, without its bytes on the disk
    n = 2**38
    header = {"x": {"dtype": "F32", "shape": [n], "data_offsets": [0, 4 * n]}}
    path = write_safetensors(tmp_path / "x.safetensors", header)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 4 * n)
    zoo = ws.open_zoo([path, path])
    assert zoo.numel == n
