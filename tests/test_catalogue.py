"""The catalogue's store: what it keeps of a model, from how many bytes, and through what."""

import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import wspace as ws
from tests.checkpoints import write_safetensors
from tests.zoos import SHAPES, save, state
from wkernels import reference
from wspace import devices
from wspace.catalogue.finding import find_models
from wspace.catalogue.layouts import in_layers, key_of
from wspace.catalogue.store import Store
from wspace.errors import CheckpointError, OutputError

ROOT = Path(__file__).parent.parent
LARGE = {name: shape for name, shape in SHAPES.items() if math.prod(shape)} | {
    "layers.2.weight": (700, 301),  # four rows of a sketch, and a part of one
    "layers.2.scale": (3,),
}


def a_state(seed, dtype=torch.float32):
    return state(seed, dtype, LARGE) | {"steps": torch.arange(70_000), "on": torch.tensor([True])}


def sketches(store, path):
    with Store(store) as opened:
        entry = opened.entries()[path]
        return {part: torch.tensor(opened.sketch(entry, part)) for part in ("all", "layers")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_what_is_kept_of_a_model(tmp_path, dtype):
    tensors = a_state(1, dtype)
    save(tmp_path / "zoo" / "a", tensors, shards=2)
    catalogue = ws.index_zoo(tmp_path / "zoo")
    entry = catalogue.models["a"]
    assert entry.layout.names == tuple(sorted(tensors))
    assert entry.nbytes == sum(tensor.nbytes for tensor in tensors.values())
    truth = {"all": 0, "layers": 0}
    for name, norm in zip(entry.layout.names, entry.norms, strict=True):
        if not tensors[name].is_floating_point():
            assert math.isnan(norm)
            continue
        x = tensors[name].double()
        rounding = x.numel() * torch.finfo(torch.float64).eps
        assert norm == pytest.approx(x.norm().item(), rel=max(rounding, 1e-15))
        part = reference.sketch(tensors[name], key_of(name))
        truth["all"] += part
        truth["layers"] += part * in_layers(name)
    for part, found in sketches(tmp_path / "zoo" / ".wspace", "a").items():
        torch.testing.assert_close(found.double(), truth[part], rtol=6e-8, atol=1e-13)


def test_checksums_are_those_of_a_written_checkpoint(tmp_path):
    """So that an output of ``wspace merge`` can be found by what its record says."""
    for name in ("a", "b"):
        save(tmp_path / name, a_state(1) if name == "a" else a_state(1) | state(2, shapes=LARGE))
    ws.merge(ws.open_zoo([tmp_path / "a", tmp_path / "b"]), [0.5, 0.5], tmp_path / "zoo" / "mix")
    entry = ws.index_zoo(tmp_path / "zoo").models["mix"]
    record = json.loads((tmp_path / "zoo" / "mix" / "wspace.json").read_text())
    written = record["checksums"]["tensors"]
    hashes = [bytes(row).hex() for row in entry.hashes]
    assert dict(zip(entry.layout.names, hashes, strict=True)) == written


def test_adding_a_model_costs_one_read_of_it(tmp_path, counted):
    zoo = tmp_path / "zoo"
    for k in range(3):
        save(zoo / f"m-{k}", a_state(k), shards=1 + k)
    catalogue = ws.index_zoo(zoo)
    size = catalogue.models["m-0"].nbytes
    assert counted[0] == 3 * size
    save(zoo / "m-3", a_state(3))
    catalogue = ws.index_zoo(zoo)
    assert counted[0] == 4 * size
    assert catalogue.changes.added == ("m-3",)
    catalogue.like(zoo / "m-0")
    catalogue.duplicates()
    assert counted[0] == 4 * size
    save(tmp_path / "elsewhere", a_state(9))
    assert catalogue.like(tmp_path / "elsewhere").candidates == 4
    assert counted[0] == 5 * size
    assert len(catalogue) == 4


def test_bits_depend_neither_on_shards_nor_memory_nor_threads(tmp_path, monkeypatch):
    tensors = a_state(1)
    found = []
    for k, (layout, memory, threads) in enumerate([
        ({}, "1GiB", 2),
        ({"shards": 3}, "8MiB", 1),
        ({"shards": 2, "reverse": True}, "1GiB", 3),
    ]):  # fmt: skip
        monkeypatch.setattr(devices, "processors", lambda threads=threads: threads)
        monkeypatch.setattr(devices.Cpu, "chunk_bytes", 1 << 18 if k else 16 << 20)
        zoo = tmp_path / f"zoo-{k}"
        save(zoo / "a", tensors, **layout)
        entry = ws.index_zoo(zoo, memory=memory).models["a"]
        found.append((entry, sketches(zoo / ".wspace", "a")))
    first, kept = found[0]
    for entry, other in found[1:]:
        assert entry.content == first.content
        assert np.array_equal(entry.norms, first.norms, equal_nan=True)
        assert all(torch.equal(other[part], kept[part]) for part in kept)


def test_changed_and_vanished_models_are_noticed(tmp_path, counted):
    zoo = tmp_path / "zoo"
    for k in range(4):
        save(zoo / f"m-{k}", a_state(k))
    before = ws.index_zoo(zoo)
    save(zoo / "m-1", a_state(11))
    shutil.rmtree(zoo / "m-2")
    save(zoo / "m-9", a_state(9))
    assert before.stale() == ["m-1", "m-2", "m-9"]
    counted[0] = 0
    after = ws.index_zoo(zoo)
    assert after.changes[:3] == (("m-9",), ("m-1",), ("m-2",))
    assert counted[0] == 2 * before.models["m-0"].nbytes
    assert sorted(after.models) == ["m-0", "m-1", "m-3", "m-9"]
    assert after.models["m-1"].content != before.models["m-1"].content
    assert after.stale() == []
    # slots of what is gone or changed are used again
    assert {entry.slot for entry in after.models.values()} == {0, 1, 2, 3}
    fresh = ws.index_zoo(zoo, store=tmp_path / "fresh")
    assert {p: e.content for p, e in fresh.models.items()} == {
        p: e.content for p, e in after.models.items()
    }
    for path in after.models:
        one, other = sketches(zoo / ".wspace", path), sketches(tmp_path / "fresh", path)
        assert torch.equal(one["all"], other["all"])


class StoppedError(Exception):
    pass


def test_what_was_finished_stays(tmp_path, counted):
    zoo = tmp_path / "zoo"
    for k in range(4):
        save(zoo / f"m-{k}", a_state(k))
    size = sum(tensor.nbytes for tensor in a_state(0).values())

    def stop(done, total):
        if done > 2.5 * size:
            raise StoppedError

    with pytest.raises(StoppedError):
        ws.index_zoo(zoo, progress=stop)
    assert sorted(ws.open_catalogue(zoo).models) == ["m-0", "m-1"]
    counted[0] = 0
    assert len(ws.index_zoo(zoo)) == 4
    assert counted[0] == 2 * size


def test_a_killed_run_goes_on(tmp_path):
    zoo = tmp_path / "zoo"
    for k in range(24):
        save(zoo / f"m-{k}", state(k))
    code = f"import wspace as ws; ws.index_zoo({str(zoo)!r})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as process:
        while process.poll() is None and n_models(zoo) < 4:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL  # it had not ended by itself
    assert n_models(zoo) >= 4
    catalogue = ws.index_zoo(zoo)
    assert len(catalogue) == 24
    fresh = ws.index_zoo(zoo, store=tmp_path / "fresh")
    for path, entry in fresh.models.items():
        assert entry.content == catalogue.models[path].content
        for part, values in sketches(tmp_path / "fresh", path).items():
            assert torch.equal(values, sketches(zoo / ".wspace", path)[part])


def n_models(zoo):
    try:
        return len(ws.open_catalogue(zoo).models)
    except (CheckpointError, OutputError):  # not there yet
        return 0


def test_one_process_writes_at_a_time(tmp_path):
    save(tmp_path / "zoo" / "a", a_state(0))
    catalogue = ws.index_zoo(tmp_path / "zoo")
    with Store(tmp_path / "zoo" / ".wspace", writing=True):
        with pytest.raises(OutputError, match="another process is indexing this zoo"):
            ws.index_zoo(tmp_path / "zoo")
        assert catalogue.like(tmp_path / "zoo" / "a").candidates == 0  # asking needs no lock
    assert len(ws.index_zoo(tmp_path / "zoo")) == 1


def test_models_that_cannot_be_read_are_named_and_not_read_again(tmp_path, counted):
    zoo = tmp_path / "zoo"
    save(zoo / "good", state(0))
    save(zoo / "nan", state(1) | {"norm.weight": torch.tensor([math.nan])})
    file = save(zoo / "short", state(2)) / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1)
    write_safetensors(zoo / "empty" / "model.safetensors", {})
    for _ in range(2):
        catalogue = ws.index_zoo(zoo)
        assert list(catalogue.models) == ["good"]
        words = {path: problem.replace("\n", " ") for path, problem in catalogue.problems.items()}
        assert "tensor 'norm.weight' has NaN or Inf" in words["nan"]
        assert "model.safetensors" in words["short"]
        assert "no floating-point tensor" in words["empty"]
        read, counted[0] = counted[0], 0
    assert read == 0
    save(zoo / "nan", state(1))
    assert ws.index_zoo(zoo).changes.changed == ("nan",)


