"""Two torchrun processes against one, a thread each: ``python -m bench.ranks WORK``.

Three works on a zoo of 128 models of 14 million parameters, its files in the page cache: the Gram
matrix, a ``ties`` recipe (both are computed, mostly) and their mean (which is read,
mostly). In turns, as processes of their own: one on one processor, two of torchrun on one each.
Told are the seconds of the work, from when all processes are ready until the last is done, and of
the whole command, which for torchrun starts three interpreters and imports torch. The results must
be the same, bit for bit.

Turns are kept in ``WORK/turns.json``, and those of several runs are counted together; each run
writes ``bench/results/<machine>/ranks.json`` and ``ranks.md``, with the plan that ``bench.nodes``
makes of the rates.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import wspace
from bench import limits, nodes
from bench.kills import make_zoo
from bench.limits import spread
from wspace.recipes import Problems, merge_outputs, plan_outputs
from wspace.storage.checksums import checksum
from wspace.team import ALONE, Team, torchrun_rank

MODELS = 128
GOAL = 1.7
ONE = "model.layers.0.mlp.gate_proj.weight"
"""What every work does first, for its kernels to be loaded."""
RESULTS = Path(__file__).parent / "results"


def run_work(name: str, zoo: Path, out: Path) -> dict:
    """One work in this process, alone or as a rank; returns seconds, and a digest of the result."""
    if torchrun_rank() is None:
        team = ALONE
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    else:
        from wspace.ranks import Ranks

        team = Ranks()
    models = [zoo / f"model-{i}" for i in range(MODELS)]
    few = wspace.open_zoo(models, base=zoo / "base", include=ONE)
    opened = wspace.open_zoo(models, base=zoo / "base")
    recipe = {
        "merge_method": "ties", "base_model": str(zoo / "base"),
        "models": [{"model": str(model)} for model in models],
        "parameters": {"density": 0.5, "weight": 0.5},
    }  # fmt: skip
    first, outputs = (
        plan_outputs(json.dumps(recipe), Problems("ties.yml"), include=names)
        for names in ([ONE], [])
    )
    weights = [[1 / MODELS] * MODELS]

    def work(of: wspace.Zoo, planned: Any, out: Path, team: Team) -> object:
        if name == "gram":
            return wspace.gram(of, per_tensor=False, team=team)
        if name == "mean":
            return wspace.merge(of, weights, out, team=team)
        return merge_outputs(planned, [out], team=team)

    work(few, first, out.with_name(f"first-{team.share.index}"), ALONE)
    team.wait()
    started = time.perf_counter()
    made = work(opened, outputs, out, team)
    team.wait()
    seconds = time.perf_counter() - started
    if isinstance(made, wspace.Gram):
        digest = checksum(made.total.numpy().tobytes())
    else:
        digest = checksum((out / "model.safetensors").read_bytes())
    team.wait()
    if team.share.n > 1:
        team.close()  # pyright: ignore[reportAttributeAccessIssue]
    return {"rank": team.share.index, "seconds": seconds, "digest": digest}


def measured(name: str, n: int, work: Path) -> dict:
    """The same as one process, or as ``n`` of torchrun."""
    for folder in (work / "out", *work.glob("first-*"), *work.glob(".*.partial")):
        shutil.rmtree(folder, ignore_errors=True)
    os.sync()
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}"] * (n > 1)
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *launch, "-m", "bench.ranks", str(work), "--subject", name],
        stdout=subprocess.PIPE, check=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    command = time.perf_counter() - started
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    (first,) = [line for line in found if line["rank"] == 0]
    return {"seconds": first["seconds"], "command": command, "digest": first["digest"]}


def cold_read(files: list[Path]) -> float:
    """Bytes a second of reading past the page cache, 8 MiB at a time, in one thread."""
    buffer = mmap.mmap(-1, 8 << 20)
    done, started = 0, time.perf_counter()
    for path in files:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        while got := os.readv(descriptor, [buffer]):
            done += got
        os.close(descriptor)
    return done / (time.perf_counter() - started)


def report_of(turns: list[dict], zoo: Path) -> dict:
    """Ratios of each turn, their medians, and the rates of one process."""
    n_columns = (zoo / "base/model.safetensors").stat().st_size // 2
    one = {name: [t["one"]["seconds"] for t in turns if t["work"] == name] for name in WORKS}
    report: dict = {"machine": limits.machine(), "models": MODELS, "parameters": n_columns}
    for name in WORKS:
        own = [turn for turn in turns if turn["work"] == name]
        if not own:
            continue
        assert all(turn["one"]["digest"] == turn["two"]["digest"] for turn in own), name
        ratios = {
            key: spread(turn["one"][key] / turn["two"][key] for turn in own)
            for key in ("seconds", "command")
        }
        report[name] = {
            "turns": len(own),
            "one_seconds": spread(one[name])._asdict(),
            "two_seconds": spread(t["two"]["seconds"] for t in own)._asdict(),
            "ratio": ratios["seconds"]._asdict(),
            "ratio_of_commands": ratios["command"]._asdict(),
            "same_bits": True,
        }
    reads = [turn["cold"] for turn in turns if "cold" in turn]
    report["rates"] = {
        "gram_flops": MODELS * (MODELS + 1) * n_columns / float(np.median(one["gram"])),
        "mean_bytes": (MODELS + 1) * n_columns * 2 / float(np.median(one["mean"])),
        "cold_bytes": float(np.median(reads)),
    }
    return report


WORKS = ("gram", "ties", "mean")


def in_words(report: dict) -> str:
    machine = report["machine"]
    lines = [
        "# Two torchrun processes against one, a thread each", "",
        f"{machine['cpu']}, {machine['cores']} processors, {machine['date']}, torch "
        f"{machine['torch']}, numba {machine['numba']}; by `python -m bench.ranks`.",
        f"{report['models']} models of {report['parameters']:,} bfloat16 and their base, in the "
        f"page cache; medians (range) over turns of one and two.",
        "", "| work | one, s | two, s | ratio | of whole commands | same bits |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name in WORKS:
        if name in report:
            cells = (limits.Spread(**report[name][key]) for key in
                     ("one_seconds", "two_seconds", "ratio", "ratio_of_commands"))  # fmt: skip
            lines.append(f"| {name} | {' | '.join(map(str, cells))} | yes |")
    compute = [report[name]["ratio"]["median"] for name in ("gram", "ties") if name in report]
    met = "met" if min(compute) >= GOAL else "missed"
    lines += ["", f"Goal for what is computed: {GOAL}, {met}.", ""]
    return "\n".join(lines + nodes.in_words(report["rates"]))


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ranks")
    parser.add_argument("work", type=Path, help="a folder for the zoo and the outputs, 4 GB")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument("--subject", choices=WORKS, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    work, zoo = options.work, options.work / "zoo"
    if options.subject:
        print(json.dumps(run_work(options.subject, zoo, work / "out")), flush=True)
        return 0
    if not zoo.exists():
        make_zoo(zoo, MODELS)
    kept = work / "turns.json"
    turns = json.loads(kept.read_text()) if kept.exists() else []
    for turn in range(options.turns):
        for name in options.works:
            sides = {"one": 1, "two": 2}
            order = list(sides) if turn % 2 else list(sides)[::-1]
            found = {side: measured(name, sides[side], work) for side in order}
            turns.append({"work": name, **found})
            ratio = found["one"]["seconds"] / found["two"]["seconds"]
            print(f"{name}: {ratio:.2f}", file=sys.stderr, flush=True)
        turns[-1]["cold"] = cold_read([zoo / f"model-{i}/model.safetensors" for i in range(16)])
        kept.write_text(json.dumps(turns))
    if {turn["work"] for turn in turns} < set(WORKS):
        return 0  # the report is of all of them
    report = report_of(turns, zoo)
    place = RESULTS / limits.machine_name()
    place.mkdir(parents=True, exist_ok=True)
    (place / "ranks.json").write_text(json.dumps(report, indent=1) + "\n")
    (place / "ranks.md").write_text(in_words(report))
    print(in_words(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
