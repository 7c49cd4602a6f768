"""Kills merges at random and lets them go on: ``python -m bench.kills WORK``.

Each case is a merge of a Llama-shaped zoo (a linear merge of two outputs at once, a recipe of inner
products, an elementwise recipe), in a process of its own that is killed (SIGKILL) after a random
time, again and again with the same command; the sixth is let be. Counted is what came of it: an
output must be there with the bits of an undisturbed run and pass ``verify``; nothing may be lost.
The journal is written every ``COMMIT_SECONDS`` here, for merges this small would end before the
usual second. The report goes to ``bench/results/<machine>/kills.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

import wspace
from bench import limits
from wspace.cli.main import main as command_line
from wspace.storage import writing
from wspace.storage.fingerprints import digest_of
from wspace.storage.headers import render_header
from wspace.storage.journal import Journal
from wspace.storage.partial import partial_of

COMMIT_SECONDS = 0.005
MEMORY = "8MiB"
MOST_KILLS = 5
"""Of one case."""
RESULTS = Path(__file__).parent / "results"

RECIPES = {
    "model_stock": "merge_method: model_stock\nbase_model: {zoo}/base\nmodels:\n"
    "- model: {zoo}/model-0\n- model: {zoo}/model-1\n- model: {zoo}/model-2\n",
    "ties": "merge_method: ties\nbase_model: {zoo}/base\nmodels:\n- model: {zoo}/model-0\n"
    "- model: {zoo}/model-1\nparameters: {{density: 0.5, weight: 0.5}}\n",
}


def make_zoo(folder: Path, models: int = 3) -> None:
    """A base and models near it, in bfloat16, shaped like a Llama of 14 million parameters."""
    width, inner, cached, layers, vocabulary = 256, 688, 128, 8, 16000
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for k in range(layers):
        layer = {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (cached, width),
            "self_attn.v_proj": (cached, width), "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner), "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }  # fmt: skip
        shapes |= {f"model.layers.{k}.{name}.weight": shape for name, shape in layer.items()}
    shapes |= {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}
    tensors = {name: ("BF16", shape) for name, shape in shapes.items()}
    header, starts, length = render_header(tensors, {"format": "pt"})
    n = (length - min(starts.values())) // 2
    base = np.random.default_rng(0).standard_normal(n, dtype=np.float32) * 0.02
    for seed, name in enumerate(["base", *(f"model-{i}" for i in range(models))]):
        step = np.random.default_rng(seed).standard_normal(n, dtype=np.float32) * 2e-4
        values = base + step if seed else base
        (folder / name).mkdir(parents=True)
        rounded = (values.view(np.uint32) >> 16).astype(np.uint16)
        (folder / name / "model.safetensors").write_bytes(header + rounded.tobytes())


def arguments_of(kind: str, work: Path, out: Path) -> tuple[list[str], list[Path]]:
    """The command's arguments, and its outputs."""
    zoo = work / "zoo"
    common = ["--memory", MEMORY, "--max-shard-size", "12MB"]
    if kind == "linear":
        models = [str(zoo / f"model-{i}") for i in range(3)]
        outs = [out / "a", out / "b"]
        mixes = ["--weights", "0.2,0.3,0.4", "--weights", "1,-1,0.5"]
        return ["merge", *models, "--base", f"{zoo}/base", *mixes, "-o", str(outs[0]),
                "-o", str(outs[1]), *common], outs  # fmt: skip
    recipe = work / f"{kind}.yml"
    recipe.write_text(RECIPES[kind].format(zoo=zoo))
    return ["merge", str(recipe), "-o", str(out / "a"), *common], [out / "a"]


def shards_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.safetensors"))}


def journaled(out: Path) -> int:
    """Lines in the journal of an unfinished output."""
    folder = partial_of(out)
    if not (folder / "job.json").is_file() or not (folder / "journal").is_file():
        return 0
    try:
        job = json.loads((folder / "job.json").read_text())
    except ValueError:  # killed while it was written
        return 0
    journal = Journal(folder / "journal", digest_of(job))
    blocks = journal.read()
    journal.close()
    return len(blocks)


