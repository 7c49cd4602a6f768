"""What the kernels are to reach, as ratios to limits of the same run, and whether they did."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from bench.gpu_passes import GRAM, MERGE, READER

OURS = "wkernels"


class Goal(NamedTuple):
    """All benchmarks whose names match must reach ``least`` in the median."""

    what: str
    least: float
    benchmarks: str  # a regular expression
    limit: str  # of the ratio; or with "faster than ", an arm of the same benchmark


GOALS = (
    Goal("weighted sum, 2..16 models, one output, of copy", 0.95,
         r"weighted sum, \d+ models, 1 mixes", "copy"),
    Goal("weighted sum, 2..16 models, 8 outputs, of copy", 0.90,
         r"weighted sum, \d+ models, 8 mixes", "copy"),
    Goal("state dicts by pointer table, of copy", 0.92, r"weighted sum of state dicts", "copy"),
    Goal("row statistics, of read", 0.95, r"row statistics", "read"),
    Goal("Gram, resident, n <= 32, bfloat16, of read", 0.85, r"fast Gram, (8|16|32) rows", "read"),
    Goal("Gram, resident, n = 256, of the smaller of read and bfloat16 product", 0.5,
         r"fast Gram, 256 rows", "read, bfloat16 product"),
    Goal("counts of a digit and sums of what is kept, of read", 0.8,
         r"(counts of a digit|sums of what is kept),", "read"),
    Goal("joins of what is kept, of copy", 0.8, r"join, ", "copy"),
    Goal("joins of what is kept, times faster than torch", 4.0, r"join, ", "faster than torch"),
    Goal("Gram while streaming, n <= 500, exact: transfer time of wall time", 0.95, GRAM,
         "reading only"),
    Goal("page cache to device, of host to device", 0.85, READER, "host to device"),
    Goal("merge from page cache to written shards: slowest stage of wall time", 1 / 1.15, MERGE,
         "the slowest stage"),
    Goal("weighted sum, 8 models, times faster than stack and sum", 4.0,
         r"weighted sum, 8 models, 1 mixes", "faster than stack and sum"),
    Goal("weighted sum, 8 models, times faster than torch.compile", 1.0,
         r"weighted sum, 8 models, 1 mixes", "faster than torch.compile"),
)  # fmt: skip

CALL_MICROSECONDS = 50.0
CALL = "host time of a launch, microseconds"
CALLS = ("launch, arena", "launch, table")


class Verdict(NamedTuple):
    """``found`` is the least of the matching benchmarks' medians; None: not measured."""

    what: str
    goal: str
    found: float | None
    met: bool | None


def verdicts(data: Mapping[str, Any]) -> list[Verdict]:
    """Every goal, judged by a report's data. Half of a goal's benchmarks is not measured either."""
    judged = []
    for goal in GOALS:
        matching = [r for r in data["benchmarks"] if re.match(goal.benchmarks, r["name"])]
        found = [_found(goal, result) for result in matching]
        measured = [value for value in found if value is not None]
        least = min(measured) if measured and len(measured) == len(found) else None
        met = None if least is None else least >= goal.least
        judged.append(Verdict(goal.what, f">= {goal.least:.2f}", least, met))
    calls = data["microseconds_a_call"]
    worst = max(calls[name]["median"] for name in CALLS) if set(CALLS) <= set(calls) else None
    met = None if worst is None else worst < CALL_MICROSECONDS
    judged.append(Verdict(CALL, f"< {CALL_MICROSECONDS:.0f}", worst, met))
    return judged


def _found(goal: Goal, result: Mapping[str, Any]) -> float | None:
    seconds = result["seconds"]
    if OURS not in seconds:
        return None
    if goal.limit.startswith("faster than "):
        other = goal.limit.removeprefix("faster than ")
        if other not in seconds:
            return None
        return seconds[other]["median"] / seconds[OURS]["median"]
    ratios = result["ratios"][OURS]
    names = goal.limit.split(", ")
    if any(name not in ratios for name in names):
        return None
    # the smaller of two limits is the one it comes nearer to
    return max(ratios[name]["median"] for name in names)


def as_markdown(data: Mapping[str, Any]) -> list[str]:
    lines = ["## Goals", "", "| what | goal | found | |", "|---|---|---|---|"]
    words = {True: "met", False: "not met", None: "not measured"}
    for verdict in verdicts(data):
        found = "" if verdict.found is None else f"{verdict.found:.2f}"
        lines.append(f"| {verdict.what} | {verdict.goal} | {found} | {words[verdict.met]} |")
    return lines
