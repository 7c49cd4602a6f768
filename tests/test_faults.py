"""Disks that fail: the outcome is the right output or a clear error, never a wrong output."""

import errno
import fcntl
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

import wspace as ws
from tests.zoos import zoo_on_disk
from wspace.errors import WspaceError
from wspace.storage import local, writing
from wspace.storage.residence import drop

ERRORS = (errno.EIO, errno.ENOSPC, errno.EINTR, errno.EDQUOT)
SHARE = 0.02
"""Of the calls that fail; several times as many do less than was asked."""

ROUNDS = 60
"""At most; which call fails depends on which thread comes first."""

MOST = 40
"""Runs of one command, before it is said never to end."""


class Faults:
    """Stands in for calls of ``os``: some fail, and some read or write a part."""

    def __init__(self, seed, patch):
        self._draw = random.Random(seed)
        self.counts = Counter()
        self._calls = {name: getattr(os, name) for name in ("preadv", "pread", "pwrite")}
        patch.setattr(os, "preadv", self._preadv)
        patch.setattr(os, "pread", self._pread)
        patch.setattr(os, "pwrite", self._pwrite)
        for name in ("fsync", "fdatasync", "posix_fallocate", "ftruncate"):
            self._calls[name] = getattr(os, name)
            patch.setattr(os, name, self._failing(name))
        rename = Path.rename
        patch.setattr(Path, "rename", lambda path, to: (self._fail("rename"), rename(path, to))[1])

    def _fail(self, name):
        if self._draw.random() < SHARE:
            number = self._draw.choice(ERRORS)
            self.counts[name] += 1
            raise OSError(number, os.strerror(number))

    def _failing(self, name):
        def call(*arguments):
            self._fail(name)
            return self._calls[name](*arguments)

        return call

    def _short(self, n):
        if self._draw.random() < 5 * SHARE and n > 1:
            self.counts["short"] += 1
            return self._draw.randrange(1, n)
        return n

    def _preadv(self, descriptor, buffers, position):
        self._fail("preadv")
        self.counts["direct"] += bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        (buffer,) = buffers
        return self._calls["preadv"](descriptor, [buffer[: self._short(len(buffer))]], position)

    def _pread(self, descriptor, n, position):
        self._fail("pread")
        return self._calls["pread"](descriptor, self._short(n), position)

    def _pwrite(self, descriptor, data, position):
        self._fail("pwrite")
        return self._calls["pwrite"](descriptor, data[: self._short(len(data))], position)


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
    with monkeypatch.context() as patch:
        faults = Faults(seed, patch)
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
    assert faults.counts["short"] >= 5, faults.counts
    assert (faults.counts["direct"] >= 50) == past_cache, faults.counts
    assert any("going on from" in line for line in said)
    assert {p.name for p in tmp_path.iterdir()} == {"zoo", "expected"}
