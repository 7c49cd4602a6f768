"""A merge that was cut short goes on: to the same bits, from what was finished, or not at all."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wspace as ws
from tests.adapters import adapter
from tests.checkpoints import save_model
from tests.recipes import plan
from tests.zoos import state
from wspace.errors import CheckpointError, NonFiniteError, OutputError
from wspace.recipes import Problems, merge_outputs, merge_recipe, places_of, plan_outputs
from wspace.storage import writing
from wspace.storage.blocks import Blocks
from wspace.storage.checksums import BLOCK, OpenBlock, checksum
from wspace.storage.fingerprints import digest_of
from wspace.storage.journal import Block, Journal
from wspace.version import VERSION

SHAPES = {"a": (700, 600), "b": (7,), "c": (64, 512), "d": (), "e": (0, 3), "f": (900, 300)}
WEIGHTS = [0.3, 0.7]
MEMORY = "3MiB"  # some dozens of chunks


class StoppedError(Exception):
    """Something that nobody expects."""


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """``runs/0``, ``runs/1`` and ``base``; every block is journaled at once. Returns the zoo."""
    monkeypatch.setattr(writing, "COMMIT_SECONDS", 0)
    base = state(9, shapes=SHAPES)
    for seed in range(2):
        tensors = state(seed, shapes=SHAPES, like=base)
        save_model(tmp_path / f"runs/{seed}", tensors | {"steps": torch.tensor([3])}, {"x": 1})
    save_model(tmp_path / "base", base | {"steps": torch.tensor([3])})
    return ws.open_zoo(f"{tmp_path}/runs/*", base=tmp_path / "base")


def bytes_in(folder):
    """Every file but the record, which has the time at which the inputs were made."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "wspace.json"}


def stop_at(share, error=StoppedError, ready=lambda: True):
    """``ready``: what the writing threads have to have done first."""

    def progress(done, total):
        if done >= share * total:
            until = time.monotonic() + 20
            while not ready() and time.monotonic() < until:
                time.sleep(0.01)
            raise error

    return progress


class Watched:
    """Counts what is read."""

    def __init__(self):
        self.read = 0

    def __call__(self, done, total):
        self.read = total


def weights_in(folder):
    """The shards, bit for bit."""
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.safetensors"))}


def bytes_said(out):
    """By the journal of one who is at work and holds its lock."""
    text = (out.parent / f".{out.name}.partial" / "journal").read_text()
    return sum(int(line.split()[2]) for line in text.split("\n")[:-1])


def journaled(out):
    folder = out.parent / f".{out.name}.partial"
    journal = Journal(folder / "journal", digest_of(json.loads((folder / "job.json").read_text())))
    blocks = journal.read()
    journal.close()
    return blocks


