"""What was found, in sentences that follow from the numbers: another number, another sentence."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

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

# A mean of losses that differs by less is called the same.
SAME = 0.005
SIGNIFICANT = 0.05

AFFINITIES = {"positive": "max(cos, 0)", "shifted": "(1 + cos) / 2"}
GROUPS = {"in": "the models", "inside": "points between them", "ex": "what lies outside"}


def findings(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """Sentences for each stage that was run, by its name."""
    stages = {
        "zoo": zoo,
        "clusters": clusters,
        "lines": lines,
        "regions": regions,
        "edges": edges,
        "efficient": efficient,
        "sizes": sizes,
    }
    said = {name: say(results[name]) for name, say in stages.items() if results.get(name)}
    if "zoo" in said:
        said["zoo"] += shared_rows(results.get("overlaps", []))
    return said


def zoo(records: Sequence[Mapping[str, Any]]) -> list[str]:
    done = [record for record in records if record["status"] == "done"]
    above = sum(record["test_accuracy"] > record["base_rate"] for record in done)
    tasks = len({record["task"] for record in done})
    families = len({record["family"] for record in done})
    said = [
        f"{counted(len(done), 'model')} of {counted(tasks, 'data set')} in "
        f"{counted(families, 'family', 'families')}; {above} of them beat the commonest label "
        "on the test rows."
    ]
    failed = [record["name"] for record in records if record["status"] != "done"]
    if failed:
        said.append(f"{counted(len(failed), 'training')} failed: {listed(failed)}.")
    return said


def shared_rows(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of the data sets as they are, before any choice of rows."""
    parts = [
        f"{one['rows']:,} of {one['of']:,} test rows of {one['test']} share a text with the "
        f"training rows of {one['train']}"
        for one in found
    ]
    return [f"Seen elsewhere: {listed(parts)}."] if parts else []


