"""The paper's claims beside what was found here: does each point the same way?

Source of the paper's numbers: arXiv 2302.04863, sections 4 to 7, appendices C, F and H.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from wspace.lab.report.formats import (
    LEVELS,
    NOTHING,
    REGIMES,
    STARTS,
    number,
    percent,
    points,
    real,
)
from wspace.lab.report.words import ends_and_middle, first_runs, question

CLUSTERED = 0.8  # share of models in a cluster of their own group that counts as clustered
PAPER_F1 = 0.65  # mean, of four families
FLAT = 0.1  # of the members' loss: above it by no more than this, at their radius, is flat

PAPER_BETTER = {
    ("same-dataset", "in", "ex"): 1.0,
    ("same-dataset", "inside", "ex"): 1.0,
    ("same-dataset", "inside", "in"): 0.88,
    ("same-task", "in", "ex"): 0.753,
    ("same-task", "inside", "ex"): 1.0,
    ("same-task", "inside", "in"): 0.967,
    ("general", "in", "ex"): 0.898,
    ("general", "inside", "ex"): 1.0,
    ("general", "inside", "in"): 0.90,
}
NAMES = {"in": "In", "inside": "In'", "ex": "Ex"}


class Claim(NamedTuple):
    """One claim: what the paper found, what was found here, and whether that agrees."""

    claim: str
    paper: str
    here: str
    agrees: bool


def comparison(results: Mapping[str, Any]) -> list[Claim]:
    """The claims that the stages which were run can speak to."""
    claims: list[Claim] = []
    parts = {
        "clusters": _clusters,
        "lines": _lines,
        "regions": _regions,
        "edges": _edges,
        "efficient": _efficient,
        "sizes": _sizes,
    }
    for name, compare in parts.items():
        if results.get(name):
            claims += compare(results[name])
    return claims


def _clusters(found: Mapping[str, Any]) -> list[Claim]:
    claims = []
    for run in first_runs(found):
        title = f"models cluster by {question(run['name'])} (k = {run['k']})"
        scores = run["scores"]["majority"]
        accuracy, f1 = real(scores["accuracy"]), real(scores["mean_f1"])
        if question(run["name"]) == "family" and run["k"] == 4:  # the fourth: Twitter, a domain
            here = f"{percent(accuracy)}; mean F1 {percent(f1)}"
            claims.append(Claim(title, "mean F1 65 %", here, f1 >= CLUSTERED * PAPER_F1))
            continue
        paper = {3: "90 %"}.get(run["k"], NOTHING) if "family" in title else "98 %"
        claims.append(Claim(title, paper, percent(accuracy), accuracy >= CLUSTERED))
    return claims


def _lines(found: Mapping[str, Any]) -> list[Claim]:
    claims = []
    for level in found["levels"]:
        name = LEVELS[level["name"]]
        ends, middle = ends_and_middle(level["inside"])
        claims.append(
            Claim(
                f"midpoint no worse than the mean of the ends, {name}",
                "no worse",
                f"{number(middle)} against {number(ends)}",
                middle <= ends,
            )
        )
        if level["outside"]["pairs"]:
            above = real(level["outside"]["summary"]["above_ends"]["mean"])
            shown = f"{percent(above)} of points worse than both models"
            title = f"loss poor beyond the models, {name}"
            claims.append(Claim(title, "poor soon", shown, above > 0.5))
    return claims


def _regions(found: Mapping[str, Any]) -> list[Claim]:
    claims = []
    for level in found["levels"]:
        for row in level["better"]:
            pair = f"P_B({NAMES[row['first']]}, {NAMES[row['second']]})"
            p, low, high = (number(row[key], 2) for key in ("p", "low", "high"))
            paper = PAPER_BETTER[level["name"], row["first"], row["second"]]
            claims.append(
                Claim(
                    f"{pair}, {LEVELS[level['name']]}",
                    number(paper, 2),
                    f"{p} [{low} to {high}]",
                    real(row["p"]) > 0.5,
                )
            )
    return claims


def _edges(found: Mapping[str, Any]) -> list[Claim]:
    radius = found.get("radius")
    if not radius:
        return []
    members = real(radius["members"]["spread"]["mean"])
    factors = [real(f) for f in radius["factors"]]
    curves = {way: [real(v) for v in radius["ways"][way]["mean"]] for way in radius["ways"]}
    random = curves["random"]
    near = [loss for factor, loss in zip(factors, random, strict=True) if factor <= 1]
    flat = all(loss <= (1 + FLAT) * members for loss in near)
    shown = f"{number(near[-1] if near else math.nan)}, then up to {number(random[-1])}"
    last = factors[-1]
    return [
        Claim(
            "random directions: as the models to their radius, worse beyond",
            "yes",
            f"models {number(members)}; {shown}",
            flat and random[-1] > (1 + FLAT) * members,
        ),
        Claim(
            f"towards zero flatter than random directions, at {last:g} radii",
            "yes",
            f"{number(curves['origin'][-1])} against {number(random[-1])}",
            curves["origin"][-1] < random[-1],
        ),
    ]


def _efficient(found: Mapping[str, Any]) -> list[Claim]:
    claims = []
    for row in found["summary"]:
        # Of few rows the paper's gain is none to compare with: its table repeats, to two decimals,
        # the centroid's accuracies of all rows.
        whole = (row["start"], row["regime"], row["rows"]) == ("centroid", "paper", "all")
        paper = "+4.0; 9 won, 2 tied, 1 lost" if whole else NOTHING
        here = (
            f"{points(row['mean_gain'])}; {row['wins']} won, {row['ties']} tied, "
            f"{row['losses']} lost"
        )
        title = (
            f"BitFit from the {STARTS[row['start']]}, {REGIMES[row['regime']]} regime, "
            f"{row['rows']} rows"
        )
        agrees = real(row["mean_gain"]) > 0 and row["wins"] > row["losses"]
        claims.append(Claim(title, paper, here, agrees))
    return claims


def _sizes(found: Mapping[str, Any]) -> list[Claim]:
    if not found["models"]:
        return []
    by_task, by_size = (real(found[key]["majority"]["accuracy"]) for key in ("k_tasks", "k_sizes"))
    return [
        Claim(
            "clusters follow the data set, not the number of rows",
            "all but one model",
            f"{percent(by_task)} by data set, {percent(by_size)} by number of rows",
            by_task >= CLUSTERED and by_task > by_size,
        )
    ]