@pytest.mark.parametrize("error", [StoppedError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("shard", ["5GB", "1MB"])
def test_it_goes_on_to_the_same_bits(runs, tmp_path, error, shard):
    options = {"max_shard_size": shard, "memory": MEMORY}
    ws.merge(runs, WEIGHTS, tmp_path / "expected", **options)
    stop = stop_at(0.7, error, lambda: bytes_said(tmp_path / "out") > 1_500_000)
    with pytest.raises(error):
        ws.merge(runs, WEIGHTS, tmp_path / "out", progress=stop, **options)
    assert not (tmp_path / "out").exists()
    kept = sum(block.nbytes for block in journaled(tmp_path / "out"))
    assert kept > 1 << 20
    said, watched = [], Watched()
    options["memory"] = "6MiB"  # chunks are cut in another way
    ws.merge(runs, WEIGHTS, tmp_path / "out", note=said.append, progress=watched, **options)
    assert said == [f"{tmp_path / 'out'}: going on from {kept / 1e6:.3g} MB of 2.89 MB, checked"]
    assert watched.read < 0.8 * sum(3 * tensor.numel * 4 for tensor in runs.tensors)
    assert bytes_in(tmp_path / "out") == bytes_in(tmp_path / "expected")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "expected", "out", "runs"]


def test_it_may_be_cut_short_again_and_again(runs, tmp_path):
    ws.merge(runs, WEIGHTS, tmp_path / "expected", memory=MEMORY)
    counts = []
    for _ in range(20):
        try:
            ws.merge(runs, WEIGHTS, tmp_path / "out", memory=MEMORY, progress=stop_at(0.3))
        except StoppedError:
            counts.append(len(journaled(tmp_path / "out")))
        if (tmp_path / "out").exists():
            break
    # 0.3 of what is left is done each time, but for the last chunk
    assert counts == sorted(counts)
    ws.merge(runs, WEIGHTS, tmp_path / "out", memory=MEMORY)
    assert bytes_in(tmp_path / "out") == bytes_in(tmp_path / "expected")


def test_finished_blocks_are_not_written_again(runs, tmp_path, monkeypatch):
    with pytest.raises(StoppedError):
        ws.merge(runs, WEIGHTS, tmp_path / "out", memory=MEMORY, progress=stop_at(0.6))
    kept = {b for block in journaled(tmp_path / "out")
            for b in range(block.start, block.start + block.nbytes)}  # fmt: skip
    written, pwrite = set(), os.pwrite

    def record(descriptor, data, position):
        written.update(range(position, position + len(data)))
        return pwrite(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", record)
    ws.merge(runs, WEIGHTS, tmp_path / "out", memory=MEMORY)
    assert kept
    assert not written & kept


def test_bytes_that_changed_on_the_disk_are_made_again(runs, tmp_path):
    ws.merge(runs, WEIGHTS, tmp_path / "expected", memory=MEMORY)
    with pytest.raises(StoppedError):
        ws.merge(runs, WEIGHTS, tmp_path / "out", memory=MEMORY, progress=stop_at(0.6))
    block = max(journaled(tmp_path / "out"), key=lambda block: block.nbytes)
    with (tmp_path / ".out.partial/output/model.safetensors").open("r+b") as file:
        file.seek(block.start + block.nbytes // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 16]))
    said = []
    ws.merge(runs, WEIGHTS, tmp_path / "out", memory=MEMORY, note=said.append)
    assert said[0].endswith("262 KB had changed on the disk and are made again")
    assert bytes_in(tmp_path / "out") == bytes_in(tmp_path / "expected")


@pytest.mark.parametrize("what", ["cut off", "gone", "longer"])
def test_files_that_are_not_as_the_journal_says(runs, tmp_path, what):
    ws.merge(runs, WEIGHTS, tmp_path / "expected")
    with pytest.raises(StoppedError):
        ws.merge(runs, WEIGHTS, tmp_path / "out", memory=MEMORY, progress=stop_at(0.9))
    file = tmp_path / ".out.partial/output/model.safetensors"
    if what == "gone":
        file.unlink()
    else:
        os.truncate(file, 1_500_000 if what == "cut off" else 9_000_000)
    ws.merge(runs, WEIGHTS, tmp_path / "out")
    assert bytes_in(tmp_path / "out") == bytes_in(tmp_path / "expected")


def change(path, text="!"):
    with path.open("a") as file:
        file.write(text)


CHANGES = {
    "weights": (lambda root, call: call | {"weights": [0.5, 0.5]},
                r"weights was \[0.3, 0.7\], is \[0.5, 0.5\]"),
    "dtype": (lambda root, call: call | {"dtype": "float16"}, 'dtype was null, is "float16"'),
    "shards": (lambda root, call: call | {"max_shard_size": "1MB"},
               "max_shard_bytes was 5000000000, is 1000000"),
    "model": (lambda root, call: save_model(root / "runs/1", state(7, shapes=SHAPES)
                                            | {"steps": torch.tensor([3])}) and call,
              "runs/1/model.safetensors has changed .the same size, modified since"),
    "config": (lambda root, call: change(root / "runs/1/config.json") or call,
               "runs/1/config.json has changed .8 bytes before, 9 now"),
    "tensors": (lambda root, call: call | {"exclude": "b"}, "tensors changed"),
    "base": (lambda root, call: call | {"base": root / "runs/0"}, "models changed, base changed"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_changed_is_said_and_only_restart_starts_over(runs, tmp_path, name):
    def merge(weights, exclude=(), base=tmp_path / "base", **call):
        zoo = ws.open_zoo(f"{tmp_path}/runs/*", base=base, exclude=exclude)
        ws.merge(zoo, weights[: len(zoo)], tmp_path / "out", memory=MEMORY, **call)

    with pytest.raises(StoppedError):
        merge(WEIGHTS, progress=stop_at(0.6))
    before = bytes_in(tmp_path / ".out.partial/output")
    edit, words = CHANGES[name]
    call = edit(tmp_path, {"weights": WEIGHTS})
    with pytest.raises(OutputError, match=f"out: an unfinished output is in .*{words}") as refused:
        merge(**call)
    assert "start over with --restart" in str(refused.value)
    assert bytes_in(tmp_path / ".out.partial/output") == before
    said = []
    merge(**call, restart=True, note=said.append)
    assert said == []
    assert (tmp_path / "out").exists()


def test_another_version_does_not_go_on(runs, tmp_path):
    with pytest.raises(StoppedError):
        ws.merge(runs, WEIGHTS, tmp_path / "out", memory=MEMORY, progress=stop_at(0.6))
    job = tmp_path / ".out.partial/job.json"
    job.write_text(job.read_text().replace(f'"wspace": "{VERSION}"', '"wspace": "0.0.9"'))
    with pytest.raises(OutputError, match=f"and wspace was 0.0.9, is {VERSION}"):
        ws.merge(runs, WEIGHTS, tmp_path / "out", memory=MEMORY)


@pytest.mark.parametrize("text", ["{}", "[]", '{"made": 1, "settings": 2, "inputs": 3}'])
def test_a_damaged_fingerprint_is_refused_and_none_is_a_new_start(runs, tmp_path, text):
    with pytest.raises(StoppedError):
        ws.merge(runs, WEIGHTS, tmp_path / "out", memory=MEMORY, progress=stop_at(0.6))
    job = tmp_path / ".out.partial/job.json"
    job.write_text(text)
    with pytest.raises(OutputError, match=r"and its job.json is damaged"):
        ws.merge(runs, WEIGHTS, tmp_path / "out")
    job.write_text('{"made"')  # as a crash may leave it
    ws.merge(runs, WEIGHTS, tmp_path / "out")


def test_two_at_once_are_refused(runs, tmp_path):
    refused = []

    def progress(done, total):
        if not refused:
            with pytest.raises(OutputError, match="out: another process is making it") as error:
                ws.merge(runs, WEIGHTS, tmp_path / "out")
            refused.append(error)

    ws.merge(runs, WEIGHTS, tmp_path / "out", progress=progress)
    assert refused
    assert (tmp_path / "out").exists()


def test_an_input_that_changes_meanwhile_is_noticed(runs, tmp_path):
    def progress(done, total):
        if done == total:
            os.utime(tmp_path / "runs/1/model.safetensors")

    words = "runs/1/model.safetensors: changed while it was being read .the same size, modified"
    with pytest.raises(CheckpointError, match=words):
        ws.merge(runs, WEIGHTS, tmp_path / "out", progress=progress)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "runs"]


def test_a_refusal_leaves_nothing_but_what_was_there(runs, tmp_path):
    tensors = state(1, shapes=SHAPES) | {"steps": torch.tensor([3])}
    tensors["f"][-1, -1] = torch.nan
    save_model(tmp_path / "runs/1", tensors)
    zoo = ws.open_zoo(f"{tmp_path}/runs/*", base=tmp_path / "base")
    with pytest.raises(NonFiniteError):
        ws.merge(zoo, WEIGHTS, tmp_path / "out", memory=MEMORY)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "runs"]
    with pytest.raises(StoppedError):
        ws.merge(zoo, WEIGHTS, tmp_path / "out", memory=MEMORY, progress=stop_at(0.6))
    with pytest.raises(NonFiniteError):
        ws.merge(zoo, WEIGHTS, tmp_path / "out", memory=MEMORY)
    said = []
    ws.merge(zoo, WEIGHTS, tmp_path / "out", allow_non_finite=True, note=said.append)
    assert "going on from" in said[0]


@pytest.mark.parametrize("function", ["pwrite", "fdatasync"])
def test_a_disk_that_fills_up_keeps_what_is_finished(runs, tmp_path, monkeypatch, function):
    ws.merge(runs, WEIGHTS, tmp_path / "expected")
    real, calls = getattr(os, function), []

    def fill_up(*arguments):
        calls.append(arguments)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fill_up)
        with pytest.raises(OutputError, match=r"out: .*No space left on device"):
            ws.merge(runs, WEIGHTS, tmp_path / "out", memory=MEMORY)
    assert journaled(tmp_path / "out")
    ws.merge(runs, WEIGHTS, tmp_path / "out")
    assert bytes_in(tmp_path / "out") == bytes_in(tmp_path / "expected")


def test_between_two_outputs(runs, tmp_path, monkeypatch):
    """The first is published when the process dies: the second alone is made."""
    table, outs = [WEIGHTS, [1.0, -1.0]], [tmp_path / "x", tmp_path / "y"]
    ws.merge(runs, table, [tmp_path / "a", tmp_path / "b"])
    rename = Path.rename

    def die(path, target):
        if target.name == "y":
            raise StoppedError
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die)
        with pytest.raises(StoppedError):
            ws.merge(runs, table, outs)
    assert (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()
    said = []
    with pytest.raises(OutputError, match="x: exists; choose another name"):
        ws.merge(runs, [[0.5, 0.5], [1.0, -1.0]], outs)
    assert ws.merge(runs, table, outs, note=said.append) == outs
    assert [line.split(":")[0] for line in said] == [str(tmp_path / "y")]
    for name, expected in (("x", "a"), ("y", "b")):
        assert bytes_in(tmp_path / name) == bytes_in(tmp_path / expected)
    with pytest.raises(OutputError, match="x: exists"):
        ws.merge(runs, table, outs)


RECIPES = {
    "linear": "merge_method: linear\nmodels: [{model: 0, parameters: {weight: 0.3}}, "
              "{model: 1, parameters: {weight: 0.7}}]",
    "model_stock": "merge_method: model_stock\nbase_model: base\nmodels: [{model: 0}, {model: 1}]",
    "nuslerp": "merge_method: nuslerp\nparameters: {nuslerp_row_wise: false}\n"
               "models: [{model: 0, parameters: {weight: 0.5}}, "
               "{model: 1, parameters: {weight: 0.5}}]",
    "ties": "merge_method: ties\nbase_model: base\nparameters: {density: 0.4, weight: 1.0}\n"
            "models: [{model: 0}, {model: 1}]",
    "dare_ties": "merge_method: dare_ties\nbase_model: base\n"
                 "parameters: {density: 0.4, weight: 1.0}\nmodels: [{model: 0}, {model: 1}]",
}  # fmt: skip


def recipe_of(root, name):
    text = RECIPES[name].replace("model: 0", f"model: {root}/runs/0")
    text = text.replace("model: 1", f"model: {root}/runs/1")
    return text.replace("base_model: base", f"base_model: {root}/base")


@pytest.mark.parametrize("memory", ["6MiB", "200MiB"], ids=["in parts", "whole"])
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_go_on(runs, tmp_path, name, memory):
    text = recipe_of(tmp_path, name)
    merge_recipe(plan(text)[0], tmp_path / "expected", memory="200MiB")
    with pytest.raises(StoppedError):
        merge_recipe(plan(text)[0], tmp_path / "out", memory="6MiB", progress=stop_at(0.75))
    said = []
    merge_recipe(plan(text)[0], tmp_path / "out", memory=memory, note=said.append)
    assert "going on from" in said[0]
    assert weights_in(tmp_path / "out") == weights_in(tmp_path / "expected")


def test_a_recipe_that_changed_is_refused(runs, tmp_path):
    text = recipe_of(tmp_path, "ties")
    with pytest.raises(StoppedError):
        merge_recipe(plan(text)[0], tmp_path / "out", memory="6MiB", progress=stop_at(0.75))
    with pytest.raises(OutputError, match="and recipe changed: start over with --restart"):
        merge_recipe(plan(text.replace("0.4", "0.5"))[0], tmp_path / "out")
    with pytest.raises(OutputError, match="and seed was 0, is 1: start over"):
        merge_recipe(plan(text)[0], tmp_path / "out", seed=1)


def test_stages_that_are_published_are_not_made_again(runs, tmp_path):
    first = recipe_of(tmp_path, "ties") + "\nname: first"
    second = "merge_method: linear\nmodels: [{model: first, parameters: {weight: 0.5}}, " + (
        f"{{model: {tmp_path}/base, parameters: {{weight: 0.5}}}}]"
    )

    def run(out, **options):
        outputs = plan_outputs(f"{first}\n---\n{second}\n", Problems("r.yml"))
        merge_outputs(outputs, places_of(outputs, [str(out)]), memory="6MiB", **options)

    seen = []

    def progress(done, total):
        if (tmp_path / "out/first").exists() and done > 0.8 * total:
            raise StoppedError

    run(tmp_path / "expected")
    with pytest.raises(StoppedError):
        run(tmp_path / "out", progress=progress)
    run(tmp_path / "out", note=seen.append)
    assert [line.split(":")[0] for line in seen] == [str(tmp_path / "out/final")]
    for name in ("first", "final"):
        found, expected = (bytes_in(tmp_path / top / name) for top in ("out", "expected"))
        assert found.keys() == expected.keys()
        # headers and cards name the recipe; inputs of the second differ in their path
        assert ws.open_checkpoint(tmp_path / "out" / name).numel
        for file in found:
            if name == "first":
                assert found[file] == expected[file]


def test_adapters_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "COMMIT_SECONDS", 0)
    for seed in range(2):
        adapter(tmp_path / f"runs/{seed}", seed, {"x": (30, 20), "y": (10, 40)})
    zoo = ws.open_zoo([tmp_path / "runs/0", tmp_path / "runs/1"])
    ws.merge(zoo, [0.5, 0.5], tmp_path / "expected")
    submit, calls = writing.CheckpointWriter.write, []

    def stop(writer, *arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise StoppedError
        return submit(writer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(writing.CheckpointWriter, "write", stop)
        with pytest.raises(StoppedError):
            ws.merge(zoo, [0.5, 0.5], tmp_path / "out")
    said = []
    ws.merge(zoo, [0.5, 0.5], tmp_path / "out", note=said.append)
    assert "going on from" in said[0]
    assert bytes_in(tmp_path / "out") == bytes_in(tmp_path / "expected")


# ---- the command, and processes that die


SLOWLY = """
import sys, time
from wspace.storage import writing
from wspace.cli.main import main
writing.COMMIT_SECONDS = 0
write = writing.CheckpointWriter._write
def slow(self, *arguments):
    time.sleep(0.03)
    write(self, *arguments)
writing.CheckpointWriter._write = slow
sys.exit(main(sys.argv[1:]))
"""


def command_of(root, out, *more):
    return [sys.executable, "-c", SLOWLY, "merge", f"{root}/runs/0", f"{root}/runs/1", "--base",
            f"{root}/base", "--weights", "0.3,0.7", "-o", str(out), "--memory", MEMORY,
            *more]  # fmt: skip


def started(command, out):
    """The process, when it has journaled something."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    journal = out.parent / f".{out.name}.partial" / "journal"
    while process.poll() is None and not (journal.is_file() and journal.stat().st_size):
        time.sleep(0.002)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupt_ends_at_once_and_says_how_to_go_on(runs, tmp_path, number):
    ws.merge(runs, WEIGHTS, tmp_path / "expected")
    out = tmp_path / "out"
    process = started(command_of(tmp_path, out), out)
    process.send_signal(number)
    before = time.monotonic()
    _, said = process.communicate()
    assert time.monotonic() - before < 20  # a second, and what else the machine has to do
    assert process.returncode == 128 + number
    assert said.splitlines()[-1] == (
        "interrupted; the same command goes on from what is finished, --restart starts over"
    )
    assert journaled(out)
    done = subprocess.run(command_of(tmp_path, out), capture_output=True, text=True, check=True)
    assert f"{out}: going on from" in done.stderr
    assert bytes_in(out) == bytes_in(tmp_path / "expected")


def test_a_process_in_a_long_call_ends_all_the_same():
    code = """
import contextlib, hashlib
from wspace.cli.interrupts import prompt_interrupts
with prompt_interrupts("stopped"):
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            print("ready", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes without Python
"""
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    before = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert time.monotonic() - before < 20  # 0.7 s, and what else the machine has to do
    assert (process.returncode, said) == (130, "stopped\n")


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_it_goes_on_to_the_same_bits(runs, tmp_path, seed):
    ws.merge(runs, WEIGHTS, tmp_path / "expected")
    out, draw = tmp_path / "out", random.Random(seed)
    kept = []
    for _ in range(3):
        process = started(command_of(tmp_path, out), out)
        time.sleep(draw.uniform(0, 0.2))
        process.kill()
        process.communicate()
        if out.exists():
            break
        kept.append(len(journaled(out)))
    if not out.exists():
        assert kept == sorted(kept)
        subprocess.run(command_of(tmp_path, out), capture_output=True, check=True)
    assert bytes_in(out) == bytes_in(tmp_path / "expected")


# ---- the parts


def test_a_journal_believes_only_whole_lines(tmp_path):
    blocks = [Block(0, 4096 * k, 4096, checksum(bytes([k]))) for k in range(5)]
    journal = Journal(tmp_path / "journal", "job")
    journal.add(blocks)
    text = (tmp_path / "journal").read_bytes()
    lines = text.split(b"\n")
    for cut in range(len(text)):
        (tmp_path / "journal").write_bytes(text[:cut])
        expected = blocks[: text[:cut].count(b"\n")]
        whole = cut < len(text) and text[cut : cut + 1] == b"\n"
        assert journal.read() == blocks[: len(expected) + whole], cut
    (tmp_path / "journal").write_bytes(text[:-3])
    assert journal.read() == blocks[:4]
    journal.add(blocks[4:])
    assert journal.read() == blocks  # not glued to what was torn
    for k in range(len(lines[1])):
        torn = bytearray(text)
        torn[len(lines[0]) + 1 + k] ^= 1
        (tmp_path / "journal").write_bytes(torn)
        assert blocks[1] not in journal.read()
        assert set(journal.read()) <= set(blocks)
    journal.close()
    other = Journal(tmp_path / "journal", "another job")
    assert other.read() == []
    other.close()


DIGEST = "0123456789abcdef" * 2


def test_a_journal_may_lie_about_what_blocks_there_are(tmp_path):
    places = {"x": (0, 100, BLOCK + 5), "y": (0, BLOCK + 105, 7), "z": (1, 8, 0)}
    blocks = Blocks(places, 2)
    real = [(0, 100, BLOCK), (0, BLOCK + 100, 5), (0, BLOCK + 105, 7)]
    every = [Block(*place, DIGEST) for place in real]
    assert blocks.split(every) == every
    lies = [(0, 0, 100), (0, 100, 7), (1, 8, 0), (1, 8, 4), (2, 0, 4), (-1, 100, BLOCK),
            (0, BLOCK + 100, 12), (0, 101, BLOCK - 1), (0, 10**12, 5), (0, -1, 10**30)]  # fmt: skip
    assert not blocks.split([Block(*place, DIGEST) for place in lies])
    assert not blocks.split([Block(*real[0], text) for text in ("", "x" * 32, DIGEST + "0")])
    digests = [DIGEST, "1" * 32, "2" * 32]
    together = Block(0, 100, BLOCK + 12, "".join(digests))
    assert blocks.split([Block(*real[1], "3" * 32), together]) == [
        Block(*real[1], digests[1]), Block(*real[0], digests[0]), Block(*real[2], digests[2])
    ]  # fmt: skip
    assert not blocks.split([together._replace(checksum=DIGEST * 2)])


def test_a_later_line_takes_the_place_of_its_own_blocks_alone(tmp_path):
    places = {"x": (0, 100, 3 * BLOCK)}
    journal = Journal(tmp_path / "journal", "job")
    journal.add([Block(0, 100, 3 * BLOCK, DIGEST * 3), Block(0, 100, BLOCK, "1" * 32)])
    found = Blocks(places, 1).split(journal.read())
    journal.close()
    assert [block.start for block in found] == [100, 100 + BLOCK, 100 + 2 * BLOCK]
    assert [block.checksum for block in found] == ["1" * 32, DIGEST, DIGEST]


def test_blocks_are_listed_together_and_split_again():
    places = {"x": (0, 100, 3 * BLOCK + 5), "y": (0, 3 * BLOCK + 105, 7)}
    first, second = Blocks(places, 1), Blocks(places, 1)
    data = np.random.default_rng(0).integers(0, 256, 3 * BLOCK + 12, np.uint8)
    first.sum(0, 100, data.data)
    (run,) = first.written(0, 100, 100 + len(data))
    line = first.listed(run)
    assert line.nbytes == len(data)
    blocks = second.split([line])
    assert [block.nbytes for block in blocks] == [BLOCK, BLOCK, BLOCK, 5, 7]
    for block in blocks:
        start = block.start - 100
        assert block.checksum == checksum(data[start : start + block.nbytes].data)
    second.complete(blocks)
    assert second.checksums() == first.checksums()
    assert not second.checksums()[1]


patient = settings(suppress_health_check=[HealthCheck.too_slow])


@patient
@given(st.binary(min_size=1, max_size=300), st.data())
def test_a_block_in_parts_has_the_checksum_of_the_whole(content, data):
    edges = sorted(data.draw(st.sets(st.integers(1, len(content)))) | {0, len(content)})
    parts = list(pairwise(edges))
    block = OpenBlock(len(content))
    order = data.draw(st.permutations(parts))
    found = [block.add(start, memoryview(content)[start:stop]) for start, stop in order]
    assert found[-1] == bytes.fromhex(checksum(content))
    assert not any(found[:-1])


@patient
@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.data())
def test_what_is_unfinished_is_all_but_the_finished_blocks(sizes, data):
    unit = BLOCK // 10
    places, start = {}, 64
    for k, size in enumerate(sizes):
        places[f"t{k}"] = (0, start, size * unit)
        start += size * unit
    blocks = Blocks(places, 1)
    every = [Block(0, at, min(BLOCK, first + n - at), DIGEST) for _, first, n in places.values()
             for at in range(first, first + n, BLOCK)]  # fmt: skip
    done = data.draw(st.lists(st.sampled_from(every), unique=True)) if every else []
    blocks.restore(done)
    low, high = sorted(data.draw(st.tuples(st.integers(64, start), st.integers(64, start))))
    left = list(blocks.unfinished(0, low, high))
    edges = sorted({low, high, *(e for b in every for e in (b.start, b.start + b.nbytes)
                                 if low < e < high)})  # fmt: skip
    finished = {(b.start, b.start + b.nbytes) for b in done}
    for first, last in pairwise(edges):
        inside = any(a <= first and last <= b for a, b in left)
        of_done = any(a <= first and last <= b for a, b in finished)
        assert inside != of_done


def test_the_record_holds_what_the_bytes_follow_from(runs, tmp_path):
    ws.merge(runs, WEIGHTS, tmp_path / "out")
    record = json.loads((tmp_path / "out/wspace.json").read_text())
    file = tmp_path / "runs/0/model.safetensors"
    length = int.from_bytes(file.read_bytes()[:8], "little")
    assert record["inputs"][str(file)] == {
        "size": file.stat().st_size,
        "mtime_ns": file.stat().st_mtime_ns,
        "digest": checksum(file.read_bytes()[: 8 + length]),
    }
    assert str(tmp_path / "runs/0/config.json") in record["inputs"]


def test_the_record_names_inputs_as_they_were_given(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    zoo = ws.open_zoo("runs/*", base="base")
    with pytest.raises(StoppedError):
        ws.merge(zoo, WEIGHTS, "out", memory=MEMORY, progress=stop_at(0.6))
    (tmp_path / "elsewhere").mkdir()
    for name in ("runs", "base"):
        (tmp_path / "elsewhere" / name).symlink_to(tmp_path / name)
    monkeypatch.chdir(tmp_path / "elsewhere")  # the same files by the same names
    said = []
    ws.merge(zoo, WEIGHTS, tmp_path / "out", memory=MEMORY, note=said.append)
    assert "going on from" in said[0]
    text = (tmp_path / "out/wspace.json").read_text()
    assert str(tmp_path) not in text
    assert set(json.loads(text)["inputs"]) == {
        f"{folder}/{file}"
        for folder in ("base", "runs/0", "runs/1")
        for file in ("model.safetensors", "config.json")
        if (tmp_path / folder / file).exists()
    }


def test_other_files_of_the_same_names_are_told_apart(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    zoo = ws.open_zoo("runs/*", base="base")
    with pytest.raises(StoppedError):
        ws.merge(zoo, WEIGHTS, tmp_path / "out", memory=MEMORY, progress=stop_at(0.6))
    shutil.copytree("runs", "elsewhere/runs", copy_function=shutil.copyfile)
    shutil.copytree("base", "elsewhere/base")
    monkeypatch.chdir(tmp_path / "elsewhere")
    zoo = ws.open_zoo("runs/*", base="base")
    with pytest.raises(OutputError, match=r"runs/0/model\.safetensors has changed"):
        ws.merge(zoo, WEIGHTS, tmp_path / "out", memory=MEMORY)
