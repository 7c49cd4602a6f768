"""Cold files and a disk: reader, writer and merge against dd: ``python -m bench.disk ZOO WORK``.

In turns, in one run, on the same files, which have left the page cache before each of them:

    dd read      ``dd iflag=direct bs=8M`` of every shard of the models, one after the other
    reader       the stream of chunks that a merge reads, and nothing done with them
    dd write     ``dd oflag=direct bs=8M conv=fsync`` of as many bytes as one output has
    writer       a checkpoint of that size, with checksums and journal, flushed and published
    merge        the average of the models, whole: opened, read, computed, written, published
    through      the same through the page cache, as is done where the zoo fits into it
    warm         the same, after a run through the cache

All but the last two are told that the zoo exceeds the cache (``wspace.storage.local.SHARE``), as
one of more than half of the memory would; how much the cache grew is counted. Ratios are formed
within each turn; the file in ``bench/results`` has the medians, and all seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import wspace
from bench import limits
from wspace.devices import Cpu, allocate
from wspace.jobs import finish, plan_mixes
from wspace.merging import needed
from wspace.profiling import DIRECT, READ, Profile, profiled
from wspace.storage import local
from wspace.storage.fingerprints import fingerprint
from wspace.storage.outputs import OutputTensor
from wspace.storage.residence import PAGE, drop, pages_cached
from wspace.storage.writers import checkpoint_writers
from wspace.storage.writing import NewCheckpoint
from wspace.stream import OUTPUTS, Stream

RESULTS = Path(__file__).parent / "results"
ROUNDS = 6
BLOCK = 8 << 20
MEMORY = 1 << 30
SHARDS = 5 * 10**9


class Bench:
    """The works, by name, over one zoo; each leaves ``work`` as it was."""

    def __init__(self, zoo: wspace.Zoo, work: Path) -> None:
        self.zoo, self.out = zoo, work / "out"
        self.shards = [Path(str(file)) for member in zoo.members for file in member.files]
        self.weights = [1 / len(zoo)] * len(zoo)
        self.read_bytes = sum(path.stat().st_size for path in self.shards)
        self.write_bytes = self.read_bytes // len(zoo)
        self.tensors = [
            OutputTensor(t.name, t.stored[0].record.dtype, t.shape) for t in zoo.tensors
        ]
        chosen = needed(zoo, np.array([self.weights]))
        self._rows, self._plans = chosen.rows, plan_mixes(zoo, chosen, Cpu(), MEMORY, None)
        self._blocks = [allocate(BLOCK) for _ in range(OUTPUTS)]
        for block in self._blocks:
            block[:] = np.random.default_rng(0).integers(0, 256, BLOCK, dtype=np.uint8)
        self.works: dict[str, Callable[[], object]] = {
            "dd read": self.dd_read, "reader": self.reader, "dd write": self.dd_write,
            "writer": self.writer, "merge": self.merge, "through": self.merge, "warm": self.merge,
        }  # fmt: skip

    def dd_read(self) -> None:
        for path in self.shards:
            _dd(f"if={path}", "of=/dev/null", "bs=8M", "iflag=direct")

    def dd_write(self) -> None:
        count = -(-self.write_bytes // BLOCK)
        _dd("if=/dev/zero", f"of={self.out}", "bs=8M", f"count={count}", "oflag=direct",
            "conv=fsync")  # fmt: skip

    def reader(self) -> None:
        with Stream(self.zoo, self._rows, self._plans, Cpu()) as stream:
            for _ in stream:
                pass

    def writer(self) -> None:
        job = fingerprint({"method": "bench"}, self.zoo.checkpoints)
        with checkpoint_writers([NewCheckpoint(self.out, self.tensors, job, SHARDS)]) as (writer,):
            waiting = [[] for _ in self._blocks]
            shard, first = writer.place(self.tensors[0].name, 0)
            stop = first + sum(tensor.nbytes for tensor in self.tensors)  # of one shard
            for k, start in enumerate(range(first, stop, BLOCK)):
                turn = k % len(waiting)
                finish(waiting[turn])
                view = self._blocks[turn][: min(BLOCK, stop - start)]
                waiting[turn] = writer.write(shard, start, view)
            for futures in waiting:
                finish(futures)
            writer.publish(self.zoo.donor, {})

    def merge(self) -> None:
        zoo = wspace.open_zoo([str(member.path) for member in self.zoo.members])
        wspace.merge(zoo, self.weights, self.out)

    def run(self, name: str) -> tuple[float, int, Profile]:
        """Seconds, by how many bytes the inputs grew in the cache, and where the time went."""
        if self.out.is_dir():
            shutil.rmtree(self.out)
        self.out.unlink(missing_ok=True)
        if name == "warm":
            limits.read_files(self.shards * 2).run()  # twice: so Linux knows that they are in use
        else:
            self.chill()
        os.sync()
        before = self.cached()
        with _share(0.5 if name in ("through", "warm") else 0), profiled() as profile:
            started = time.perf_counter()
            self.works[name]()
            seconds = time.perf_counter() - started
        return seconds, self.cached() - before, profile

    def chill(self) -> None:
        for path in self.shards:
            with path.open("rb") as file:
                drop(file.fileno())
        assert not self.cached(), "the files are still in the page cache"

    def cached(self) -> int:
        total = 0
        for path in self.shards:
            with path.open("rb") as file:
                total += (pages_cached(file.fileno(), 0, path.stat().st_size) or 0) * PAGE
        return total


def _dd(*words: str) -> None:
    subprocess.run(["dd", *words, "status=none"], check=True)


@contextmanager
def _share(value: float) -> Iterator[None]:
    before, local.SHARE = local.SHARE, value
    try:
        yield
    finally:
        local.SHARE = before


def ratios(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians over the turns; of rates for reader and writer, of times for merges."""
    turns = [dict(zip(seconds, turn, strict=True)) for turn in zip(*seconds.values(), strict=True)]

    def of(form: Callable[[dict[str, float]], float]) -> float:
        return round(median(map(form, turns)), 3)

    return {
        "reader / dd": of(lambda s: s["dd read"] / s["reader"]),
        "writer / dd": of(lambda s: s["dd write"] / s["writer"]),
        "merge / (dd read + dd write)": of(lambda s: s["merge"] / (s["dd read"] + s["dd write"])),
        "merge / dd read": of(lambda s: s["merge"] / s["dd read"]),
        "through / (dd read + dd write)": of(
            lambda s: s["through"] / (s["dd read"] + s["dd write"])
        ),
        "warm / dd write": of(lambda s: s["warm"] / s["dd write"]),
    }


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.disk")
    parser.add_argument("zoo", type=Path, help="a folder that bench.zoo made")
    parser.add_argument("work", type=Path, help="a folder for the outputs, on the same disk")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(given)
    bench = Bench(wspace.open_zoo(f"{options.zoo}/model-*"), options.work)
    bench.run("merge")  # compiles, and starts threads
    seconds: dict[str, list[float]] = {name: [] for name in bench.works}
    grown: dict[str, int] = dict.fromkeys(bench.works, 0)
    bottlenecks: dict[str, list[str]] = {name: [] for name in ("merge", "through", "warm")}
    past = 1.0
    for turn in range(options.rounds):
        order = list(bench.works)
        random.Random(turn).shuffle(order)
        for name in order:
            spent, grew, profile = bench.run(name)
            seconds[name].append(round(spent, 4))
            grown[name] = max(grown[name], grew)
            if name in bottlenecks:
                bottlenecks[name].append(profile.bottleneck)
            if name in ("merge", "reader"):
                past = min(past, profile.nbytes[DIRECT] / profile.nbytes[READ])
    shutil.rmtree(bench.out, ignore_errors=True)
    bench.out.unlink(missing_ok=True)
    version = subprocess.run(["dd", "--version"], capture_output=True, text=True, check=True)
    amounts = dict.fromkeys(bench.works, bench.read_bytes + bench.write_bytes)
    amounts |= dict.fromkeys(("dd read", "reader"), bench.read_bytes)
    amounts |= dict.fromkeys(("dd write", "writer"), bench.write_bytes)
    report: dict[str, Any] = {
        "machine": limits.machine() | {"dd": version.stdout.splitlines()[0]},
        "models": len(bench.zoo),
        "bytes_read": bench.read_bytes,
        "bytes_written": bench.write_bytes,
        "ratios": ratios(seconds),
        "goals": {"reader / dd": ">= 0.90", "writer / dd": ">= 0.90",
                  "merge / (dd read + dd write)": "<= 1.15"},
        "gbps": {n: round(amounts[n] / median(s) / 1e9, 2) for n, s in seconds.items()},
        "bytes_that_the_cache_grew_by": grown,
        "share_read_past_the_cache": past,
        "bottlenecks": bottlenecks,
        "seconds": seconds,
    }  # fmt: skip
    place = RESULTS / limits.machine_name()
    place.mkdir(parents=True, exist_ok=True)
    (place / "disk.json").write_text(json.dumps(report, indent=1) + "\n")
    print(
        json.dumps({k: v for k, v in report.items() if k not in ("machine", "seconds")}, indent=1)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
