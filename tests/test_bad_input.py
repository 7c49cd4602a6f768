"""Mistakes and hostile files at the command line: one line that says what and where."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

import wspace as ws
from tests.checkpoints import (
    entry,
    header_bytes,
    save_model,
    save_pickle,
    write_index,
    write_safetensors,
)
from wspace.cli.main import main
from wspace.errors import CheckpointError
from wspace.storage.checkpoints import INDEX

X, Y = torch.arange(6.0).view(2, 3), torch.ones(4)
STATE = {"x": X, "y": Y, "steps": torch.tensor([1, 2])}
FOUR_FLOATS = entry(shape=[4], offsets=[0, 16])


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """The current folder, with ``base`` and ``runs/0`` to ``runs/2``."""
    monkeypatch.chdir(tmp_path)
    for path in ["base", "runs/0", "runs/1", "runs/2"]:
        save_model(tmp_path / path, STATE, {"dtype": "float32"})
    return tmp_path


def everything_under(folder):
    return sorted((str(p), p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.rglob("*"))


def run(capsys, arguments):
    """Exit status, stdout and stderr of a command in this process."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        status = stopped.code
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def assert_refused(capsys, folder, arguments, words):
    """One line with these words, status 1, and nothing on the disk that was not there."""
    before = everything_under(folder)
    status, out, err = run(capsys, arguments)
    assert err.startswith("error: "), err
    assert re.search(words, err), err
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert len(err) < 500
    assert (status, out) == (1, "")
    assert everything_under(folder) == before


def changed(folder, **tensors):
    """Write a model's file again with other tensors; None takes one away."""
    kept = {name: tensor for name, tensor in (STATE | tensors).items() if tensor is not None}
    save_model(folder, kept)


def index(folder, weight_map):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    write_index(folder, weight_map)


def cut(file, n_bytes):
    os.truncate(file, file.stat().st_size - n_bytes)


SHARD = "model-00001-of-00001.safetensors"


class Spoiled(NamedTuple):
    """What is done to ``runs/1``, and what every command says of it."""

    spoil: Callable[[Path], object]
    words: str


