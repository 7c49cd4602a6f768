"""Faults of disks, counted: ``python -m bench.faults WORK``.

Small merges in this process, on disks that fail in ways of ``bench.faulty``:

calls   reads, writes, syncs and renames that fail (EIO, ENOSPC, EDQUOT, EINTR) or do less than
        asked; the command is run again until it ends
flips   one bit, in a file of an unfinished output, in a finished output, in what is written, or in
        an input
power   lost at any write, sync or rename; what was not synced is lost, zeros, there in part or
        there; then the command is run again

Each case counts one outcome. ``right``: the output has the bits of an undisturbed run. ``refused``:
an error that names the file, and with ``--restart``, or when the input is as it was, the right
output. ``found``: the output or input is wrong, and ``wspace verify`` says so. ``unseen``: the
output is that of the input as it was read; no run can tell, and the places where this may happen
are ``UNSEEN``. Anything else is ``wrong``, and the command ends with status 1. To
``results/<machine>/faults.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

import wspace
from bench import limits
from bench.faulty import Faults, Power, flip, flipped_writes
from wspace.errors import WspaceError
from wspace.storage import local, writing
from wspace.storage.headers import read_header, render_header
from wspace.storage.partial import partial_of
from wspace.storage.residence import drop

RESULTS = Path(__file__).parent / "results"
SHAPES = {"a": (500, 600), "b": (7,), "c": (64, 512), "d": (), "e": (0, 3), "f": (400, 300)}
WEIGHTS = [0.3, 0.7]
MOST = 60
"""Runs of one command, before it is said never to end."""

UNSEEN = ("weights of an input", "weights of an input while the merge runs")
"""A merge reads each byte once, and has nothing to compare it with. ``wspace verify`` finds it in
inputs that have checksums, as it does in any output."""

RIGHT, REFUSED, FOUND, UNNOTICED, WRONG = "right", "refused", "found", "unseen", "wrong"
Counts = dict[str, Counter[str]]


class StoppedError(Exception):
    """The merge was cut short."""


class Bench:
    """A zoo, and the bits of its merge."""

    def __init__(self, work: Path) -> None:
        self.work, self.zoo, self.disk = work, work / "zoo", work / "disk"
        self.out = self.disk / "new" / "out"
        tensors = {name: ("F32", shape) for name, shape in SHAPES.items()}
        header, starts, length = render_header(tensors, {"format": "pt"})
        values = np.random.default_rng(0).standard_normal((length - min(starts.values())) // 4)
        for seed, name in enumerate(["base", "run-0", "run-1"]):
            step = np.random.default_rng(seed).standard_normal(len(values)) * 1e-2
            (self.zoo / name).mkdir(parents=True)
            data = (values + step * bool(seed)).astype(np.float32).tobytes()
            (self.zoo / name / "model.safetensors").write_bytes(header + data)
            (self.zoo / name / "config.json").write_text('{"model_type": "plain"}')
        self.expected = self.bits(self.merge(work / "expected"))
        shutil.copytree(self.zoo, work / "whole")

    def merge(self, out: Path | None = None, **options: Any) -> Path:
        out = out or self.out
        zoo = wspace.open_zoo(f"{self.zoo}/run-*", base=self.zoo / "base")
        (made,) = wspace.merge(zoo, WEIGHTS, out, memory="3MiB", max_shard_size="800KB", **options)
        return made

    @staticmethod
    def bits(out: Path) -> dict[str, bytes]:
        """Every file of an output but the record, which has the times of its inputs."""
        return {p.name: p.read_bytes() for p in out.iterdir() if p.name != "wspace.json"}

    def is_right(self, out: Path | None = None) -> bool:
        out = out or self.out
        try:
            return self.bits(out) == self.expected and wspace.verify(out).ok
        except WspaceError:  # its record is damaged
            return False

    def clear(self) -> None:
        shutil.rmtree(self.disk, ignore_errors=True)

    def leave_unfinished(self, draw: random.Random) -> Path:
        """A merge that was killed on its way."""
        share = draw.uniform(0.3, 1.0)

        def progress(done: int, total: int) -> None:
            if done >= share * total:
                raise StoppedError

        with suppress(StoppedError):
            self.merge(progress=progress)
        return partial_of(self.out)

    def again(self, out: Path | None = None) -> str:
        """What comes of the same command, and after a refusal with ``--restart``."""
        out, outcome = out or self.out, RIGHT
        try:
            self.merge(out)
        except WspaceError as error:
            if out.exists() or str(out) not in str(error):
                return WRONG
            outcome = REFUSED
            self.merge(out, restart=True)
        return outcome if self.is_right(out) else WRONG


def calls(bench: Bench, draw: random.Random, counts: Counts, past_cache: bool) -> None:
    """One command, run until it ends; each fault counts with what came of its run."""
    if past_cache:
        for path in bench.zoo.rglob("*.safetensors"):
            with path.open("rb") as file:
                drop(file.fileno())
    with Faults(draw.randrange(1 << 30)) as faults:
        for _ in range(MOST):
            before = Counter(faults.counts)
            try:
                bench.merge()
                outcome = RIGHT
            except WspaceError as error:
                named = any(str(path) in str(error) for path in (bench.out, bench.zoo))
                outcome = REFUSED if named else WRONG
            for name, times in (faults.counts - before).items():
                if name != "direct":
                    counts[name][outcome] += times
            if bench.out.exists():  # also if only the sync of its name failed
                break
    last = RIGHT if bench.out.exists() and bench.is_right() else WRONG
    counts["commands, run until they end"][last] += 1


@contextmanager
def whole_inputs(bench: Bench) -> Iterator[None]:
    """Inputs are put back as they were."""
    try:
        yield
    finally:
        shutil.rmtree(bench.zoo)
        shutil.copytree(bench.work / "whole", bench.zoo)


def flip_unfinished(bench: Bench, draw: random.Random, name: str) -> str:
    """In a file of an unfinished output, before the command is run again."""
    files = [p for p in bench.leave_unfinished(draw).rglob(name) if p.stat().st_size]
    if files:
        flip(draw.choice(files), draw)
    return bench.again()


def flip_output(bench: Bench, draw: random.Random) -> str:
    """In any file of a finished output."""
    bench.merge()
    file = draw.choice(sorted(bench.out.iterdir()))
    flip(file, draw)
    try:
        return WRONG if wspace.verify(bench.out).ok else FOUND
    except WspaceError as error:
        return FOUND if str(bench.out) in str(error) else WRONG


def flip_writes(bench: Bench, draw: random.Random) -> str:
    """In what the disk is given."""
    with flipped_writes(draw, 0.1) as done:
        bench.merge()
    if not done:
        return RIGHT if bench.is_right() else WRONG
    return WRONG if wspace.verify(bench.out).ok else FOUND


def flip_header(bench: Bench, draw: random.Random) -> str:
    """In the header of an input, before the run."""
    file = draw.choice(sorted(bench.zoo.rglob("*.safetensors")))
    with whole_inputs(bench):
        flip(file, draw, 0, _data_start(file))
        try:
            bench.merge()
        except WspaceError as error:
            named = str(bench.zoo) in str(error) and not bench.out.exists()
            return REFUSED if named else WRONG
        return RIGHT if bench.is_right() else WRONG  # in the metadata, or a space


def flip_while_running(bench: Bench, draw: random.Random, kept_times: bool) -> str:
    """In an input, by a program that writes to it while the merge runs."""
    file = draw.choice(sorted(bench.zoo.rglob("*.safetensors")))
    at, done = draw.random(), []

    def progress(read: int, total: int) -> None:
        if read >= at * total and not done:
            done.append(flip(file, draw, _data_start(file)))
            if not kept_times:
                file.touch()

    with whole_inputs(bench):
        try:
            bench.merge(progress=progress)
        except WspaceError as error:
            named = str(file) in str(error) and not bench.out.exists()
            return REFUSED if named else WRONG
        return _as_read(bench) if kept_times else WRONG


def flip_weights(bench: Bench, draw: random.Random) -> str:
    """In the weights of an input, before the run."""
    file = draw.choice(sorted(bench.zoo.rglob("*.safetensors")))
    with whole_inputs(bench):
        flip(file, draw, _data_start(file))
        try:
            bench.merge()
        except WspaceError as error:  # Inf or NaN
            return REFUSED if str(bench.zoo) in str(error) else WRONG
        return _as_read(bench)


def _as_read(bench: Bench) -> str:
    """The output is whole, whatever was read."""
    return UNNOTICED if wspace.verify(bench.out).ok else WRONG


def _data_start(file: Path) -> int:
    return min(record.start for record in read_header(file).tensors.values())


Flip = Callable[[Bench, random.Random], str]
FLIPS: dict[str, Flip] = {
    "journal of an unfinished output": lambda b, d: flip_unfinished(b, d, "journal"),
    "bytes of an unfinished output": lambda b, d: flip_unfinished(b, d, "*.safetensors"),
    "fingerprint of an unfinished output": lambda b, d: flip_unfinished(b, d, "job.json"),
    "writes": flip_writes,
    "any file of an output": flip_output,
    "header of an input": flip_header,
    "input that a program writes to while the merge runs": lambda b, d: flip_while_running(
        b, d, False
    ),
    "weights of an input": flip_weights,
    "weights of an input while the merge runs": lambda b, d: flip_while_running(b, d, True),
}


def power(
    bench: Bench, draw: random.Random, counts: Counts, resumed: bool, share: float = 0.15
) -> None:
    """One merge, and what comes of it where the power is lost at some of its moments."""
    bench.disk.mkdir()
    if resumed:
        bench.leave_unfinished(draw)
    lost: list[tuple[str, Path]] = []
    ways = [(names, rest) for names in ("synced", "now")
            for rest in ("lost", "zeros", "pages", "there")]  # fmt: skip

    def moment(k: int) -> None:
        if draw.random() < share:
            names, rest = draw.choice(ways)
            place = bench.work / f"lost-{len(lost)}"
            disk.lose(place, draw, names=names, rest=rest)
            lost.append((f"names {names}, bytes {rest}", place))

    with Power(bench.disk, moment) as disk:
        bench.merge()
    disk.lose(bench.work / "lost-after", draw, names="synced", rest="lost")
    after = bench.work / "lost-after" / "new" / "out"
    whole = after.is_dir() and bench.is_right(after)
    counts["after the end"][RIGHT if whole else WRONG] += 1
    for name, place in lost:
        out = place / "new" / "out"
        if out.exists():
            counts[f"{name}: published"][RIGHT if bench.is_right(out) else WRONG] += 1
        else:
            counts[name][bench.again(out)] += 1
    for place in (*(place for _, place in lost), bench.work / "lost-after"):
        shutil.rmtree(place)


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.faults")
    parser.add_argument("work", type=Path, help="a new folder for the zoo and the outputs")
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--minutes", type=float, default=60.0, help="no case begins after them")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(given)
    writing.COMMIT_SECONDS = 0
    bench, draw = Bench(options.work), random.Random(options.seed)
    found: dict[str, Counts] = {kind: defaultdict(Counter) for kind in ("calls", "flips", "power")}
    end = time.monotonic() + 60 * options.minutes
    cases, share = 0, local.SHARE
    while cases < options.cases and time.monotonic() < end:
        for kind in ("cached", "direct"):
            local.SHARE = 0 if kind == "direct" else share
            calls(bench, draw, found["calls"], kind == "direct")
            bench.clear()
        local.SHARE = share
        for place, case in FLIPS.items():
            outcome = case(bench, draw)
            if outcome == UNNOTICED and place not in UNSEEN:
                outcome = WRONG
            found["flips"][place][outcome] += 1
            bench.clear()
        power(bench, draw, found["power"], draw.random() < 0.5)
        bench.clear()
        cases = sum(sum(counts.values()) for part in found.values() for counts in part.values())
    wrong = sum(counts[WRONG] for part in found.values() for counts in part.values())
    report = {
        "machine": limits.machine(), "seed": options.seed, "cases": cases, "wrong": wrong,
        **{kind: {name: dict(sorted(counts.items())) for name, counts in sorted(part.items())}
           for kind, part in found.items()},
    }  # fmt: skip
    place = RESULTS / limits.machine_name()
    place.mkdir(parents=True, exist_ok=True)
    (place / "faults.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: report[key] for key in ("cases", "wrong", *found)}, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
