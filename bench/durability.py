"""What the journal and the checksums cost a merge: ``python -m bench.durability ZOO WORK``.

The same merge with both, with neither, and with checksums alone, in turns in one process; the
outputs of the first turn, which is not counted, must be the same. Once with the inputs in the page
cache, once read from the disk past it, as of zoos that exceed it. Wall time and processor time; the
ratios are medians over the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import wspace
from bench import limits
from wspace import sinks
from wspace.storage import local, writing
from wspace.storage.blocks import Blocks
from wspace.storage.checksums import checksum
from wspace.storage.commits import Commits
from wspace.storage.residence import drop

RESULTS = Path(__file__).parent / "results"
ROUNDS = 40
"""Of the warm ones; half as many cold ones. With 14 the ratios swung from 0.98 to 1.17."""


@contextmanager
def without(*, checksums: bool):
    """No journal, and no checksums either unless asked for."""
    seconds, of_all = writing.COMMIT_SECONDS, Blocks.checksums
    summed, written, function = Blocks.sum, Blocks.written, sinks.digest_function
    add = Commits.add
    writing.COMMIT_SECONDS = float("inf")
    Commits.add = lambda self, runs: None
    if not checksums:
        sinks.digest_function = lambda: 0
        Blocks.sum = lambda self, shard, start, data: None
        Blocks.written = lambda self, shard, start, stop: []
        Blocks.checksums = lambda self: ({}, [])
    try:
        yield
    finally:
        writing.COMMIT_SECONDS, Blocks.checksums = seconds, of_all
        Blocks.sum, Blocks.written, sinks.digest_function = summed, written, function
        Commits.add = add


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall, and of all processors."""
    os.sync()
    wall, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - used


@contextmanager
def past_cache(files: Sequence[Path]):
    """The files have left the page cache, and are read past it."""
    for path in files:
        with path.open("rb") as file:
            drop(file.fileno())
    before, local.SHARE = local.SHARE, 0
    try:
        yield
    finally:
        local.SHARE = before


def figures(times: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Ratios to the merge with neither, in two ways, and the seconds on the wall."""
    found: dict[str, Any] = {"ratio_of_medians": {}, "median_of_ratios": {}}
    for name in ("both", "checksums"):
        for kind, k in (("wall", 0), ("processor", 1)):
            ratios = [a[k] / b[k] for a, b in zip(times[name], times["neither"], strict=True)]
            found["ratio_of_medians"][f"{name}_{kind}"] = round(
                median(x[k] for x in times[name]) / median(x[k] for x in times["neither"]), 4
            )
            found["median_of_ratios"][f"{name}_{kind}"] = round(median(ratios), 4)
    seconds = {name: [round(wall, 4) for wall, _ in spent] for name, spent in times.items()}
    return found | {"seconds": seconds}


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.durability")
    parser.add_argument("zoo", type=Path, help="a folder that bench.zoo made")
    parser.add_argument("work", type=Path, help="a folder for the outputs")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=["warm", "cold"], help="keep the other as it was found")
    options = parser.parse_args(given)
    zoo = wspace.open_zoo(f"{options.zoo}/model-*")
    weights = [1 / len(zoo)] * len(zoo)
    out = options.work / "out"

    def merge() -> None:
        wspace.merge(zoo, weights, out)

    def bare() -> None:
        with without(checksums=False):
            merge()

    def summed() -> None:
        with without(checksums=True):
            merge()

    works = {"both": merge, "checksums": summed, "neither": bare}
    report: dict[str, Any] = {
        "machine": limits.machine(),
        "models": len(zoo),
        "bytes_read": sum(member.nbytes for member in zoo.members),
        "bytes_written": zoo.members[0].nbytes,
    }
    files = [Path(str(file)) for member in zoo.members for file in member.files]
    place = RESULTS / limits.machine_name() / "durability.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    if options.only and place.is_file():
        found = json.loads(place.read_text())
        report |= {kind: found[kind] for kind in ("warm", "cold") if kind in found}
    kinds = {"warm": options.rounds, "cold": -(-options.rounds // 2)}
    for kind in [options.only] if options.only else kinds:
        turns = kinds[kind]
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
        shards = None
        for turn in range(turns + 1):  # the first reads the files and compiles
            order = list(works)
            random.Random(turn).shuffle(order)
            for name in order:
                with past_cache(files) if kind == "cold" else nullcontext():
                    spent = timed(works[name])
                if turn:
                    times[name].append(spent)
                else:
                    found = [checksum(path.read_bytes())
                             for path in sorted(out.glob("*.safetensors"))]  # fmt: skip
                    assert shards in (None, found), "the outputs differ"
                    shards = found
                shutil.rmtree(out)
        report[kind] = figures(times)
    place.write_text(json.dumps(report, indent=1) + "\n")
    for kind in kinds.keys() & report.keys():
        print(kind, json.dumps(report[kind] | {"seconds": None}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
