"""The answers in short, one for each question that was asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wspace.lab.report.comparison import CLUSTERED
from wspace.lab.report.formats import (
    LEVELS,
    REGIMES,
    STARTS,
    counted,
    listed,
    number,
    percent,
    points,
    real,
)
from wspace.lab.report.words import ends_and_middle, first_runs, question


def headlines(results: Mapping[str, Any]) -> list[str]:
    """A sentence or two for each stage that was run."""
    stages = {
        "clusters": _clusters,
        "lines": _lines,
        "regions": _regions,
        "efficient": _efficient,
        "sizes": _sizes,
    }
    return [
        text for stage, say in stages.items() if results.get(stage) for text in say(results[stage])
    ]


def _clusters(found: Mapping[str, Any]) -> list[str]:
    runs = first_runs(found)
    if not runs:
        return []
    shares = [real(run["scores"]["majority"]["accuracy"]) for run in runs]
    parts = [
        f"{percent(share)} of {len(run['truth'])} are in a cluster of their own "
        f"{question(run['name'])} (k = {run['k']})"
        for run, share in zip(runs, shares, strict=True)
    ]
    tells = min(shares) >= CLUSTERED
    start = "Weights alone tell" if tells else "Weights alone do not always tell"
    return [f"{start} what a model was trained on: {listed(parts)}."]


def _lines(found: Mapping[str, Any]) -> list[str]:
    if not found["levels"]:
        return []
    changes = []
    for level in found["levels"]:
        ends, middle = ends_and_middle(level["inside"])
        changes.append(f"{100 * (middle / ends - 1):+.1f} % ({LEVELS[level['name']]})")
    said = [f"Halfway between two models the loss, against the mean of theirs: {listed(changes)}."]
    outer = [level["outside"] for level in found["levels"] if level["outside"]["pairs"]]
    if outer:
        above = [percent(side["summary"]["above_ends"]["mean"]) for side in outer]
        said.append(f"Beyond them, {listed(above)} of the points are worse than both.")
    return said


def _regions(found: Mapping[str, Any]) -> list[str]:
    chances = [
        f"{number(row['p'], 2)} ({LEVELS[level['name']]})"
        for level in found["levels"]
        for row in level["better"]
        if (row["first"], row["second"]) == ("inside", "in")
    ]
    if not chances:
        return []
    return [f"A random point between models is as good as one of them or better with a chance of "
            f"{listed(chances)}."]  # fmt: skip


def _efficient(found: Mapping[str, Any]) -> list[str]:
    groups: dict[tuple[str, Any], list[str]] = {}
    for row in found["summary"]:
        groups.setdefault((row["regime"], row["rows"]), []).append(
            f"{points(row['mean_gain'])} points from the {STARTS[row['start']]} "
            f"({row['wins']} of {counted(row['n'], 'target')} better, {row['losses']} worse)"
        )
    return [
        f"BitFit on {count} rows, {REGIMES[regime]} regime, gains over the pretrained start "
        f"{listed(gains)}."
        for (regime, count), gains in groups.items()
    ]


def _sizes(found: Mapping[str, Any]) -> list[str]:
    if not found["models"]:
        return []
    by_task, by_size = (real(found[key]["majority"]["accuracy"]) for key in ("k_tasks", "k_sizes"))
    return [
        f"Models trained on few and on many rows cluster by data set ({percent(by_task)}) "
        f"{'rather than' if by_task > by_size else 'no more than'} by number of rows "
        f"({percent(by_size)})."
    ]
