"""The choice of a device, by a model of what a pass takes on each."""

import argparse

import pytest

import wspace as ws
from tests.zoos import zoo_on_disk
from wspace import placement
from wspace.cli.options import device_of
from wspace.placement import Found, Job, compare, mixes_job, products_job

H200 = Found("NVIDIA H200", "hopper")
CARD = Found("NVIDIA GeForce RTX 4090", "consumer")


@pytest.mark.parametrize(
    ("job", "n_processors", "gpu", "name"),
    [
        # a small zoo: a GPU would not have started yet
        (Job(1e9, flops=1e9), 2, H200, "cpu"),
        # 8 models of 14.5 GB mixed from host memory: many processors beat the link, two do not
        (Job(116e9, 14.5e9), 96, H200, "cpu"),
        (Job(116e9, 14.5e9), 2, CARD, "cpu"),
        (Job(464e9, 14.5e9), 2, H200, "cuda"),
        # 64 models multiplied with each other: arithmetic decides
        (Job(900e9, flops=64 * 65 * 7e9), 16, H200, "cuda"),
        # of float64, which consumers' cards have little of
        (Job(14e9, flops=64 * 65 * 0.1e9), 32, CARD, "cpu"),
        (Job(1e15, flops=1e20), 1, None, "cpu"),
    ],
)
def test_the_faster_is_chosen(job, n_processors, gpu, name):
    choice = compare(job, n_processors, gpu)
    assert choice.name == name
    if gpu is None:
        assert choice.reason is None
    else:
        assert choice.reason.startswith(f"device {name}: estimated ")
        assert gpu.chip in choice.reason
        assert "--device" in choice.reason


def test_jobs_are_counted_from_headers(tmp_path):
    zoo_on_disk(tmp_path, n=3)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    read = 4 * 4 * zoo.numel
    assert products_job(zoo, 3) == Job(read, 0, 12 * zoo.numel)
    assert mixes_job(zoo, 2, 5) == Job(read / 2, read * 5 / 4, 0)


def test_a_device_that_is_named_is_not_questioned(monkeypatch):
    monkeypatch.setattr(placement, "_may_have_gpu", lambda: True)
    monkeypatch.setattr(placement, "_found", lambda: H200)
    for name in ("cpu", "cuda:1"):
        assert placement.choose(name, Job(1e15)) == placement.Choice(name)


@pytest.mark.parametrize("quiet", [False, True])
def test_the_command_line_says_why(monkeypatch, capsys, quiet):
    options = argparse.Namespace(device="auto", quiet=quiet)
    monkeypatch.setattr(placement, "_may_have_gpu", lambda: False)
    assert device_of(options, Job(1e15, flops=1e20)) == "cpu"
    assert capsys.readouterr().err == ""  # there was no choice
    monkeypatch.setattr(placement, "_may_have_gpu", lambda: True)
    monkeypatch.setattr(placement, "_found", lambda: H200)
    assert device_of(options, Job(1e12, flops=1e16)) == "cuda"
    said = capsys.readouterr().err
    assert said == "" if quiet else said.startswith("note: device cuda: estimated ")
