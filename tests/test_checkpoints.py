"""Checkpoints of every layout that is found on disks: opened from headers, or refused."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import wspace as ws
from tests.checkpoints import (
    entry,
    load,
    raw,
    save_model,
    save_pickle,
    save_shards,
    stored_bytes,
    write_index,
    write_safetensors,
)
from wspace.errors import CheckpointError
from wspace.storage.checkpoints import INDEX, open_checkpoint

A, B, C = torch.arange(6.0).view(2, 3), torch.arange(4.0), torch.tensor(5, dtype=torch.int64)
STATE = {"a": A, "b": B, "c": C}

LAYOUTS = {
    "a file of any name": lambda root: save_file(STATE, root / "x.safetensors") or "x.safetensors",
    "model.safetensors": lambda root: save_model(root, STATE) and "",
    "one file of another name": lambda root: save_file(STATE, root / "adapter.safetensors") or "",
    "shards with an index": lambda root: save_shards(root, {"a": A}, {"b": B, "c": C}) and "",
    "shards without an index": lambda root: (
        save_shards(root, {"c": C, "a": A}, {"b": B}, index=False) and ""
    ),
    "pytorch_model.bin": lambda root: save_pickle(root / "pytorch_model.bin", STATE) and "",
    "one .pth": lambda root: save_pickle(root / "last.pth", STATE) and "",
    "a .pt file": lambda root: save_pickle(root / "x.pt", STATE) and "x.pt",
    ".pt with a state dict inside": lambda root: (
        save_pickle(root / "x.pt", {"epoch": 3, "state_dict": STATE}) and "x.pt"
    ),
    ".pt with a model inside": lambda root: save_pickle(root / "x.pt", {"model": STATE}) and "x.pt",
    "parameters in a .bin": lambda root: (
        save_pickle(root / "x.bin", STATE | {"a": torch.nn.Parameter(A)}) and "x.bin"
    ),
    "sharded .bin": lambda root: _sharded_bin(root) or "",
}


def _sharded_bin(root):
    save_pickle(root / "pytorch_model-00001-of-00002.bin", {"a": A})
    save_pickle(root / "pytorch_model-00002-of-00002.bin", {"b": B, "c": C})
    files = {name: f"pytorch_model-0000{1 + (name != 'a')}-of-00002.bin" for name in STATE}
    write_index(root, files, "pytorch_model.bin.index.json")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_the_same(tmp_path, layout):
    checkpoint = open_checkpoint(tmp_path / LAYOUTS[layout](tmp_path))
    assert checkpoint.tensors.keys() == STATE.keys()
    assert checkpoint.folder == tmp_path
    assert checkpoint.nbytes == 4 * 10 + 8
    assert checkpoint.numel == 11
    for name, tensor in STATE.items():
        assert checkpoint.find(name).record.shape == tensor.shape
        assert stored_bytes(checkpoint, name) == raw(tensor)


def test_a_folder_is_read_by_its_index_first_then_by_name(tmp_path):
    other = {"other": B}
    save_pickle(tmp_path / "pytorch_model.bin", other)
    save_file(other, tmp_path / "consolidated.safetensors")
    save_model(tmp_path, {"a": A})
    assert open_checkpoint(tmp_path).tensors.keys() == {"a"}
    save_shards(tmp_path, {"b": B}, {"c": C})
    assert open_checkpoint(tmp_path).tensors.keys() == {"b", "c"}


def test_training_files_beside_pytorch_model_do_not_confuse(tmp_path):
    save_pickle(tmp_path / "pytorch_model.bin", STATE)
    save_pickle(tmp_path / "optimizer.pt", {"state": {}})
    assert open_checkpoint(tmp_path).tensors.keys() == STATE.keys()


def test_the_cache_of_the_hub_is_links_into_another_folder(tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123abcd"
    save_shards(snapshot, {"a": A}, {"b": B})
    (snapshot / "config.json").write_text('{"dtype": "float32"}')
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(snapshot.iterdir())):
        shutil.move(file, blobs / str(number))
        file.symlink_to(f"../../blobs/{number}")
    assert stored_bytes(open_checkpoint(snapshot), "b") == raw(B)
    (out,) = ws.merge(ws.open_zoo(snapshot), [1.0], tmp_path / "out")
    assert torch.equal(load(out)["a"], A)
    assert not any(file.is_symlink() for file in out.iterdir())
    assert (out / "config.json").read_text() == '{"dtype": "float32"}'


def _of(tmp_path, *names):
    for name in names:
        save_file({"x" + name.partition(".")[0]: A}, tmp_path / name)


def _index(tmp_path, weight_map):
    save_shards(tmp_path, {"a": A}, {"b": B}, index=False)
    write_index(tmp_path, weight_map)


S1, S2 = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

REFUSED = {
    "nothing there": (lambda root: root.rmdir(), "no such file or folder"),
    "empty folder": (lambda root: None, "pytorch_model.bin; weight files: none"),
    "a folder of other things": (
        lambda root: (root / "config.json").write_text("{}"),
        f"expected model.safetensors, {INDEX} or pytorch_model.bin; weight files: none",
    ),
    "first shard missing": (lambda root: _of(root, S2), f"shard {S1} is missing"),
    "last shard missing": (lambda root: _of(root, S1), f"shard {S2} is missing"),
    "a shard too many": (
        lambda root: _of(root, S1, S2, "model-00003-of-00002.safetensors"),
        "shard model-00003-of-00002.safetensors is not one of 2",
    ),
    "shards of two models": (
        lambda root: _of(root, S1, "other-00001-of-00001.safetensors"),
        r"shards of several models: model-\*-of-00002, other-\*-of-00001",
    ),
    "two unrelated files": (
        lambda root: _of(root, "x.safetensors", "y.safetensors"),
        r"2 safetensors files \(x.safetensors, y.safetensors, ...\) and neither an .* nor shard",
    ),
    "two .bin files": (
        lambda root: [save_pickle(root / f"{k}.bin", STATE) for k in "xy"],
        "weight files: x.bin, y.bin",
    ),
    "a tensor in two shards": (
        lambda root: save_shards(root, {"a": A}, {"a": A, "b": B}, index=False),
        f"{S2}: tensor 'a' is also in {S1}",
    ),
    "a tensor in two indexed shards": (
        lambda root: save_shards(root, {"a": A, "c": C}, {"a": A, "b": B}),
        f"{S2}: tensor 'a' is also in {S1}",
    ),
    # what an index may say
    "index without its shard": (
        lambda root: _index(root, {"a": "model-00009-of-00009.safetensors"}),
        f"{INDEX}: shard model-00009-of-00009.safetensors does not exist",
    ),
    "index into the parent folder": (
        lambda root: _index(root, {"a": f"../{S1}"}),
        f"{INDEX}: shard '../{S1}' is not a file name in this folder",
    ),
    "index into a subfolder": (
        lambda root: _index(root, {"a": f"sub/{S1}"}),
        "shard 'sub/.*' is not a file name in this folder",
    ),
    "index to an absolute path": (
        lambda root: _index(root, {"a": "/etc/passwd"}),
        f"{INDEX}: shard '/etc/passwd' is not a file name in this folder",
    ),
    "index to the folder itself": (
        lambda root: _index(root, {"a": "."}),
        "shard '.' is not a file",
    ),
    "index to the parent": (
        lambda root: _index(root, {"a": ".."}),
        "shard '..' is not a file name",
    ),
    "index to no name": (lambda root: _index(root, {"a": ""}), "shard '' is not a file name"),
    "index with a NUL": (
        lambda root: _index(root, {"a": "x\0y"}),
        r"shard 'x\\x00y' does not exist",
    ),
    "index with a surrogate": (lambda root: _index(root, {"a": "\udc80"}), "does not exist"),
    "index with a name too long": (lambda root: _index(root, {"a": "x" * 9999}), "does not exist"),
    "index with a long name of two-byte letters": (
        lambda root: _index(root, {"a": "é" * 200}),
        "does not exist",
    ),
    "index to a file that is no shard": (
        lambda root: _index(root, {"a": INDEX}),
        f"{INDEX}: header length",
    ),
    "index to the wrong shard": (
        lambda root: _index(root, {"a": S2, "b": S1}),
        f"{INDEX}: tensor 'a' is not in {S2}, as the index says",
    ),
    "index with a tensor that no shard has": (
        lambda root: _index(root, {"a": S1, "b": S2, "c": S2}),
        f"{INDEX}: tensor 'c' is not in {S2}, as the index says",
    ),
    "index without a shard's tensor": (
        lambda root: (
            save_shards(root, {"a": A}, {"b": B, "c": C}) and write_index(root, {"a": S1, "b": S2})
        ),
        f"{INDEX}: tensor 'c' is in a shard, but not in the index",
    ),
    "empty weight_map": (lambda root: _index(root, {}), f"{INDEX}: weight_map is empty"),
    "weight_map is a list": (lambda root: _index(root, []), "expected JSON with a weight_map"),
    "weight_map is null": (lambda root: _index(root, None), "expected JSON with a weight_map"),
    "weight_map with a number": (lambda root: _index(root, {"a": 3}), "shard 3 does not exist"),
    "weight_map with a list": (lambda root: _index(root, {"a": [S1]}), "does not exist|not a file"),
    "no weight_map": (lambda root: (root / INDEX).write_text("{}"), "with a weight_map: KeyError"),
    "index is a list": (
        lambda root: (root / INDEX).write_text("[]"),
        "with a weight_map: TypeError",
    ),
    "index is no JSON": (lambda root: (root / INDEX).write_text("x"), "with a weight_map"),
    "index is not UTF-8": (lambda root: (root / INDEX).write_bytes(b"\xff"), "with a weight_map"),
    "index is deep": (lambda root: (root / INDEX).write_text("[" * 10**5), "with a weight_map"),
    # files within
    "model.safetensors cut off": (
        lambda root: (save_model(root, STATE), os.truncate(root / "model.safetensors", 100)),
        "model.safetensors: header length",
    ),
    "model.safetensors with a lie": (
        lambda root: write_safetensors(root / "model.safetensors", {"x": entry()}, bytes(9)),
        "model.safetensors: tensors end at byte 8 of the data, but the file has 9",
    ),
    "model.safetensors is a folder": (
        lambda root: (root / "model.safetensors").mkdir(),
        "model.safetensors: cannot be read: Is a directory",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_path(tmp_path, case):
    root = tmp_path / "model"
    root.mkdir()
    make, words = REFUSED[case]
    make(root)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(root)
    assert str(caught.value).startswith(str(root))
    assert len(str(caught.value)) < len(str(root)) * 2 + 300


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        CheckpointError, match=r"expected a folder, or a file ending in .safetensors"
    ):
        open_checkpoint(tmp_path / "model.gguf")


class Executes:
    """What a hostile pickle does: calls a function of its choice when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("place", ["alone", "among tensors", "nested"])
