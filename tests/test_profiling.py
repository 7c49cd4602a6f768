"""The profile of a merge adds up, and names what held up the rest."""

import os
import re
import time

import pytest

import wspace as ws
from tests.zoos import zoo_on_disk
from wspace import sinks
from wspace.cli.main import main
from wspace.profiling import (
    CHECKSUM,
    FLUSH,
    KERNELS,
    PASS,
    READ,
    READS,
    TAKEN,
    WRITE,
    WRITES,
    Profile,
    profiled,
)
from wspace.storage import local, reading, writing
from wspace.storage.residence import drop


@pytest.fixture
def zoo(tmp_path):
    zoo_on_disk(tmp_path, n=2)
    return ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")


@pytest.mark.parametrize("by_kernels", [True, False])
def test_bytes_and_seconds_add_up(zoo, tmp_path, monkeypatch, by_kernels):
    if not by_kernels:
        monkeypatch.setattr(sinks, "digest_function", lambda: 0)
    with profiled() as profile:
        ws.merge(zoo, [0.5, 0.5], tmp_path / "out", memory="4MiB")
    assert profile.nbytes[READ] == 3 * 4 * zoo.numel
    summed = profile.nbytes[CHECKSUM] + profile.nbytes[TAKEN]
    assert profile.nbytes[WRITE] == summed == 4 * zoo.numel
    if not by_kernels:
        assert profile.nbytes[CHECKSUM] == summed
        assert profile.seconds[CHECKSUM] > 0
    assert sum(profile.parts.values()) == pytest.approx(profile.elapsed)
    for name in (READ, WRITE, PASS, FLUSH):
        assert profile.seconds[name] > 0, name


def slowed(function, seconds):
    def slow(*arguments):
        time.sleep(seconds)
        return function(*arguments)

    return slow


def test_what_is_slow_is_the_bottleneck(zoo, tmp_path, monkeypatch):
    def bottleneck(out):
        with profiled() as profile:
            ws.merge(zoo, [0.5, 0.5], tmp_path / out, memory="4MiB")
        return profile.bottleneck

    bottleneck("warm")  # kernels may have to be compiled
    with monkeypatch.context() as patch:
        patch.setattr(reading, "_fill", slowed(reading._fill, 1))
        assert bottleneck("a") == "reading"
    with monkeypatch.context() as patch:
        slow = slowed(writing.CheckpointWriter._write, 1)  # headers are the start
        patch.setattr(writing.CheckpointWriter, "_write", slow)
        assert bottleneck("b") == "writing"


def test_nothing_is_measured_outside(zoo, tmp_path):
    with profiled() as profile:
        pass
    ws.merge(zoo, [0.5, 0.5], tmp_path / "out")
    assert not profile.seconds


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({PASS: 5.0, READS: 1.0, WRITES: 1.0}, "compute"),
        ({PASS: 5.0, READS: 3.0, WRITES: 1.0}, "reading"),
        ({PASS: 5.0, READS: 1.0, WRITES: 1.0, FLUSH: 3.0}, "writing"),
        ({PASS: 1.0}, "starting"),
        ({PASS: 5.0, KERNELS: 4.0}, "starting"),
    ],
)
def test_the_bottleneck_is_the_largest_part(seconds, expected):
    profile = Profile()
    profile.elapsed = 6.0
    for name, value in seconds.items():
        profile.add(name, value, 0)
    assert profile.bottleneck == expected


def test_the_command_prints_it(zoo, tmp_path, capsys):
    models = [str(tmp_path / f"run-{i}") for i in range(2)]
    argv = ["merge", *models, "--uniform", "-o", str(tmp_path / "out"), "--profile", "--quiet"]
    assert main(argv) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'out'}\n"
    lines = said.err.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["read", "checksum", "write"]
    assert re.fullmatch(
        r"checksum: 0 bytes, 0.00 s of its threads; of .* while computing", lines[1]
    )
    assert re.search(r"s in all: compute .* s, wait for reads .* s, wait for writes", lines[3])
    assert re.fullmatch("bottleneck: (compute|reading|writing|starting)", lines[4])


def test_it_says_what_was_read_past_the_page_cache(zoo, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(local, "SHARE", 0)
    for path in tmp_path.glob("*/*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            drop(file.fileno())
    argv = ["merge", str(tmp_path / "run-*"), "--uniform", "-o", str(tmp_path / "out"), "--profile"]
    assert main([*argv, "--quiet"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("read: ")]
    nbytes = line.removeprefix("read: ").split(",")[0]
    assert line.endswith(f"/s each; {nbytes} of it past the page cache")