FILES = {
    "missing tensor": Spoiled(
        lambda model: changed(model, x=None),
        "runs/1 has no tensor 'x', which .* has; leave it out with --exclude 'x'$",
    ),
    "extra tensor": Spoiled(
        lambda model: changed(model, z=Y.clone()),
        "has no tensor 'z', which runs/1 has; leave it out with --exclude 'z'$",
    ),
    "another shape": Spoiled(
        lambda model: changed(model, x=X.T.contiguous()),
        r"tensor 'x' has shape \[3, 2\] in runs/1 and \[2, 3\] in .*; leave it out with --exclude",
    ),
    "integers for floats": Spoiled(
        lambda model: changed(model, y=torch.ones(4, dtype=torch.int32)),
        "tensor 'y' is F32 in runs/0 and I32 in runs/1; leave it out with --exclude 'y'$",
    ),
    "length beyond the file": Spoiled(
        lambda model: write_safetensors(model / "model.safetensors", {}, length=10**6),
        "runs/1/model.safetensors: header length 1000000 does not fit in a file of 10 bytes; ",
    ),
    "cut off": Spoiled(
        lambda model: cut(model / "model.safetensors", 1),
        r"runs/1/model.safetensors: .* lie outside the \d+ bytes of data$",
    ),
    "no safetensors at all": Spoiled(
        lambda model: (model / "model.safetensors").write_bytes(b"<html>not found</html>"),
        "runs/1/model.safetensors: header length .* is cut off or is not safetensors$",
    ),
    "a file of git's large file storage": Spoiled(
        lambda model: (model / "model.safetensors").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"
        ),
        "runs/1/model.safetensors: header length .* is cut off or is not safetensors$",
    ),
    "overlap": Spoiled(
        lambda model: write_safetensors(
            model / "model.safetensors", {"x": entry(), "y": FOUR_FLOATS}, bytes(16)
        ),
        "runs/1/model.safetensors: tensor 'y' overlaps tensor 'x': it starts at byte 0",
    ),
    "duplicate key": Spoiled(
        lambda model: write_safetensors(
            model / "model.safetensors",
            b'{"y": %b, "y": %b}' % ((header_bytes(FOUR_FLOATS),) * 2),
            bytes(16),
        ),
        "runs/1/model.safetensors: header has the key 'y' twice$",
    ),
    "bytes that belong to no tensor": Spoiled(
        lambda model: write_safetensors(model / "model.safetensors", {"y": FOUR_FLOATS}, bytes(17)),
        "tensors end at byte 16 of the data, but the file has 17; ",
    ),
    "name with a line break": Spoiled(
        lambda model: changed(model, **{"a\nb": Y.clone()}),
        r"has no tensor 'a\\nb', which runs/1 has; leave it out with --exclude 'a b'$",
    ),
    "index to a missing file": Spoiled(
        lambda model: index(model, {"x": "model-00002-of-00002.safetensors"}),
        f"runs/1/{INDEX}: shard model-00002-of-00002.safetensors does not exist$",
    ),
    "index out of the folder": Spoiled(
        lambda model: index(model, {"x": "../0/model.safetensors"}),
        f"runs/1/{INDEX}: shard '../0/model.safetensors' is not a file name in this folder$",
    ),
    "index to an absolute path": Spoiled(
        lambda model: index(model, {"x": "/etc/passwd"}),
        f"runs/1/{INDEX}: shard '/etc/passwd' is not a file name in this folder$",
    ),
    "index with a tensor that is not there": Spoiled(
        lambda model: index(model, dict.fromkeys([*STATE, "z"], SHARD)),
        f"runs/1/{INDEX}: tensor 'z' is not in {SHARD}, as the index says$",
    ),
    "index without a tensor": Spoiled(
        lambda model: index(model, {"x": SHARD, "steps": SHARD}),
        f"runs/1/{INDEX}: tensor 'y' is in a shard, but not in the index$",
    ),
    "shard missing": Spoiled(
        lambda model: (model / "model.safetensors").rename(
            model / "model-00002-of-00002.safetensors"
        ),
        "runs/1: shard model-00001-of-00002.safetensors is missing$",
    ),
    "empty folder": Spoiled(
        lambda model: [file.unlink() for file in model.iterdir()],
        "runs/1: expected model.safetensors, .* or pytorch_model.bin; weight files: none$",
    ),
    "no such folder": Spoiled(lambda model: shutil.rmtree(model), "runs/1: no such file or folder"),
}

