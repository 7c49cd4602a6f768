"""Figures of the zoo and its clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from wspace.lab.report.drawing import COLOURS, FAINT, INK, axes, legend_below, looks
from wspace.lab.report.formats import real
from wspace.lab.report.words import first_runs, question

LEAVES = 45  # of a tree: with more, names would overlap
METHODS = {"tsne": "t-SNE", "mds": "MDS"}


def zoo(records: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    done = [record for record in records if record["status"] == "done"]
    tasks = list(dict.fromkeys(record["task"] for record in done))
    families = looks(list(dict.fromkeys(record["family"] for record in done)))
    if not tasks:
        return {}
    figure, panel = axes("Test accuracy of every model", "accuracy", height=1.3 + 0.24 * len(tasks))
    for record in done:
        place = tasks.index(record["task"])
        colour = families[record["family"]][0]
        panel.plot(record["test_accuracy"], place, "o", color=colour, alpha=0.75, markersize=5)
        panel.plot(record["base_rate"], place, "|", color=INK, markersize=10, markeredgewidth=1.5)
    panel.set_yticks(range(len(tasks)), tasks)
    panel.set(xlim=(0, 1.02), ylim=(len(tasks) - 0.5, -0.5))
    handles = [_dot(colour, name) for name, (colour, _) in families.items()]
    commonest = Line2D(
        [], [], linestyle="", marker="|", color=INK, markersize=9, label="commonest label"
    )
    legend_below(figure, panel, 3, [*handles, commonest])
    return {"zoo-accuracy": figure}


def clusters(found: Mapping[str, Any]) -> dict[str, Figure]:
    figures: dict[str, Figure] = {}
    for run in first_runs(found):
        for method, title in METHODS.items():
            if method in run.get("embedding", {}):
                figures[f"clusters-{run['name']}-{method}"] = _map(run, method, title)
    trees = [run for run in found["runs"] if run.get("linkage")]
    if trees:
        figures["clusters-tree"] = _tree(trees[0])
    if found["per_layer"]:
        figures["clusters-layers"] = _layers(found["per_layer"])
        figures["clusters-layer-shares"] = _shares(found["per_layer"])
    return figures


def _map(run: Mapping[str, Any], method: str, title: str) -> Figure:
    """The truth inside, the cluster's name around it, as in the paper's Figure 2."""
    truth, scores = run["truth"], run["scores"]
    groups = list(dict.fromkeys(truth))
    look = looks(groups)
    names = scores["majority"]["names"]
    at = np.array(run["embedding"][method], float)
    figure, panel = axes(f"Models by {question(run['name'])}, {title} of cosine distances",
                         f"{title} 1", f"{title} 2", height=4.6)  # fmt: skip
    for (x, y), group, label in zip(at, truth, run["labels"], strict=True):
        colour, marker = look[group]
        ring = look[names[str(label)]][0]
        panel.plot(x, y, marker, color=colour, markersize=9.5, markeredgecolor=ring,
                   markeredgewidth=0)  # fmt: skip
        panel.plot(x, y, marker, color="none", markersize=14, markeredgecolor=ring,
                   markeredgewidth=1.6)  # fmt: skip
    panel.margins(0.1)
    panel.tick_params(labelbottom=False, labelleft=False, length=0)
    handles = [_dot(colour, name, marker) for name, (colour, marker) in look.items()]
    legend_below(figure, panel, 2 if max(map(len, groups)) > 14 else 3, handles)
    panel.text(1, 0.0, "inside: truth   ring: its cluster's name", transform=panel.transAxes,
               ha="right", va="bottom", fontsize=7.5, color=FAINT)  # fmt: skip
    return figure


def _tree(run: Mapping[str, Any]) -> Figure:
    from scipy.cluster.hierarchy import dendrogram

    n = len(run["members"])
    tasks = run["tasks"]
    look = looks(list(dict.fromkeys(tasks)))
    figure, panel = axes("Ward's tree of directions", "distance at which two groups join",
                         height=1.2 + min(0.17, 8 / n) * n)  # fmt: skip
    drawn = dendrogram(
        np.array(run["linkage"], float), orientation="left", ax=panel, no_labels=True,
        color_threshold=0, above_threshold_color=FAINT,
    )  # fmt: skip
    order = drawn["leaves"]
    for place, leaf in enumerate(order):
        colour, marker = look[tasks[leaf]]
        panel.plot([0], [10 * place + 5], marker, color=colour, markersize=5, clip_on=False)
    panel.grid(axis="y", visible=False)
    panel.spines["left"].set_visible(False)
    if n <= LEAVES:
        panel.yaxis.tick_right()
        panel.set_yticks([10 * place + 5 for place in range(n)],
                         [run["members"][leaf] for leaf in order], fontsize=7.5)  # fmt: skip
        panel.tick_params(axis="y", length=0, pad=7)
    else:
        panel.set_yticks([])
        handles = [_dot(colour, name, marker) for name, (colour, marker) in look.items()]
        legend_below(figure, panel, 3, handles)
    return figure


def _layers(rows: Sequence[Mapping[str, Any]]) -> Figure:
    figure, panel = axes("Each part of the model by itself", "part (layers by number)",
                         "share, or cosine", height=3.4)  # fmt: skip
    place = range(len(rows))
    curves = {
        "accuracy of clusters by data set": ("accuracy", "o-"),
        "cosine within a data set": ("same", "s-"),
        "cosine between data sets": ("across", "^-"),
    }
    for (label, (key, kind)), colour in zip(curves.items(), COLOURS, strict=False):
        panel.plot(place, [real(row[key]) for row in rows], kind, color=colour, label=label,
                   markersize=5)  # fmt: skip
    _parts(panel, rows)
    low = min(0.0, *(real(row["across"]) for row in rows)) - 0.03
    panel.set_ylim(low, 1.05)
    legend_below(figure, panel, 1)
    return figure


def _shares(rows: Sequence[Mapping[str, Any]]) -> Figure:
    figure, panel = axes("Where fine-tuning moves the weights", "part (layers by number)",
                         "share of squared distance", height=3.0)  # fmt: skip
    squares = np.array([real(row["square"]) for row in rows])
    panel.bar(range(len(rows)), squares / squares.sum(), color=COLOURS[0], width=0.7)
    panel.grid(axis="x", visible=False)
    _parts(panel, rows)
    return figure


def _parts(panel: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    names = ["emb." if row["layer"] == "embeddings" else row["layer"] for row in rows]
    panel.set_xticks(range(len(rows)), names, fontsize=8.5 if len(rows) < 16 else 7)


def _dot(colour: str, label: str, marker: str = "o") -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, color=colour, markersize=6, label=label)
