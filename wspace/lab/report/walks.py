"""Figures of losses along lines, in regions and at their edges."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wspace.lab.report.drawing import COLOURS, FAINT, INK, axes, legend_below
from wspace.lab.report.formats import LEVELS, real

LOSS = "generalized loss (nats)"
WIDE = 20  # the greatest loss over the least


def lines(found: Mapping[str, Any]) -> dict[str, Figure]:
    figures = {}
    for level in found["levels"]:
        figures[f"interpolation-{level['name']}"] = _inside(level)
        if level["outside"]["pairs"]:
            figures[f"extrapolation-{level['name']}"] = _outside(level)
    return figures


def _inside(level: Mapping[str, Any]) -> Figure:
    side = level["inside"]
    figure, panel = axes(f"Between two models: {LEVELS[level['name']]}",
                         f"α, the first model's share ({level['pair_title']})", LOSS)  # fmt: skip
    _band(panel, side["alphas"], side["mean"], side["sd"], len(side["pairs"]))
    _pretrained(panel, real(level["pretrained"]["loss"][0]), _numbers(side["mean"]))
    panel.set_xlim(0, 1)
    legend_below(figure, panel)
    return figure


def _outside(level: Mapping[str, Any]) -> Figure:
    side = level["outside"]
    figure, panel = axes(f"Beyond two models: {LEVELS[level['name']]}",
                         f"α, the first model's share ({level['pair_title']})", LOSS)  # fmt: skip
    inside = level["inside"]
    at = [*(real(a) for a in side["alphas"]), *(real(a) for a in inside["alphas"])]
    order = np.argsort(at, kind="stable")
    mean, sd = (np.array([*_numbers(side[key]), *_numbers(inside[key])])[order]
                for key in ("mean", "sd"))  # fmt: skip
    _band(panel, np.array(at)[order], mean, sd, len(side["pairs"]))
    base = real(level["pretrained"]["loss"][0])
    panel.axhline(base, color=INK, linestyle=":", linewidth=1.3, label="pretrained encoder")
    panel.axvspan(0, 1, color=FAINT, alpha=0.25, linewidth=0, label="between the models")
    limit = max(abs(a) for a in at)
    _log_if_wide(panel.set_yscale, [*mean, base])
    panel.set_xscale("symlog", linthresh=1, linscale=0.6, base=2)
    ticks = [sign * 2**k for k in range(0, 1 + int(np.log2(limit)), 2) for sign in (-1, 1)]
    panel.set_xticks(sorted([0, *ticks]), [f"{tick:g}" for tick in sorted([0, *ticks])])
    panel.minorticks_off()
    legend_below(figure, panel)
    return figure


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.array([real(value) for value in values])


def _band(panel: Axes, at: Any, mean: Any, sd: Any, n: int) -> None:
    middle, around = _numbers(mean), np.nan_to_num(_numbers(sd))
    name = f"mean of {n} lines" if n > 1 else "one line"
    panel.plot(at, middle, "o-", color=COLOURS[0], markersize=4, label=name)
    panel.fill_between(at, middle - around, middle + around, color=COLOURS[0], alpha=0.22,
                       linewidth=0, label="± standard deviation" if n > 1 else None)  # fmt: skip


def _pretrained(panel: Axes, base: float, curve: np.ndarray) -> None:
    """The base's loss, where showing it would not flatten the curve."""
    extent = np.nanmax(curve) - np.nanmin(curve)
    near = np.nanmin(curve) - 4 * extent <= base <= np.nanmax(curve) + 4 * extent
    if near:
        panel.axhline(base, color=INK, linestyle=":", linewidth=1.3, label="pretrained encoder")
    else:
        panel.plot([], [], ":", color=INK, label=f"pretrained encoder: {base:.3f}")


def regions(found: Mapping[str, Any]) -> dict[str, Figure]:
    return {f"regions-{level['name']}": _groups(level) for level in found["levels"]}