COMMANDS = {
    "inspect": ["inspect"],
    "statistics": ["inspect", "--statistics"],
    "distances": ["distances"],
    "cluster": ["cluster", "-k", 2, "--report", "report"],
    "merge": ["merge", "--uniform", "-o", "out"],
}
MODELS = ["runs/0", "runs/1", "runs/2", "--base", "base"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", FILES)
def test_every_command_refuses_such_files(zoo, capsys, case, command):
    FILES[case].spoil(zoo / "runs/1")
    assert_refused(capsys, zoo, [*COMMANDS[command], *MODELS], FILES[case].words)


def test_no_command_runs_what_a_pickle_says(zoo, capsys):
    class Attack:
        def __reduce__(self):
            return os.mkdir, ("was-executed",)

    save_pickle(zoo / "attack.bin", {"x": X, "y": Attack()})
    for command in COMMANDS.values():
        words = "^error: attack.bin: torch's weights-only loader refuses it: .* where you trust it$"
        assert_refused(capsys, zoo, [*command, "attack.bin"], words)


OUT = ["-o", "out"]
UNIFORM = ["--uniform", *OUT]
ALL = ["runs/0", "runs/1", "runs/2"]

MISTAKES = {
    # which command
    "no command": ([], "required: COMMAND"),
    "unknown command": (["frobnicate"], "invalid choice: 'frobnicate'"),
    "unknown option": (["inspect", "runs/0", "--frobnicate"], "--frobnicate"),
    "no models": (["inspect"], "required: MODEL"),
    "unknown format": (["inspect", "runs/0", "--format", "xml"], "--format: invalid choice: 'xml'"),
    "unknown metric": (["distances", *ALL, "--metric", "l7"], "--metric: invalid choice: 'l7'"),
    # which models
    "a pattern of nothing": (["merge", "no/*", *UNIFORM], r"no/\*: matches no checkpoint$"),
    "no such model": (["merge", "no", *UNIFORM], "error: no: no such file or folder$"),
    "no such base": (["merge", "runs/0", "--base", "no", *UNIFORM], "error: no: no such file or"),
    "only the base": (
        ["inspect", "base", "--base", "base/"],
        "base/ is the base; give at least one",
    ),
    "a file of another kind": (
        ["inspect", "runs/0/config.json"],
        "expected a folder, or a file end",
    ),
    "a folder of folders": (["inspect", "runs"], "runs: expected model.safetensors"),
    "a pattern of no tensor": (
        ["inspect", "runs/0", "--exclude", "z*"],
        r"'z\*' matches no tensor",
    ),
    "nothing included": (
        ["inspect", "runs/0", "--include", "steps"],
        "no floating-point tensor is",
    ),
    # which weights
    "no weights": (["merge", *ALL, *OUT], "give --uniform or --weights$"),
    "a sum of 0.9": (
        ["merge", *ALL, "--weights", "0.3,0.3,0.3", *OUT],
        r"weights row 0 sums to 0.9000; without a base each row must sum to 1 \(pass base=... or",
    ),
    "a sum of 1.00001": (
        ["merge", *ALL, "--weights", "0.5,0.5,0.00001", *OUT],
        "weights row 0 sums to 1.000010000; without a base",
    ),
    "too few": (["merge", *ALL, "--weights", "0.5,0.5", *OUT], "0.5,0.5: 2 weights for 3 models$"),
    "too many": (["merge", "runs/0", "--weights", "0.5,0.5", *OUT], "2 weights for 1 models$"),
    "words": (
        ["merge", *ALL, "--weights", "a,b,c", *OUT],
        "--weights a,b,c: expected numbers with commas between, such as 0.6,0.4$",
    ),
    "semicolons": (["merge", *ALL, "--weights", "1;0;0", *OUT], "expected numbers with commas"),
    "empty weights": (["merge", *ALL, "--weights", "", *OUT], "expected numbers with commas"),
    "NaN weight": (
        ["merge", *ALL, "--weights", "nan,0,1", *OUT],
        "has nan for model 0; weights must",
    ),
    "infinite weight": (
        ["merge", *ALL, "--weights", "1e999,0,1", *OUT],
        "has inf for model 0; wei",
    ),
    "two mixes, one output": (
        ["merge", *ALL, "--uniform", "--weights", "1,0,0", *OUT],
        "2 mixes and 1 outputs: give -o once for each mix$",
    ),
    # which output
    "no output": (["merge", *ALL, "--uniform"], "required: -o/--output"),
    "output inside an input": (
        ["merge", *ALL, "--uniform", "-o", "runs/1/out"],
        "runs/1/out: lies inside the input runs/1; choose another place$",
    ),
    "output inside the base": (
        ["merge", *ALL, "--base", "base", "--uniform", "-o", "base/out"],
        "base/out: lies inside the input base; choose another place$",
    ),
    "output is an input": (["merge", *ALL, "--uniform", "-o", "runs/1"], "runs/1: exists; choose"),
    "output exists": (
        ["merge", "runs/0", "--uniform", "-o", "base"],
        "base: exists; choose another",
    ),
    "output below a file": (
        ["merge", *ALL, "--uniform", "-o", "base/config.json/out"],
        "base/config.json/out: (.*config.json cannot be written to|lies inside)",
    ),
    "output twice": (
        ["merge", *ALL, "--uniform", "--weights", "1,0,0", *OUT, "-o", "./out"],
        "two outputs have the same path$",
    ),
    "output inside an output": (
        ["merge", *ALL, "--uniform", "--weights", "1,0,0", *OUT, "-o", "out/b"],
        "out/b: lies inside another output$",
    ),
    "report exists": (
        ["cluster", *ALL, "-k", 1, "--report", "base"],
        "base: exists; choose another name, or remove it first$",
    ),
    "dtype of integers": (
        ["merge", *ALL, *UNIFORM, "--dtype", "int8"],
        "dtype 'int8': expected float",
    ),
    # which machine
    "unknown device": (
        ["merge", *ALL, *UNIFORM, "--device", "tpu"],
        "device 'tpu': expected auto, cpu, cuda, cuda:N, or cuda:N,cuda:M for several$",
    ),
    "device without a number": (
        ["distances", *ALL, "--device", "cuda:x"],
        "device 'cuda:x': expect",
    ),
    "memory in words": (
        ["merge", *ALL, *UNIFORM, "--memory", "lots"],
        "size 'lots': expected bytes, such as 2GiB, 500MB or 1000000$",
    ),
    "negative memory": (["merge", *ALL, *UNIFORM, "--memory=-1GB"], "size '-1GB': expected bytes"),
    "no memory": (["merge", *ALL, *UNIFORM, "--memory", "0"], "size '0': expected bytes"),
    "memory beyond numbers": (
        ["merge", *ALL, *UNIFORM, "--memory", "9" * 400],
        "size '999.*: expec",
    ),
    "memory too small to merge": (
        ["merge", *ALL, *UNIFORM, "--memory", "1000"],
        r"merge: a memory budget of 1000 bytes is too small; one chunk .* needs \d+ bytes$",
    ),
    "memory too small for distances": (
        ["distances", *ALL, "--memory", "1000"],
        "memory budget of [0-9]+",
    ),
    "shards of nothing": (["merge", *ALL, *UNIFORM, "--max-shard-size", "0"], "size '0': expected"),
    # how many clusters
    "no k": (["cluster", *ALL], "required: -k"),
    "k is a word": (["cluster", *ALL, "-k", "two"], "-k: invalid int value: 'two'"),
    "k is 0": (["cluster", *ALL, "-k", 0], "-k is 0, but there are 3 models$"),
    "k is negative": (["cluster", *ALL, "-k=-1"], "-k is -1, but there are 3 models$"),
    "k is too large": (["cluster", *ALL, "-k", 4], "-k is 4, but there are 3 models$"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line(zoo, capsys, case):
    arguments, words = MISTAKES[case]
    assert_refused(capsys, zoo, arguments, words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "inspect"])
def test_no_gpu_where_one_is_asked_for(zoo, capsys, command, device):
    words = f"device '{device}': torch finds no GPU; use --device cpu$"
    assert_refused(capsys, zoo, [*COMMANDS[command], *MODELS, "--device", device], words)


def test_a_full_disk_is_refused_before_the_work(zoo, capsys, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    words = "out: the output takes 56 bytes, and the disk of .* has 10 free$"
    assert_refused(capsys, zoo, ["merge", *MODELS, *UNIFORM], words)


LABELS = {
    "no file": (None, "No such file or directory: 'labels.csv'"),
    "empty": (b"", "labels.csv: expected the columns model and label, found none$"),
    "other columns": (
        b"name,kind\n0,a\n",
        "expected the columns model and label, found name, kind$",
    ),
    "one column": (b"model\n0\n", "expected the columns model and label, found model$"),
    "a model without a label": (b"model,label\n0,a\n1,b\n", "labels.csv: no label for '2'$"),
    "a row cut off": (b"model,label\n0,a\n1\n2,b\n", "labels.csv: no label for '1'$"),
    "not UTF-8": (
        b"model,label\n0,\xff\n1,a\n2,b\n",
        "labels.csv: not a CSV file: 'utf-8' codec can't decode byte 0xff",
    ),
    "a NUL": (b"model,label\n0,\0\n1,a\n", "labels.csv: no label for '2'$"),
}


@pytest.mark.parametrize("case", LABELS)
def test_labels_that_cannot_be_used(zoo, capsys, case):
    content, words = LABELS[case]
    if content is not None:
        (zoo / "labels.csv").write_bytes(content)
    arguments = ["cluster", *ALL, "-k", 2, "--labels", "labels.csv", "--report", "report"]
    assert_refused(capsys, zoo, arguments, words)


NON_FINITE = {"NaN": float("nan"), "Inf": float("inf"), "negative Inf": -float("inf")}


@pytest.mark.parametrize("value", NON_FINITE)
@pytest.mark.parametrize("command", ["distances", "cluster", "merge"])
@pytest.mark.parametrize("model", ["runs/1", "base"])
def test_non_finite_inputs_are_named(zoo, capsys, value, command, model):
    y = Y.clone()
    y[2] = NON_FINITE[value]
    changed(zoo / model, y=y)
    words = (
        f"{model}/model.safetensors: tensor 'y' has NaN or Inf; allow it with --allow-non-finite, "
        "or leave it out with --exclude 'y'$"
    )
    assert_refused(capsys, zoo, [*COMMANDS[command], *MODELS], words)
    status, _, _ = run(capsys, [*COMMANDS[command], *MODELS, "--exclude", "y"])
    assert status == 0


@pytest.mark.parametrize("value", NON_FINITE)
def test_non_finite_inputs_pass_where_they_are_allowed(zoo, capsys, value):
    y = Y.clone()
    y[2] = NON_FINITE[value]
    changed(zoo / "runs/1", y=y)
    status, out, err = run(capsys, ["merge", *ALL, *UNIFORM, "--allow-non-finite", "--quiet"])
    assert (status, out, err) == (0, "out\n", "")
    merged = load_file(zoo / "out/model.safetensors")
    assert merged["y"].isfinite().tolist() == [True, True, False, True]
    assert torch.allclose(merged["x"], X)


def test_a_result_beyond_float16_is_refused(zoo, capsys):
    changed(zoo / "runs/0", x=X * 1e5)
    words = (
        r"^error: the mix exceeds the range of float16 in tensor .*'x'.*; choose a wider --dtype"
    )
    assert_refused(capsys, zoo, ["merge", *ALL, *UNIFORM, "--dtype", "float16"], words)
    status, _, _ = run(capsys, ["merge", *ALL, *UNIFORM, "--dtype", "bfloat16"])
    assert status == 0


def test_weights_that_overflow_float32_are_refused(zoo, capsys):
    changed(zoo / "runs/0", x=X * 1e20)
    words = "the mix exceeds the range of float32 in tensor"
    arguments = ["merge", *ALL, "--base", "base", "--weights", "1e30,0,0", *OUT]
    assert_refused(capsys, zoo, arguments, words)


def test_integers_that_differ_are_refused_in_a_merge_only(zoo, capsys):
    changed(zoo / "runs/1", steps=torch.tensor([1, 3]))
    words = (
        r"tensor 'steps' \(I64\) differs between runs/0 and runs/1 and cannot be averaged; "
        "leave it out with --exclude 'steps'$"
    )
    assert_refused(capsys, zoo, ["merge", *MODELS, *UNIFORM], words)
    status, _, err = run(capsys, ["merge", *MODELS, *UNIFORM, "--exclude", "steps"])
    assert status == 0
    assert "left out steps" in err
    assert load_file(zoo / "out/model.safetensors").keys() == {"x", "y"}
    assert run(capsys, ["distances", *MODELS])[0] == 0


@pytest.mark.parametrize("last", [0, 2**22 - 1], ids=["first byte", "last byte"])
def test_integers_are_compared_to_the_last_byte(zoo, capsys, last):
    whole = torch.zeros(2**22 + 5, dtype=torch.uint8)  # more than one block
    other = whole.clone()
    other[last + 5 if last else 0] = 1
    changed(zoo / "runs/0", steps=whole)
    changed(zoo / "runs/1", steps=whole)
    changed(zoo / "runs/2", steps=other)
    words = "tensor 'steps' (.*) differs between runs/0 and runs/2"
    assert_refused(capsys, zoo, ["merge", *ALL, *UNIFORM], words)


@pytest.mark.parametrize("name", ["x", "steps"])
def test_a_file_cut_off_after_it_was_opened(zoo, name):
    opened = ws.open_zoo([zoo / "runs/0", zoo / "runs/1"])
    file = zoo / "runs/1/model.safetensors"
    record = opened.members[1].find(name).record
    with file.open("r+b") as handle:
        handle.truncate(record.start + record.nbytes - 1)
    before = everything_under(zoo)
    words = "runs/1/model.safetensors: ends at byte .* the file became shorter since its header"
    with pytest.raises(CheckpointError, match=words):
        ws.merge(opened, [0.5, 0.5], zoo / "out")
    assert everything_under(zoo) == before


def test_a_file_that_went_away_after_it_was_opened(zoo):
    opened = ws.open_zoo([zoo / "runs/0", zoo / "runs/1"])
    (zoo / "runs/1/model.safetensors").unlink()
    before = everything_under(zoo)
    words = "runs/1/model.safetensors: cannot be read: No such file or directory"
    with pytest.raises(CheckpointError, match=words):
        ws.merge(opened, [0.5, 0.5], zoo / "out")
    with pytest.raises(CheckpointError, match=words):
        ws.gram(opened)
    assert everything_under(zoo) == before


@pytest.mark.parametrize("models", [["runs/0"], ["runs/0", "runs/0"], ["runs/*"]], ids=str)
@pytest.mark.parametrize("base", [[], ["--base", "base"]], ids=["without a base", "with a base"])
@pytest.mark.parametrize("command", COMMANDS)
def test_one_model_or_the_same_twice_is_enough(zoo, capsys, command, models, base):
    arguments = [*COMMANDS[command], *models, *base]
    if command == "cluster":
        arguments[arguments.index(2)] = 1
    status, out, _ = run(capsys, arguments)
    assert status == 0
    assert out
    if command == "merge":
        assert torch.equal(load_file(zoo / "out/model.safetensors")["x"], X)


FRESH = os.environ | {
    "PYTHONPATH": str(Path(__file__).parent.parent),
    "PYTHONIOENCODING": "utf-8:strict",
}


def test_labels_of_a_spreadsheet_are_read(zoo, capsys):
    (zoo / "labels.csv").write_text("label,model\na,runs/0/\nb,1\na,2\n", encoding="utf-8-sig")
    status, out, _ = run(
        capsys, ["cluster", *ALL, "-k", 1, "--labels", "labels.csv", "--format", "json"]
    )
    assert status == 0
    assert [row["label"] for row in json.loads(out)] == ["a", "b", "a"]


def test_a_model_whose_name_is_not_utf_8_can_be_merged(zoo):
    name = os.fsdecode(b"caf\xe9")
    save_model(zoo / name, STATE)
    done = subprocess.run(
        [sys.executable, "-m", "wspace", "merge", name, "--uniform", "-o", name + "-out"],
        capture_output=True, env=FRESH,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"caf\xe9-out\n"
    assert json.loads((zoo / (name + "-out") / "wspace.json").read_text())["made"]["models"] == [
        name
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["merge", "no/*", *UNIFORM], r"^error: no/\*: matches no checkpoint$"), ([], "COMMAND")],
    ids=["refusal", "usage"],
)
def test_a_fresh_process_says_the_same(zoo, arguments, words):
    done = subprocess.run(
        [sys.executable, "-m", "wspace", *arguments], capture_output=True, text=True,
        env=FRESH,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(words, done.stderr)
    assert len(done.stderr.splitlines()) == 1


def test_interrupting_a_command_before_anything_is_finished_leaves_nothing(
    zoo, capsys, monkeypatch
):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    before = everything_under(zoo)
    monkeypatch.setattr(os, "preadv", interrupt)
    status, out, err = run(capsys, ["merge", *MODELS, *UNIFORM])
    words = "interrupted; the same command goes on from what is finished, --restart starts over\n"
    assert (status, out, err) == (130, "", words)
    assert everything_under(zoo) == before