def first_runs(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Of each question, the run in the paper's own way: cosines, spectral clustering."""
    runs: dict[str, Mapping[str, Any]] = {}
    for run in found["runs"]:
        runs.setdefault(run["name"], run)
    return list(runs.values())


def question(name: str) -> str:
    """What a run of clustering asks for."""
    return "data set" if name == "same-dataset" else "family"


def clusters(found: Mapping[str, Any]) -> list[str]:
    said = []
    for run in first_runs(found):
        scores, n = run["scores"], len(run["truth"])
        right = real(scores["majority"]["accuracy"])
        commonest = max(Counter(run["truth"]).values()) / n
        what = question(run["name"])
        said.append(
            f"By the directions of their weights alone, {n} models in {run['k']} clusters: "
            f"{'every one' if right == 1 else percent(right)} lies in a cluster of its own {what}"
            f" ({scores['perfect']} of {scores['clusters']} clusters are exactly one {what}; "
            f"naming the commonest {what} each time would be right for {percent(commonest)})."
        )
        others = [
            (name, real(other["scores"]["majority"]["accuracy"]))
            for name, metric in (("Euclidean distances", "euclidean"), ("raw weights", "raw"))
            for other in found["runs"]
            if (other["name"], other["metric"], other["method"])
            == (run["name"], metric, "spectral")
        ]
        best: dict[str, float] = {}
        for name, accuracy in others:
            best[name] = max(accuracy, best.get(name, 0.0))
        if best:
            than = [f"{percent(accuracy)} by {name}" for name, accuracy in best.items()]
            said.append(f"In the same way it is {listed(than)}, against {percent(right)} by angle.")
        said.extend(_affinities(found, run))
    said.extend(_cosines(found["cosines"]))
    return said


def _affinities(found: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """The paper does not say how a cosine becomes an affinity: does the answer hang on it?"""
    right = {
        other["affinity"]: real(other["scores"]["majority"]["accuracy"])
        for other in found["runs"]
        if (other["name"], other["metric"], other["method"]) == (run["name"], "cosine", "spectral")
    }
    if len(set(right.values())) < 2:
        return []
    parts = [f"{percent(right[name])} by {AFFINITIES[name]}" for name in AFFINITIES]
    return [f"It hangs on how a cosine becomes an affinity: {listed(parts)}."]


def _cosines(found: Mapping[str, Any]) -> list[str]:
    names = {
        "same-dataset": "two models of one data set",
        "same-family": "two of one family",
        "across": "two of different families",
    }
    means = {name: real(found[name]["mean"]) for name in names if name in found}
    if len(means) < 2:
        return []
    values = list(means.values())
    falling = all(a > b for a, b in itertools.pairwise(values))
    return [
        f"The mean cosine of {listed([f'{names[k]} is {number(v)}' for k, v in means.items()])}: "
        + ("the nearer the data, the nearer the weights." if falling else "not in that order.")
    ]


def lines(found: Mapping[str, Any]) -> list[str]:
    said = []
    for level in found["levels"]:
        inside = level["inside"]
        ends, middle = ends_and_middle(inside)
        beat = sum(real(line["midpoint_gain"]) > 0 for line in inside["lines"])
        said.append(
            f"{LEVELS[level['name']].capitalize()} ({level['pair_title']}): halfway between two "
            f"models the loss is {number(middle)}, {_against(middle, ends)} the mean of the ends, "
            f"{number(ends)}; on {beat} of {counted(len(inside['pairs']), 'line')} it is below "
            "both ends."
        )
        if level["outside"]["pairs"]:
            said.append(_beyond(level["outside"]))
    return said


def ends_and_middle(inside: Mapping[str, Any]) -> tuple[float, float]:
    """Mean loss of the two ends, and halfway (linear between the points of the grid)."""
    at, mean = [real(a) for a in inside["alphas"]], [real(v) for v in inside["mean"]]
    return (mean[0] + mean[-1]) / 2, _between(at, mean, 0.5)


def _between(at: Sequence[float], values: Sequence[float], where: float) -> float:
    for k in range(1, len(at)):
        if at[k] >= where:
            share = (where - at[k - 1]) / (at[k] - at[k - 1])
            return values[k - 1] + share * (values[k] - values[k - 1])
    return math.nan


def _against(value: float, other: float) -> str:
    """How a loss stands to another."""
    if not math.isfinite(value) or not math.isfinite(other):
        return "not comparable with"
    change = value / other - 1
    if abs(change) < SAME:
        return "the same as"
    return f"{percent(abs(change), 1)} {'below' if change < 0 else 'above'}"


def _beyond(outside: Mapping[str, Any]) -> str:
    summary, n = outside["summary"], len(outside["pairs"])
    above = real(summary["above_ends"]["mean"])
    sides = []
    for side in ("left_reach", "right_reach"):
        reach = summary[side]
        if reach["n"]:
            sides.append(number(reach["mean"], 2))
    never = sum(summary[side]["never"] for side in ("left_reach", "right_reach"))
    text = f"Beyond the two models {percent(above)} of the points are worse than both of them"
    if sides:
        text += (
            "; the loss passes that of the pretrained encoder "
            f"{listed(sides)} distances beyond them on average"
        )
    return text + (f"; {never} of {2 * n} ways out never pass it." if never else ".")


def regions(found: Mapping[str, Any]) -> list[str]:
    said = []
    for level in found["levels"]:
        parts = []
        for row in level["better"]:
            parts.append(
                f"{GROUPS[row['first']]} against {GROUPS[row['second']]} {number(row['p'], 2)} "
                f"[{number(row['low'], 2)} to {number(row['high'], 2)}], {_verdict(row)}"
            )
        said.append(
            f"{LEVELS[level['name']].capitalize()} ({level['title']}): the chance to be better is "
            f"for {'; for '.join(parts)}."
        )
    return said


def _verdict(row: Mapping[str, Any]) -> str:
    low, high = real(row["low"]), real(row["high"])
    if low > 0.5:
        return "clearly better"
    return "clearly worse" if high < 0.5 else "no clear difference"


def edges(found: Mapping[str, Any]) -> list[str]:
    said, radius = [], found.get("radius")
    if radius:
        factors = [real(f) for f in radius["factors"]]
        members = real(radius["members"]["spread"]["mean"])
        center = real(radius["centroid"]["loss"][0])
        said.append(
            f"At the centre of {radius['title']} the loss is {number(center)}, "
            f"{_against(center, members)} the models' own, {number(members)}."
        )
        names = {"random": "In random directions", "origin": "Towards zero"}
        for way, start in names.items():
            curve = [real(v) for v in radius["ways"][way]["mean"]]
            near = _between(factors, curve, 1.0)
            said.append(
                f"{start} it is {number(near)} at the models' distance from the centre "
                f"({_against(near, members)} theirs) and {number(curve[-1])} at "
                f"{factors[-1]:g} times that distance."
            )
    plane = found.get("plane")
    if plane:
        losses = [real(v) for row in plane["loss"] for v in row]
        corners = [real(v) for v in plane["corner_losses"]["loss"]]
        lowest = min((v for v in losses if math.isfinite(v)), default=math.nan)
        said.append(
            f"In the plane of {listed(plane['models'])} the mean loss on "
            f"{listed(list(plane['tasks']))} is lowest at {number(lowest)}; at the three models it "
            f"is {listed([number(v) for v in corners])}."
        )
    return said


def efficient(found: Mapping[str, Any]) -> list[str]:
    said = []
    for row in found["summary"]:
        gain, p = real(row["mean_gain"]), row["sign_p"]
        better = "better" if gain > 0 else "worse" if gain < 0 else "no different"
        sure = (
            "more than chance would give"
            if p is not None and p < SIGNIFICANT
            else "not beyond chance with so few targets"
        )
        said.append(
            f"BitFit from the {STARTS[row['start']]}, {REGIMES[row['regime']]} regime, "
            f"{row['rows']} rows: {better} than from the pretrained model by {points(gain)} points "
            f"of mean accuracy over {counted(row['n'], 'target')} "
            f"({percent(row['pretrained_accuracy'], 1)} to {percent(row['accuracy'], 1)}); "
            f"{row['wins']} won, {row['ties']} tied, {row['losses']} lost, {sure}"
            + (f" (sign test, p = {number(p)})." if p is not None else ".")
        )
        parts = [
            f"{points(part['mean_gain'])} points over {counted(part['n'], 'target')} "
            f"{part['part']} ({part['wins']} won)"
            for part in found.get("parts", [])
            if all(part[key] == row[key] for key in ("regime", "rows", "start"))
            and part["n"] < row["n"]
        ]
        if parts:
            said.append(f"Of these {listed(parts)}.")
    return said


def sizes(found: Mapping[str, Any]) -> list[str]:
    if not found["models"]:
        return [f"Not run: {found['reason']}."]
    by_task = real(found["k_tasks"]["majority"]["accuracy"])
    by_size = real(found["k_sizes"]["majority"]["accuracy"])
    follow = "follow the data set, not" if by_task > by_size else "do not follow the data set above"
    return [
        f"Of {counted(len(found['models']), 'model')} trained on different numbers of rows, "
        f"{percent(by_task)} are in a cluster of their data set and {percent(by_size)}, with "
        f"clusters for the sizes, in one of their size: directions {follow} the amount of data."
    ]
