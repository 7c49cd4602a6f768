"""The README runs."""

import re
import shlex
from pathlib import Path

import pytest

import wspace as ws
from tests.zoos import save, state
from wspace.cli.main import main, parser
from wspace.lab.settings import CONFIGS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.M | re.S)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What ``python -m bench.zoo`` makes, in small: two groups around a base."""
    base = state(0)
    groups = [state(10, like=base, step=0.1), state(11, like=base, step=0.1)]
    save(tmp_path / "zoo" / "base", base)
    for i in range(4):
        save(tmp_path / "zoo" / f"model-{i}", state(20 + i, like=groups[i % 2], step=0.05))
    labels = "".join(f"model-{i},{i % 2}\n" for i in range(4))
    (tmp_path / "zoo" / "labels.csv").write_text("model,label\n" + labels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_blocks_run(folder):
    blocks = [text for language, text in BLOCKS if language == "python"]
    assert blocks
    for text in blocks:
        names = {}
        exec(compile(text, "README.md", "exec"), names)
        assert names["labels"].tolist() == [0, 1, 0, 1]
    for out in ("mean-0", "mean-1", "soup"):
        assert ws.open_checkpoint(folder / out).numel == names["zoo"].numel


def test_command_lines_run(folder, capsys):
    lines = re.findall(r"^\$ wspace (.+)$", README, re.M)
    assert len(lines) >= 5
    models = sorted(str(path.relative_to(folder)) for path in (folder / "zoo").iterdir())
    for line in lines:
        argv = []
        for word in shlex.split(line):
            if "*" in word:  # what a shell would do
                argv += [model for model in models if Path(model).match(word)]
            else:
                argv.append(word)
        assert main(argv) == 0, capsys.readouterr().err


def test_experiments_that_it_names_exist():
    """They train models, for minutes and more: their words are checked here."""
    lines = re.findall(r"`wspace (experiment [^`]+)`", README)
    assert lines
    for line in lines:
        options = parser().parse_args(shlex.split(line))
        assert (CONFIGS / f"{options.config}.yml").is_file()


def test_ci_runs_the_second_line_as_it_stands():
    lines = [line for _, text in BLOCKS for line in text.splitlines() if line.startswith("python3")]
    first, second = lines
    assert "[experiments]" in first
    assert parser().parse_args(first.split(".venv/bin/wspace ")[1].split()).command == "demo"
    assert second in (ROOT / ".ci" / "run").read_text().splitlines()


def test_names_in_the_readme_exist():
    names = set(re.findall(r"\bws\.(\w+)", README))
    assert len(names) > 15
    assert not [name for name in names if not hasattr(ws, name)]


def test_files_in_the_readme_exist():
    table = README[README.index("## Change it") :]
    paths = re.findall(r"`((?:wkernels|wspace|tests|bench)/[\w/.]+)`", table)
    assert len(paths) >= 6
    for path in paths:
        assert (ROOT / path).exists(), path


def test_it_is_short():
    assert len(README.splitlines()) < 150