def test_where_models_are_found(tmp_path):
    zoo = tmp_path / "zoo"
    tensors = state(0)
    save(zoo / "deep" / "er" / "model", tensors)
    save(zoo / "trained", tensors, shards=2)
    save(zoo / "trained" / "checkpoint-1", tensors, shards=2, index=False)
    for name in ("x", "y"):
        (save(tmp_path / "t", tensors) / "model.safetensors").rename(tmp_path / name)
        (zoo / "files").mkdir(exist_ok=True)
        (tmp_path / name).rename(zoo / "files" / f"{name}.safetensors")
    (zoo / "pickled").mkdir()
    torch.save(tensors, zoo / "pickled" / "pytorch_model.bin")
    torch.save({"state": 1}, zoo / "trained" / "checkpoint-1" / "optimizer.pt")
    save(zoo / ".hidden" / "model", tensors)
    (zoo / "adapter").mkdir()
    shutil.copy(zoo / "files" / "x.safetensors", zoo / "adapter" / "adapter_model.safetensors")
    (zoo / "adapter" / "adapter_config.json").write_text("{}")
    (zoo / "deep" / "loop").symlink_to(zoo)
    save(tmp_path / "outside", tensors)
    (zoo / "link").symlink_to(tmp_path / "outside")
    found = {model.path: model.adapter for model in find_models(zoo)}
    models = [
        "deep/er/model", "files/x.safetensors", "files/y.safetensors", "link", "pickled", "trained",
        "trained/checkpoint-1",
    ]  # fmt: skip
    assert found == dict.fromkeys(models, False) | {"adapter": True}
    catalogue = ws.index_zoo(zoo)
    assert sorted(catalogue.models) == models
    assert catalogue.changes.adapters == ("adapter",)
    assert len({entry.content for entry in catalogue.models.values()}) == 1