def _groups(level: Mapping[str, Any]) -> Figure:
    """Every loss a dot, the middle half a bar."""
    outer = "random" if level["exterior"] == "random" else "other models"
    names = {"in": "In: models", "inside": "In': between them", "ex": f"Ex: {outer}"}
    figure, panel = axes(f"In, between and outside: {LEVELS[level['name']]}", LOSS, height=3.0)
    draw = np.random.default_rng(0)
    for place, (name, label) in enumerate(names.items()):
        losses = _numbers(level["groups"][name]["loss"])
        shown = losses[np.isfinite(losses)]
        colour = COLOURS[place]
        jitter = draw.uniform(-0.16, 0.16, len(shown))
        panel.plot(shown, place + jitter, "o", color=colour, alpha=0.6, markersize=4.5)
        if len(shown):
            low, middle, high = np.quantile(shown, [0.25, 0.5, 0.75])
            panel.plot([low, high], [place + 0.3] * 2, "-", color=colour, linewidth=4)
            panel.plot([middle], [place + 0.3], "|", color=INK, markersize=9, markeredgewidth=1.8)
        names[name] = f"{label}\n({len(losses)} points)"
    for name, mark in (("centroid", "-"), ("pretrained", ":")):
        panel.axvline(real(level[name]["loss"][0]), color=INK, linestyle=mark, linewidth=1.2,
                      label=name)  # fmt: skip
    panel.set_yticks(range(3), list(names.values()), fontsize=8.5)
    panel.set_ylim(2.55, -0.45)
    losses = _numbers([v for name in names for v in level["groups"][name]["loss"]])
    _log_if_wide(panel.set_xscale, losses)
    legend_below(figure, panel)
    return figure


def _log_if_wide(set_scale: Callable[[str], None], values: Sequence[float] | np.ndarray) -> None:
    """A logarithmic axis where the greatest loss would press the others flat."""
    numbers = np.asarray(values)
    finite = numbers[np.isfinite(numbers)]
    if len(finite) and finite.min() > 0 and finite.max() > WIDE * finite.min():
        set_scale("log")


def edges(found: Mapping[str, Any]) -> dict[str, Figure]:
    figures = {}
    if found.get("radius"):
        figures["edges-directions"] = _directions(found["radius"])
    if found.get("plane"):
        figures["edges-plane"] = _plane(found["plane"])
    return figures


def _directions(radius: Mapping[str, Any]) -> Figure:
    factors = [0.0, *(real(f) for f in radius["factors"])]
    center = real(radius["centroid"]["loss"][0])
    figure, panel = axes(f"Away from the centre of {radius['title']}",
                         "distance from the centre, in the models' own", LOSS)  # fmt: skip
    names = {"random": "random directions", "member": "through the models",
             "origin": "towards zero"}  # fmt: skip
    for (way, label), colour, marker in zip(names.items(), COLOURS, "os^", strict=False):
        curves = np.array([_numbers(curve) for curve in radius["ways"][way]["loss"]])
        mean = [center, *curves.mean(axis=0)]
        panel.plot(factors, mean, f"{marker}-", color=colour, markersize=4.5, label=label)
        if len(curves) > 1:
            low, high = curves.min(axis=0), curves.max(axis=0)
            panel.fill_between(factors, [center, *low], [center, *high], color=colour, alpha=0.18,
                               linewidth=0)  # fmt: skip
    panel.axhline(real(radius["members"]["spread"]["mean"]), color=INK, linewidth=1.1,
                  label="the models")  # fmt: skip
    panel.axhline(real(radius["pretrained"]["loss"][0]), color=INK, linestyle=":", linewidth=1.3,
                  label="pretrained encoder")  # fmt: skip
    near = factors[1]
    panel.set_xscale("symlog", linthresh=near, linscale=0.5, base=2)
    _log_if_wide(
        panel.set_yscale,
        [center, *(v for way in names for v in _numbers(radius["ways"][way]["mean"]))],
    )
    panel.set_xticks(factors, [f"{factor:g}" for factor in factors])
    panel.minorticks_off()
    legend_below(figure, panel)
    return figure


def _plane(plane: Mapping[str, Any]) -> Figure:
    losses = np.array([_numbers(row) for row in plane["loss"]])
    figure, panel = axes("The plane of three models", "distance in weight space",
                         "distance in weight space", height=4.1)  # fmt: skip
    panel.grid(False)
    finite = losses[np.isfinite(losses)]
    # far corners may be many times worse: the colours keep to where the models are
    top = min(finite.max(), np.quantile(finite, 0.9)) if len(finite) else 1.0
    shown = np.where(np.isfinite(losses), losses, finite.max() if len(finite) else 1.0)
    filled = panel.contourf(plane["x"], plane["y"], np.minimum(shown, top), levels=14,
                            cmap="viridis")  # fmt: skip
    bar = figure.colorbar(filled, ax=panel, shrink=0.85)
    bar.set_label(LOSS if top >= finite.max() else f"{LOSS}, cut at {top:.2f}")
    bar.outline.set_visible(False)  # type: ignore[operator]
    for (x, y), name in zip(plane["corners"], plane["models"], strict=True):
        panel.plot(x, y, "o", color="white", markersize=8, markeredgecolor="black")
        right = x > np.mean(plane["x"])
        panel.annotate(name, (x, y), (-8 if right else 8, 7), textcoords="offset points",
                       ha="right" if right else "left", color="white", fontsize=9,
                       fontweight="bold")  # fmt: skip
    panel.set_aspect("equal")
    return figure
