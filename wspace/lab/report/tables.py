"""The tables of a report: texts in rows, made of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from wspace.lab.report.formats import (
    LEVELS,
    NOTHING,
    REGIMES,
    STARTS,
    number,
    percent,
    points,
    with_spread,
)
from wspace.lab.report.words import first_runs, question


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]


def tables(results: Mapping[str, Any]) -> dict[str, list[Table]]:
    """Tables for each stage that was run, by its name."""
    stages = {
        "zoo": zoo,
        "clusters": clusters,
        "lines": lines,
        "regions": regions,
        "edges": edges,
        "efficient": efficient,
        "sizes": sizes,
    }
    return {name: make(results[name]) for name, make in stages.items() if results.get(name)}


def zoo(records: Sequence[Mapping[str, Any]]) -> list[Table]:
    rows = []
    done = [record for record in records if record["status"] == "done"]
    for task in dict.fromkeys(record["task"] for record in done):
        own = [record for record in done if record["task"] == task]
        first = own[0]
        test, validation = (
            with_spread(*_mean_sd([record[f"{split}_accuracy"] for record in own]))
            for split in ("test", "validation")
        )
        steps = fmean(record["steps"] for record in own)
        rows.append(
            [task, first["family"], str(len(own)), str(first["rows"]), f"{steps:.0f}", test,
             validation, number(first["base_rate"])]
        )  # fmt: skip
    columns = (
        "data set", "family", "models", "rows", "steps", "test accuracy", "validation accuracy",
        "commonest label",
    )  # fmt: skip
    return [Table("The zoo", columns, rows)]


def clusters(found: Mapping[str, Any]) -> list[Table]:
    rows = [
        [
            question(run["name"]), str(run["k"]), str(len(run["truth"])), run["metric"],
            run["method"] + (f", {run['affinity']}" if run["affinity"] else ""),
            percent(run["scores"]["majority"]["accuracy"], 1),
            percent(run["scores"]["hungarian"]["accuracy"], 1),
            *(number(run["scores"][name]["mean_f1"], 2) for name in ("majority", "hungarian")),
            number(run["scores"]["ari"], 2), number(run["scores"]["nmi"], 2),
        ]
        for run in found["runs"]
    ]  # fmt: skip
    columns = (
        "by", "k", "models", "of", "method", "accuracy", "one to one", "F1", "F1, one to one",
        "ARI", "NMI",
    )  # fmt: skip
    made = [Table("Clusters found from the weights", columns, rows)]
    for run in first_runs(found):
        scores = run["scores"]
        rows = [
            [group, str(run["truth"].count(group)), number(scores["majority"]["f1"][group], 2),
             number(scores["hungarian"]["f1"][group], 2)]
            for group in scores["groups"]
        ]  # fmt: skip
        what = question(run["name"])
        title = f"F1 of each {what}, by cosine and spectral clustering (k = {run['k']})"
        columns = (what, "models", "F1", "F1, one to one")
        made.append(Table(title, columns, rows))
    names = {"same-dataset": "one data set", "same-family": "one family", "across": "two families"}
    rows = [
        [names[name], str(row["n"]), with_spread(row["mean"], row["sd"]), number(row["min"]),
         number(row["max"]), number(found["raw_cosines"][name]["mean"], 6)]
        for name, row in found["cosines"].items()
    ]  # fmt: skip
    columns = ("pairs of", "pairs", "cosine", "least", "greatest", "of raw weights")
    return [*made, Table("Cosines of task vectors", columns, rows)]


def lines(found: Mapping[str, Any]) -> list[Table]:
    inside, outside = [], []
    for level in found["levels"]:
        side = level["inside"]["summary"]
        inside.append(
            [LEVELS[level["name"]], level["pair_title"], str(len(level["inside"]["pairs"])),
             *(_spread(side[key]) for key in ("barrier", "midpoint_gain", "mean_gain")),
             _spread(side["best_alpha"], 2), _spread(side["flat_width"], 2)]
        )  # fmt: skip
        side = level["outside"]["summary"]
        if level["outside"]["pairs"]:
            outside.append(
                [LEVELS[level["name"]], level["pair_title"], str(len(level["outside"]["pairs"])),
                 percent(side["above_ends"]["mean"]), _reach(side["left_reach"]),
                 _reach(side["right_reach"]), _spread(side["flat_width"], 2)]
            )  # fmt: skip
    columns = (
        "level", "pairs of", "pairs", "barrier", "gain on the better end", "gain on their mean",
        "best α", "flat width in α",
    )  # fmt: skip
    made = [Table("Between two models (losses, mean ± standard deviation)", columns, inside)]
    columns = (
        "level", "pairs of", "pairs", "points worse than both", "reach beyond α = 0",
        "reach beyond α = 1", "flat width in α",
    )  # fmt: skip
    return [
        *made,
        Table("Beyond two models (reach in distances between the two)", columns, outside),
    ]


def regions(found: Mapping[str, Any]) -> list[Table]:
    names = {"in": "In", "inside": "In'", "ex": "Ex"}
    rows, losses = [], []
    for level in found["levels"]:
        for kind, key in (("mean loss", "better"), ("loss / log(labels)", "relative_better")):
            rows += [
                [LEVELS[level["name"]], kind, f"{names[row['first']]}, {names[row['second']]}",
                 number(row["p"], 3), f"{number(row['low'], 2)} to {number(row['high'], 2)}",
                 number(row["half_tie"], 3), f"{row['n']} x {row['m']}", str(row["not_finite"])]
                for row in level[key]
            ]  # fmt: skip
        losses += [
            [LEVELS[level["name"]], names[name], str(group["spread"]["n"]),
             *(_spread(group["spread"]), number(group["spread"]["min"])),
             number(group["spread"]["max"])]
            for name, group in level["groups"].items()
        ]  # fmt: skip
        for name in ("centroid", "pretrained"):
            loss = number(level[name]["loss"][0])
            losses.append([LEVELS[level["name"]], name, "1", loss, loss, loss])
    columns = ("level", "of", "P_B of", "P_B", "95 % interval", "ties half", "pairs", "not finite")
    return [
        Table("Probability of a loss as good or better", columns, rows),
        Table("Losses of the groups", ("level", "group", "points", "loss", "least", "greatest"),
              losses),
    ]  # fmt: skip


def edges(found: Mapping[str, Any]) -> list[Table]:
    radius = found.get("radius")
    if not radius:
        return []
    names = {"random": "random", "member": "through the models", "origin": "towards zero"}
    rows = [
        [names[way], *(number(value) for value in radius["ways"][way]["mean"])]
        for way in radius["ways"]
    ]
    columns = ("direction", *(f"{factor:g} r" for factor in radius["factors"]))
    title = (
        f"Mean loss at multiples of the models' distance r = {number(radius['member_radius'], 2)} "
        f"from the centre of {radius['title']}"
    )
    return [Table(title, columns, rows)]


def efficient(found: Mapping[str, Any]) -> list[Table]:
    columns = (
        "regime", "rows", "start", "targets", "from pretrained", "from it", "gain, points", "sd",
        "won / tied / lost", "Wilcoxon p", "sign p",
    )  # fmt: skip
    title = "Gain of the start over the pretrained model"
    made = [Table(title, columns, [_gain(row) for row in found["summary"]])]
    if found.get("parts"):
        rows = [[row["part"], *_gain(row)] for row in found["parts"]]
        made.append(Table(f"{title}, by kind of target", ("targets that are", *columns), rows))
    for (regime, count), accuracies in by_setting(found).items():
        starts = list(dict.fromkeys(start for _, start in accuracies))
        targets = list(dict.fromkeys(task for task, _ in accuracies))
        rates = {one["task"]: one["base_rate"] for one in found["targets"]}
        rows = []
        for task in targets:
            base = accuracies.get((task, "pretrained"))
            row = [task, percent(rates[task], 1)]
            for start in starts:
                own = accuracies.get((task, start))
                shown = NOTHING if own is None else with_percent(own)
                if own and base and start != "pretrained":
                    shown += f" ({points(fmean(own) - fmean(base))})"
                row.append(shown)
            rows.append(row)
        title = f"Accuracy after BitFit, {REGIMES[regime]} regime, {count} rows"
        columns = ("target", "commonest label", *(STARTS[start] for start in starts))
        made.append(Table(title, columns, rows))
    return made


def _gain(row: Mapping[str, Any]) -> list[str]:
    sd = NOTHING if row["sd"] is None else f"{100 * row['sd']:.1f}"
    return [
        REGIMES[row["regime"]], str(row["rows"]), STARTS[row["start"]], str(row["n"]),
        percent(row["pretrained_accuracy"], 1), percent(row["accuracy"], 1),
        points(row["mean_gain"]), sd, f"{row['wins']} / {row['ties']} / {row['losses']}",
        number(row["wilcoxon_p"]), number(row["sign_p"]),
    ]  # fmt: skip


def by_setting(found: Mapping[str, Any]) -> dict[tuple[str, Any], dict[tuple[str, str], list]]:
    """``(regime, rows) -> (task, start) -> accuracies, one for each seed``."""
    groups: dict[tuple[str, Any], dict[tuple[str, str], list]] = {}
    for one in found["targets"]:
        if one["status"] == "done":
            group = groups.setdefault((one["regime"], one["rows"]), {})
            group.setdefault((one["task"], one["start"]), []).append(one["accuracy"])
    return groups


def with_percent(accuracies: Sequence[float]) -> str:
    mean, sd = _mean_sd(accuracies)
    return f"{100 * mean:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}") + " %"


def sizes(found: Mapping[str, Any]) -> list[Table]:
    if not found["models"]:
        return []
    rows = [
        [name, str(found[key]["clusters"]), percent(found[key]["majority"]["accuracy"], 1),
         percent(found[key]["hungarian"]["accuracy"], 1), number(found[key]["ari"], 2)]
        for name, key in (("data sets", "k_tasks"), ("numbers of rows", "k_sizes"))
    ]  # fmt: skip
    columns = ("clusters for", "k", "accuracy", "one to one", "ARI")
    return [Table("Clusters of models trained on different numbers of rows", columns, rows)]


def _spread(row: Mapping[str, Any], digits: int = 3) -> str:
    return with_spread(row["mean"], row["sd"], digits) if row["n"] else NOTHING


def _reach(row: Mapping[str, Any]) -> str:
    return _spread(row, 2) + (f" ({row['never']} never)" if row["never"] else "")


def _mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    return fmean(values), stdev(values) if len(values) > 1 else None