def test_an_empty_folder_empties_no_catalogue(tmp_path):
    """A disk that is not mounted looks like that."""
    save(tmp_path / "zoo" / "a", state(0))
    ws.index_zoo(tmp_path / "zoo")
    shutil.rmtree(tmp_path / "zoo" / "a")
    with pytest.raises(CheckpointError, match="no model in this folder"):
        ws.index_zoo(tmp_path / "zoo")
    assert len(ws.open_catalogue(tmp_path / "zoo")) == 1


def flip(path, position):
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)
        file.seek(position)
        file.write(bytes([byte[0] ^ 1]))


def test_damage_is_refused(tmp_path):
    zoo, store = tmp_path / "zoo", tmp_path / "zoo" / ".wspace"
    for k in range(2):
        save(zoo / f"m-{k}", state(k))
    catalogue = ws.index_zoo(zoo)
    kept = shutil.copytree(store, tmp_path / "kept")
    flip(store / "sketches-00000.safetensors", 4096 + 1000)
    with pytest.raises(CheckpointError, match="sketch of m-0 is not what was written"):
        catalogue.like(zoo / "m-1")
    (store / "sketches-00000.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="sketches-00000"):
        catalogue.duplicates()
    shutil.rmtree(store)
    shutil.copytree(kept, store)
    (store / "catalogue.sqlite").write_bytes(b"no database at all" * 300)
    for call in (ws.open_catalogue, ws.index_zoo):
        with pytest.raises(OutputError, match=r"catalogue\.sqlite: .*; if it is damaged, remove"):
            call(zoo)
    shutil.copy(kept / "catalogue.sqlite", store)
    with sqlite3.connect(store / "catalogue.sqlite") as database:
        database.execute("UPDATE settings SET value = '0'")
    database.close()
    with pytest.raises(OutputError, match="is a catalogue of format 0, expected 1"):
        ws.open_catalogue(zoo)
    with pytest.raises(CheckpointError, match="holds no catalogue; wspace index ZOO makes one"):
        ws.open_catalogue(tmp_path)


def test_a_model_that_changes_while_it_is_read_is_not_taken(tmp_path):
    zoo = tmp_path / "zoo"
    file = save(zoo / "a", a_state(0)) / "model.safetensors"
    save(zoo / "b", a_state(1))

    def touch(done, total):
        if 0 < done < 0.9 * total:
            os.utime(file, ns=(1, 1))

    catalogue = ws.index_zoo(zoo, progress=touch)
    assert "changed while it was being read" in catalogue.problems["a"]
    assert catalogue.stale() == ["a"]
    assert list(ws.index_zoo(zoo).models) == ["a", "b"]


def test_a_store_elsewhere_leaves_the_zoo_alone(tmp_path):
    save(tmp_path / "zoo" / "a", state(0))
    ws.index_zoo(tmp_path / "zoo", store=tmp_path / "kept")
    assert [path.name for path in (tmp_path / "zoo").iterdir()] == ["a"]
    assert len(ws.open_catalogue(tmp_path / "zoo", store=tmp_path / "kept")) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another place with --store"):
        ws.index_zoo(tmp_path / "zoo", store=tmp_path / "file")
