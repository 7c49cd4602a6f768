"""The command line: what it prints where, and that its help, the README and the code agree."""

import csv
import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import wspace as ws
from tests.zoos import zoo_on_disk
from wspace.cli.main import COMMANDS, main, parser

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    zoo_on_disk(root, n=4)
    return root


def arguments(runs, command, *more):
    return [command, *sorted(str(p) for p in runs.glob("run-*")), "--base", f"{runs}/base", *more]


def run(capsys, argv):
    status = main(argv)
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured


def test_inspect(runs, capsys):
    out = run(capsys, arguments(runs, "inspect", "--format", "json")).out
    rows = json.loads(out)
    assert [row["model"] for row in rows] == ["run-0", "run-1", "run-2", "run-3", "base (base)"]
    assert {row["parameters"] for row in rows} == {sum(map(int, (400, 33153, 129, 39000, 1, 1)))}
    table = run(capsys, arguments(runs, "inspect", "--statistics")).out
    assert table.splitlines()[0].split()[-6:] == [
        "norm", "mean", "max_abs", "kurtosis", "non_finite", "changed",
    ]  # fmt: skip
    assert len(table.splitlines()) == 6


def test_distances(runs, capsys):
    zoo = ws.open_zoo(f"{runs}/run-*", base=runs / "base")
    gram = ws.gram(zoo)
    for metric, truth in (
        ("euclidean", ws.distances(gram)),
        ("cosine", ws.cosines(gram)),
        ("l1", ws.pairwise_distances(zoo, metric="l1")),
    ):
        argv = arguments(runs, "distances", "--metric", metric, "--format", "csv")
        rows = list(csv.DictReader(io.StringIO(run(capsys, argv).out)))
        found = [[float(row[name]) for name in zoo.names] for row in rows]
        assert found == truth.tolist()
        if metric == "euclidean":
            assert [float(row["(base)"]) for row in rows] == ws.norms(gram).tolist()


def test_cluster(runs, capsys, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("model,label\n" + "".join(f"{runs}/run-{i},{i % 2}\n" for i in range(4)))
    report = tmp_path / "report"
    argv = arguments(runs, "cluster", "-k", "2", "--labels", str(labels), "--report", str(report))
    captured = run(capsys, argv)
    assert "of the models have the label of their cluster's majority" in captured.err
    written = json.loads((report / "report.json").read_text())
    assert written["models"] == ["run-0", "run-1", "run-2", "run-3"]
    assert torch.tensor(written["gram"]).shape == (4, 4)
    assert 0.5 <= written["majority_accuracy"] <= 1
    for name in ("clusters", "distances", "cosines"):
        assert len((report / f"{name}.csv").read_text().splitlines()) == 5
    for method in ("kmeans", "spectral"):
        argv = arguments(runs, "cluster", "-k", "4", "--method", method, "--format", "json")
        assert {row["cluster"] for row in json.loads(run(capsys, argv).out)} == {0, 1, 2, 3}


def test_merge_several_at_once(runs, capsys, tmp_path):
    outs = [str(tmp_path / "soup"), str(tmp_path / "mixed")]
    argv = arguments(runs, "merge", "--uniform", "--weights", "0.5,0.5,-1,0", "-o", outs[0])
    captured = run(capsys, [*argv, "-o", outs[1], "--dtype", "bfloat16"])
    assert captured.out.split() == outs
    assert re.fullmatch(r"merged 4 models \(.*\) in .* s\n", captured.err)
    zoo = ws.open_zoo(f"{runs}/run-*", base=runs / "base")
    ws.merge(zoo, [[0.25] * 4], tmp_path / "library", dtype="bfloat16")
    soup, library = (load_file(tmp_path / n / "model.safetensors") for n in ("soup", "library"))
    assert all(torch.equal(soup[name], library[name]) for name in library)


def test_quiet_says_nothing(runs, capsys, tmp_path):
    argv = arguments(runs, "merge", "--uniform", "-o", str(tmp_path / "soup"), "--quiet")
    assert run(capsys, argv).err == ""


def test_the_base_among_the_models_stays_out(runs, capsys, tmp_path):
    everything = sorted(str(path) for path in runs.iterdir())
    argv = ["inspect", *everything, "--base", f"{runs}/base", "--format", "json"]
    assert len(json.loads(run(capsys, argv).out)) == 5


def in_process(argv, **settings):
    command = [sys.executable, "-m", "wspace", *argv]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **settings)


def test_a_pipe_gets_results_and_no_progress(runs):
    done = in_process(arguments(runs, "distances", "--format", "csv"))
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.startswith("model,run-0,")


def test_a_terminal_sees_bytes_rate_and_time_left(runs, tmp_path):
    terminal, child = pty.openpty()
    argv = arguments(runs, "merge", "--uniform", "-o", str(tmp_path / "soup"))
    command = [sys.executable, "-m", "wspace", *argv]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(command, stderr=child, stdout=subprocess.PIPE, env=environment, cwd=ROOT):
        os.close(child)
        seen = b""
        try:
            while block := os.read(terminal, 4096):
                seen += block
        except OSError:  # Linux says the terminal is gone by an error
            pass
    os.close(terminal)
    text = seen.decode()
    assert "merge" in text
    assert re.search(r"\d+(\.\d)?/1\.\d \S*MB", text), text  # bytes done / in all
    assert re.search(r"[\d?]+\S* \S*/s|\?", text), text
    assert re.search(r"\d:\d\d:\d\d", text), text


def test_a_closed_pipe_is_no_error(runs):
    argv = " ".join(arguments(runs, "distances", "--format", "csv"))
    script = f"{sys.executable} -m wspace {argv} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() in ("0", "141")
    assert done.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert last.startswith(f"example: wspace {command} ")
    options = parser().parse_args(last.removeprefix("example: wspace ").split())
    assert options.command == command


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_shows_every_command(command):
    assert f"wspace {command} " in (ROOT / "README.md").read_text()


def test_every_command_line_of_the_readme_parses():
    lines = re.findall(r"^(?:\$ )?wspace (.+?)(?:\s+#.*)?$", (ROOT / "README.md").read_text(), re.M)
    assert len(lines) >= 4
    for line in lines:
        options = parser().parse_args(line.split())
        assert options.command in COMMANDS


def test_help_does_not_keep_one_waiting():
    done = in_process(["--help"])
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)
    assert done.stdout.rstrip().splitlines()[-1].startswith("example: wspace ")
