"""Disks that fail: the outcome is the right output or a clear error, never a wrong output."""

import random
import shutil
from collections import Counter, defaultdict

import pytest

import wspace as ws
from bench.faults import FLIPS, FOUND, REFUSED, RIGHT, UNNOTICED, UNSEEN, WRONG, Bench, power
from bench.faulty import Faults
from tests.zoos import zoo_on_disk
from wspace.errors import WspaceError
from wspace.storage import local, partial, writing
from wspace.storage.files import OutputFile
from wspace.storage.partial import flush
from wspace.storage.residence import drop

ROUNDS = 60
"""At most; which call fails depends on which thread comes first."""

MOST = 40
"""Runs of one command, before it is said never to end."""


def leave_the_cache(folder):
    for path in folder.glob("*/*.safetensors"):
        with path.open("rb") as file:
            drop(file.fileno())


@pytest.mark.parametrize(
    ("seed", "past_cache"), [*((seed, False) for seed in range(4)), (4, True), (5, True)]
)
def test_the_right_output_or_a_clear_error(tmp_path, monkeypatch, seed, past_cache):
    monkeypatch.setattr(writing, "COMMIT_SECONDS", 0)
    if past_cache:
        monkeypatch.setattr(local, "SHARE", 0)
    zoo_on_disk(tmp_path / "zoo", n=2)
    zoo = ws.open_zoo(f"{tmp_path}/zoo/run-*", base=tmp_path / "zoo/base")
    options = {"memory": "3MiB", "max_shard_size": "200KB"}
    (expected,) = ws.merge(zoo, [0.3, 0.7], tmp_path / "expected", **options)
    shards = {p.name: p.read_bytes() for p in expected.glob("*.safetensors")}
    out, outcomes, said = tmp_path / "out", Counter(), []
    with Faults(seed) as faults:
        for _ in range(ROUNDS):
            enough = outcomes["error"] >= 5 and outcomes["right"] >= 12
            if enough and any("going on from" in line for line in said):
                break
            for _ in range(MOST):
                if past_cache:
                    leave_the_cache(tmp_path / "zoo")
                try:
                    ws.merge(zoo, [0.3, 0.7], out, note=said.append, **options)
                    outcomes["right"] += 1
                    break
                except WspaceError as error:
                    assert str(out) in str(error) or "run-" in str(error) or "base" in str(error)
                    outcomes["error"] += 1
                    if out.exists():  # the name was given, and its flush failed
                        break
            assert {p.name: p.read_bytes() for p in out.glob("*.safetensors")} == shards
            assert (out / "wspace.json").is_file()
            shutil.rmtree(out)
    assert outcomes["error"] >= 5, outcomes
    assert outcomes["right"] >= 3, outcomes
    short = sum(n for name, n in faults.counts.items() if name.endswith("short"))
    assert short >= 5, faults.counts
    assert (faults.counts["direct"] >= 50) == past_cache, faults.counts
    assert any("going on from" in line for line in said)
    assert {p.name for p in tmp_path.iterdir()} == {"zoo", "expected"}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "COMMIT_SECONDS", 0)
    return Bench(tmp_path)


EXPECTED = {
    "journal of an unfinished output": {RIGHT},
    "bytes of an unfinished output": {RIGHT},
    "fingerprint of an unfinished output": {RIGHT, REFUSED},
    "writes": {RIGHT, FOUND},
    "any file of an output": {FOUND},
    "header of an input": {RIGHT, REFUSED},
    "input that a program writes to while the merge runs": {REFUSED},
    "weights of an input": {UNNOTICED, REFUSED},
    "weights of an input while the merge runs": {UNNOTICED, REFUSED},
}


@pytest.mark.parametrize("place", FLIPS)
def test_a_flipped_bit_is_noticed_where_it_can_be(bench, place):
    assert (UNNOTICED in EXPECTED[place]) == (place in UNSEEN)
    for seed in range(6):
        assert FLIPS[place](bench, random.Random(seed)) in EXPECTED[place], seed
        bench.clear()


@pytest.mark.parametrize("resumed", [False, True], ids=["anew", "resumed"])
@pytest.mark.parametrize("seed", range(3))
def test_when_power_is_lost_there_is_nothing_or_everything(bench, seed, resumed):
    counts = defaultdict(Counter)
    power(bench, random.Random(seed), counts, resumed, share=0.4)
    assert sum(sum(outcomes.values()) for outcomes in counts.values()) >= 5
    assert not any(outcomes[WRONG] for outcomes in counts.values()), counts


def flush_all_but(*names):
    return lambda path: None if path.name in names else flush(path)


NEGLIGENCES = {
    "weights": (OutputFile, "sync", lambda file: None),
    "small files": (writing, "flush", lambda path: None),
    "names in the output": (partial, "flush", flush_all_but("output")),
    "the output's name": (partial, "flush", flush_all_but("new")),
    "the name of its folder": (partial, "flush", flush_all_but("disk")),
}


@pytest.mark.parametrize("negligence", NEGLIGENCES)
def test_power_that_is_lost_finds_what_was_not_synced(bench, monkeypatch, negligence):
    monkeypatch.setattr(*NEGLIGENCES[negligence])
    counts = defaultdict(Counter)
    power(bench, random.Random(0), counts, False, share=0.0)
    assert counts["after the end"][WRONG]
