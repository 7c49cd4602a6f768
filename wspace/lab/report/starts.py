"""Figures of BitFit from several starts, and of models trained on different numbers of rows."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from wspace.lab.report.drawing import COLOURS, FAINT, INK, axes, legend_below
from wspace.lab.report.formats import REGIMES, STARTS
from wspace.lab.report.tables import by_setting


def efficient(found: Mapping[str, Any]) -> dict[str, Figure]:
    rates = {one["task"]: one["base_rate"] for one in found["targets"]}
    return {
        f"bitfit-{regime}-{count}": _targets(regime, count, accuracies, rates)
        for (regime, count), accuracies in by_setting(found).items()
    }


def _targets(regime: str, count: Any, accuracies: Mapping, rates: Mapping[str, float]) -> Figure:
    """A row a target: each seed a small dot, each start's mean a large one."""
    targets = list(dict.fromkeys(task for task, _ in accuracies))
    starts = [start for start in STARTS if any(key[1] == start for key in accuracies)]
    rows = "all rows" if count == "all" else f"{count} rows"
    figure, panel = axes(f"BitFit, {REGIMES[regime]} regime, {rows}", "test accuracy",
                         height=1.5 + 0.3 * len(targets))  # fmt: skip
    look = dict(zip(STARTS, zip((INK, *COLOURS), "oD^", strict=False), strict=False))
    for place, task in enumerate(targets):
        means = [fmean(accuracies[task, start]) for start in starts if (task, start) in accuracies]
        panel.plot([min(means), max(means)], [place] * 2, "-", color=FAINT, linewidth=1.5)
        panel.plot(rates[task], place, "|", color=FAINT, markersize=11, markeredgewidth=1.8)
        for start in starts:
            values = accuracies.get((task, start), [])
            colour, marker = look[start]
            panel.plot(
                values, [place] * len(values), marker, color=colour, markersize=3, alpha=0.45
            )
            if values:
                panel.plot(fmean(values), place, marker, color=colour, markersize=7,
                           label=f"from the {STARTS[start]}" if place == 0 else None)  # fmt: skip
    panel.plot([], [], "|", color=FAINT, markersize=9, markeredgewidth=1.8, label="commonest label")
    panel.set_yticks(range(len(targets)), targets)
    panel.set_ylim(len(targets) - 0.5, -0.5)
    legend_below(figure, panel, 1)
    return figure


def sizes(found: Mapping[str, Any]) -> dict[str, Figure]:
    if not found["models"]:
        return {}
    models = found["models"]
    cosines = np.array(found["cosines"], float)
    np.fill_diagonal(cosines, np.nan)
    n = len(models)
    figure, panel = axes("Cosines of models trained on few to many rows", height=4.6)
    panel.grid(False)
    shown = panel.imshow(cosines, cmap="viridis", vmin=min(0.0, np.nanmin(cosines)))
    figure.colorbar(shown, ax=panel, shrink=0.75).set_label("cosine")
    tasks = list(dict.fromkeys(model["task"] for model in models))
    middles = [
        float(np.mean([i for i, model in enumerate(models) if model["task"] == task]))
        for task in tasks
    ]
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_ticks(middles, tasks, fontsize=8)
    panel.tick_params(axis="x", rotation=90)
    panel.tick_params(length=0)
    counts = list(dict.fromkeys(str(model["size"]) for model in models))
    panel.set_xlabel(f"within each data set {', '.join(counts)} rows", fontsize=8.5)
    for k in range(1, n):
        if models[k]["task"] != models[k - 1]["task"]:
            for draw in (panel.axhline, panel.axvline):
                draw(k - 0.5, color="white", linewidth=1)
    return {"sizes-cosines": figure}
