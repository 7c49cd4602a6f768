"""Whether budgets of memory hold under a hard limit: ``python -m bench.budgets WORK``.

Every command over zoos many times as large as its budget; tensors of 8 GiB; 100,000 small tensors.
Each runs in a process that may have no more than what it has at its start, the budget, and
``limited.MARGIN``. A case holds its budget if the command succeeds and its peak is within it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import limits
from bench.budget_cases import MIB, commands, make_zoo, sparse_zoo, warming, within
from bench.limited import MARGIN, Limited, Outcome

RESULTS = Path(__file__).parent / "results"

SIZES = {2: 128, 16: 64, 64: 32}
"""MiB of a model, by how many there are; half of them in one tensor."""

HUGE = {"model.embed_tokens.weight": (1 << 20, 4096), "model.norm.weight": (4096,)}
SMALL = {f"model.layers.{k // 100}.experts.{k % 100}.weight": (8, 8) for k in range(100_000)}


class Case(NamedTuple):
    name: str
    command: Sequence[object]
    budget: int


def of_many_models(work: Path) -> Iterator[Case]:
    for n, size in SIZES.items():
        zoo = make_zoo(work / f"zoo-{n}", n, size)
        for name, command in commands(zoo, n, work):
            yield Case(f"{name}, {n} models of {size} MiB", command, 32 * MIB)
        shutil.rmtree(zoo)


def of_a_huge_tensor(work: Path) -> Iterator[Case]:
    found = dict(commands(sparse_zoo(work / "huge", 2, HUGE), 2, work))
    for name in ("statistics", "distances", "linear", "ties"):
        yield Case(f"{name}, a tensor of 8 GiB in each of 3 models", found[name], 64 * MIB)


def of_small_tensors(work: Path) -> Iterator[Case]:
    found = dict(commands(sparse_zoo(work / "small", 2, SMALL), 2, work))
    of = "100,000 tensors in each of 3 models"
    for name in ("distances", "merge", "ties"):
        yield Case(f"{name}, {of}", found[name], 512 * MIB)
    yield Case(f"check, {of}", ["check", work / "ties.yml"], 512 * MIB)


PARTS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "models": of_many_models, "huge": of_a_huge_tensor, "small": of_small_tensors,
}  # fmt: skip


def judged(case: Case, outcome: Outcome) -> dict[str, object]:
    """What came of a case, for the results."""
    held = outcome.status == 0 and outcome.peak <= case.budget
    found = {
        "case": case.name, "budget": case.budget, "hard_limit": outcome.limit,
        "peak": outcome.peak, "cpu_seconds": round(outcome.seconds, 2),
        "outcome": "held" if held else "failed" if outcome.status else "exceeded",
    }  # fmt: skip
    if outcome.status:
        found["said"] = outcome.err.strip()[-300:]
    taken = f"{outcome.peak / MIB:.1f} of {case.budget / MIB:.0f} MiB"
    print(f"{found['outcome']}: {case.name}: {taken}", flush=True)
    return found


def run(limited: Limited, case: Case, work: Path) -> Iterator[dict[str, object]]:
    """The case; what it wrote is verified, and deleted."""
    out = work / "out"
    out.mkdir()
    yield judged(case, limited.run(within(case.command, case.budget), out, case.budget))
    made = sorted(path.parent for path in out.glob("*/wspace.json"))
    if made:
        again = Case(f"verify: {case.name}", ["verify", *made], case.budget)
        yield judged(again, limited.run(again.command, out, case.budget))
    shutil.rmtree(out)


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.budgets")
    parser.add_argument("work", type=Path, help="a new folder for zoos and outputs: 12 GB")
    parser.add_argument("--only", choices=PARTS, help="keep the others as they were found")
    options = parser.parse_args(given)
    place = RESULTS / limits.machine_name() / "budgets.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": limits.machine(), "margin": MARGIN}
    if options.only and place.is_file():
        report = json.loads(place.read_text()) | report
    options.work.mkdir(parents=True)
    with Limited(options.work, warming(options.work / "warm")) as limited:
        for part in [options.only] if options.only else PARTS:
            cases = PARTS[part](options.work)
            report[part] = [found for case in cases for found in run(limited, case, options.work)]
    shutil.rmtree(options.work)
    place.write_text(json.dumps(report, indent=1) + "\n")
    outcomes = Counter(found["outcome"] for part in PARTS for found in report.get(part, ()))
    print(dict(outcomes))
    return 0 if outcomes.keys() == {"held"} else 1


if __name__ == "__main__":
    sys.exit(main())