def test_no_pickle_runs_code(tmp_path, place):
    marker = tmp_path / "was-executed"
    attack = Executes(marker)
    content = {"alone": attack, "among tensors": {"a": A, "b": attack}, "nested": [[attack]]}[place]
    path = save_pickle(tmp_path / "x.bin", content)
    with pytest.raises(CheckpointError, match="weights-only loader refuses it") as caught:
        open_checkpoint(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the attack is one
    assert marker.exists()


def test_tied_tensors_are_counted_once_and_found_by_both_names(tmp_path):
    tied = {"embed": A, "head": A, "b": B, "again": A}
    checkpoint = open_checkpoint(save_pickle(tmp_path / "x.bin", tied))
    assert list(checkpoint.tensors) == ["embed", "b"]
    assert checkpoint.aliases == {"head": "embed", "again": "embed"}
    assert checkpoint.find("head") is checkpoint.find("embed")
    assert checkpoint.numel == A.numel() + B.numel()


def test_tied_names_of_an_index_are_found(tmp_path):
    save_pickle(tmp_path / "pytorch_model-00001-of-00001.bin", {"embed": A, "head": A})
    index = dict.fromkeys(["embed", "head"], "pytorch_model-00001-of-00001.bin")
    write_index(tmp_path, index, "pytorch_model.bin.index.json")
    assert open_checkpoint(tmp_path).aliases == {"head": "embed"}


def test_views_of_one_storage_that_differ_are_no_aliases(tmp_path):
    whole = torch.arange(12.0)
    views = {
        "all": whole,
        "part": whole[:6],
        "matrix": whole.view(3, 4),
        "transposed": whole.view(4, 3).T,
        "later": whole[6:],
    }
    checkpoint = open_checkpoint(save_pickle(tmp_path / "x.bin", views))
    assert not checkpoint.aliases
    for name, view in views.items():
        assert stored_bytes(checkpoint, name) == raw(view), name


GAPS = {
    "transposed": torch.arange(6.0).view(2, 3).T,
    "every second": torch.arange(10.0)[::2],
    "expanded": torch.arange(3.0).expand(4, 3),
    "permuted": torch.arange(24, dtype=torch.bfloat16).view(2, 3, 4).permute(2, 0, 1),
    "with an offset": torch.arange(10.0)[5:],
    "scalar": torch.tensor(2.5),
    "scalar of a row": torch.arange(5.0)[3],
    "empty": torch.zeros(0, 3),
    "bool": torch.tensor([True, False]),
    "complex": torch.tensor([1 + 2j]),
    "float8": torch.arange(4.0).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", GAPS)
def test_tensors_of_any_stride_are_read_in_order(tmp_path, kind):
    checkpoint = open_checkpoint(save_pickle(tmp_path / "x.bin", {"x": GAPS[kind]}))
    assert checkpoint.find("x").record.shape == GAPS[kind].shape
    assert stored_bytes(checkpoint, "x") == raw(GAPS[kind])


def test_contiguous_tensors_are_left_in_the_file(tmp_path):
    tensors = {"x": torch.arange(1e5), "y": torch.arange(1e5)[3:7], "t": torch.eye(300)[:, :2]}
    path = save_pickle(tmp_path / "with a space" / "x.bin", tensors)
    for opened in [open_checkpoint(path), open_checkpoint(path)]:
        assert [name for name in tensors if opened.find(name).memory is None] == ["x", "y"]
        for name, tensor in tensors.items():
            assert stored_bytes(opened, name) == raw(tensor)
    assert str(path) not in Path("/proc/self/maps").read_text()


def test_a_file_of_the_other_byte_order_is_read_as_torch_reads_it(tmp_path):
    path = save_pickle(tmp_path / "x.bin", {"x": torch.arange(5.0)})
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (order,) = [name for name in parts if name.endswith("/byteorder")]
    parts[order] = {b"little": b"big", b"big": b"little"}[parts[order]]
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    expected = torch.load(path, weights_only=True)["x"]
    assert not torch.equal(expected, torch.arange(5.0))
    assert stored_bytes(open_checkpoint(path), "x") == raw(expected)


def test_a_bin_cut_off_after_it_was_opened_is_an_error(tmp_path):
    path = save_pickle(tmp_path / "x.bin", {"x": torch.ones(1 << 18)})
    zoo = ws.open_zoo(path)
    os.truncate(path, 5000)
    with pytest.raises(
        CheckpointError, match=r"x.bin: ends at byte 5000, expected .* became shorter"
    ):
        ws.merge(zoo, [1.0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


PICKLES = {
    "not a pickle": (b"hello", "weights-only loader refuses it"),
    "empty file": (b"", "weights-only loader refuses it"),
    "no dict": ([A], "expected a state dict, found list"),
    "a tensor alone": (A, "expected a state dict, found Tensor"),
    "empty dict": ({}, "expected a state dict, found dict"),
    "a number among tensors": ({"a": A, "epoch": 3}, "'epoch': expected a tensor, found int"),
    "a number as name": ({3: A}, "3: expected a tensor, found Tensor"),
    "a dict among tensors": ({"a": {"b": A}}, "'a': expected a tensor, found dict"),
    "sparse": ({"a": torch.eye(2).to_sparse()}, "'a': unsupported torch.float32 torch.sparse_coo"),
    "without data": ({"a": torch.zeros(2, device="meta")}, "'a': unsupported .* on meta"),
    "conjugate view": ({"a": torch.zeros(2, dtype=torch.complex64).conj()}, "conjugate"),
    "unknown type": ({"a": torch.zeros(2, dtype=torch.complex128)}, "unsupported torch.complex128"),
    "terabytes out of 4 bytes": (
        {"a": torch.zeros(1).expand(10**15)},
        r"'a': no memory to expand it to \[1000000000000000\]",
    ),
    "the key of metadata as name": (
        {"__metadata__": A},
        "a tensor cannot be named '__metadata__'",
    ),
    "half of a surrogate pair as name": ({"\ud800": A}, r"cannot be named '\\ud800'"),
}


@pytest.mark.parametrize("case", PICKLES)
def test_a_pickle_that_is_no_state_dict_is_refused(tmp_path, case):
    content, words = PICKLES[case]
    path = tmp_path / "x.bin"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_pickle(path, content)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_a_tied_name_that_another_file_holds_too_is_refused(tmp_path):
    save_pickle(tmp_path / "x-00001.bin", {"embed": A, "head": A})
    save_pickle(tmp_path / "x-00002.bin", {"head": B})
    index = {"embed": "x-00001.bin", "head": "x-00002.bin"}
    write_index(tmp_path, index, "pytorch_model.bin.index.json")
    with pytest.raises(CheckpointError, match="tensor 'head' is in two files"):
        open_checkpoint(tmp_path)