def run_command(arguments: list[str], said: Path, after: float | None = None) -> int:
    """The exit status of a command in a process of its own, killed ``after`` so many seconds.

    The process is a fork of this one, which has imported everything and never merged: most of its
    time is then the merge.
    """
    child = os.fork()
    if child == 0:
        status = 70
        try:
            with said.open("w") as file:
                os.dup2(file.fileno(), 2)
                os.dup2(file.fileno(), 1)
            writing.COMMIT_SECONDS = COMMIT_SECONDS
            status = command_line(arguments)
        finally:
            os._exit(status)
    end = time.monotonic() + (float("inf") if after is None else after)
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            os.kill(child, signal.SIGKILL)
            end = float("inf")
        time.sleep(0.001)


def run_case(
    arguments: list[str], outs: list[Path], said: Path, seconds: float, draw: random.Random
) -> dict[str, Any]:
    """One merge, killed until it ends; what was seen."""
    kills, resumed, kept = 0, 0, []
    while True:
        # the last run of a case is let be, so that it comes to an end
        after = draw.uniform(0, seconds) if kills < MOST_KILLS else None
        status = run_command(arguments, said, after)
        resumed += "going on from" in said.read_text()
        if status == 0:
            return {"kills": kills, "resumed": resumed, "kept": kept}
        if status != -signal.SIGKILL:
            raise RuntimeError(f"exit status {status}: {said.read_text()}")
        kills += 1
        kept.append(sum(map(journaled, outs)))
        if all(out.exists() for out in outs):  # killed when all was done
            return {"kills": kills, "resumed": resumed, "kept": kept}


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.kills")
    parser.add_argument("work", type=Path, help="a folder for the zoo and the outputs")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60.0, help="no case begins after them")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(given)
    work, draw = options.work, random.Random(options.seed)
    said = work / "said"
    make_zoo(work / "zoo")
    for module in ("wkernels.cpu", "wspace.merging", "wspace.recipes", "rich"):
        import_module(module)  # for the processes that are forked
    expected, seconds = {}, {}
    for kind in ("linear", *RECIPES):
        arguments, outs = arguments_of(kind, work, work / "expected" / kind)
        started = time.perf_counter()
        if run_command(arguments, said):
            raise RuntimeError(said.read_text())
        seconds[kind] = time.perf_counter() - started
        expected[kind] = [shards_of(out) for out in outs]
    totals: Counter[str] = Counter()
    cases = []
    end = time.monotonic() + 60 * options.minutes
    while totals["kills"] < options.kills and time.monotonic() < end:
        kind = draw.choice(["linear", *RECIPES])
        out = work / "out"
        arguments, outs = arguments_of(kind, work, out)
        case = run_case(arguments, outs, said, seconds[kind], draw)
        same = [shards_of(path) for path in outs] == expected[kind]
        whole = all(wspace.verify(path).ok for path in outs)
        left = [path.name for path in out.iterdir() if path not in outs]
        totals += Counter(cases=1, kills=case["kills"], resumed=case["resumed"], identical=same,
                          verified=whole, leftovers=bool(left))  # fmt: skip
        cases.append({"kind": kind, **case, "identical": same, "verified": whole, "left": left})
        shutil.rmtree(out)
    lost = totals["cases"] - totals["identical"]
    report = {"machine": limits.machine(), "seed": options.seed, "totals": dict(totals),
              "lost": lost, "cases": cases}  # fmt: skip
    place = RESULTS / limits.machine_name()
    place.mkdir(parents=True, exist_ok=True)
    (place / "kills.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["totals"]))
    return 1 if lost or totals["verified"] < totals["cases"] else 0


if __name__ == "__main__":
    sys.exit(main())
