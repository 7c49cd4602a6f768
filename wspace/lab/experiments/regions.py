"""Is the inside of a region better than its edge and its outside?

In: fine-tuned models. In': points of their convex hull. Ex: models tuned on other data, or random
ones. Source: the paper (arXiv 2302.04863), section 5.2, Figure 4.
"""

from __future__ import annotations

from typing import Any

import torch

from wspace import geometry
from wspace.lab.experiments.context import Context, Level, Losses, balanced, levels
from wspace.lab.points import Direction, Point, centroid, hull, origin, vertex
from wspace.lab.records import plain
from wspace.lab.statistics import probability_better, spread

COMPARISONS = (("in", "ex"), ("inside", "ex"), ("inside", "in"))


def run(context: Context) -> dict[str, Any]:
    """Losses of In, In' (``inside``) and Ex at every level, and P_B between them."""
    found, left_out = levels(context)
    done = []
    for number, level in enumerate(found):
        if level.exterior == ():
            left_out[level.name] = "no model is outside of it"
            continue
        done.append(_level(context, level, number))
    return plain({"levels": done, "left_out": left_out})


def _level(context: Context, level: Level, number: int) -> dict[str, Any]:
    settings = context.settings.regions
    assert settings is not None
    n = len(context.zoo)
    members = balanced(context, level.members, settings.inside)
    inner = hull(
        n, members, len(members), seed=settings.seed + number, law=settings.hull,
        concentration=settings.concentration,
    )  # fmt: skip
    outer, names = _exterior(context, level, members)
    groups = {
        "in": [vertex(n, i) for i in members],
        "inside": inner,
        "ex": outer,
    }
    context.progress(
        f"regions: {level.name}, {' + '.join(str(len(group)) for group in groups.values())} points"
        f" on {len(level.tasks)} data sets"
    )
    extra = [centroid(n, members), origin(n)]
    everything = [point for group in groups.values() for point in group] + extra
    losses = context.evaluate(everything, level.tasks)
    parts: dict[str, Losses] = {}
    start = 0
    for name, group in groups.items():
        parts[name] = losses.part(start, start + len(group))
        start += len(group)
    radii = _radii(context, groups, extra[0])
    return level.heading() | {
        "exterior": "random" if level.exterior is None else "models",
        "hull": settings.hull,
        "members": {
            "in": [context.gram.members[i] for i in members],
            "inside": [f"draw {k + 1}" for k in range(len(inner))],
            "ex": names,
        },
        "groups": {
            name: part.table() | {"spread": spread(part.mean), "distances": radii[name]}
            for name, part in parts.items()
        },
        "centroid": losses.part(start, start + 1).table(),
        "pretrained": losses.part(start + 1, None).table(),
        "better": [_better(parts, pair, "mean", settings) for pair in COMPARISONS],
        "relative_better": [_better(parts, pair, "relative", settings) for pair in COMPARISONS],
    }


def _better(parts: dict[str, Losses], pair: tuple[str, str], kind: str, settings) -> dict[str, Any]:
    first, second = (getattr(parts[name], kind) for name in pair)
    return {"first": pair[0], "second": pair[1]} | probability_better(
        first, second, bootstrap=settings.bootstrap, seed=settings.seed,
        strict=settings.ties == "strict",
    )  # fmt: skip


def _exterior(context: Context, level: Level, members) -> tuple[list[Point], list[str]]:
    """Models of other data, or the base plus random vectors as long as the members' own."""
    settings = context.settings.regions
    assert settings is not None
    n = len(context.zoo)
    if level.exterior is not None:
        chosen = balanced(context, level.exterior, settings.outside)
        return [vertex(n, i) for i in chosen], [context.gram.members[i] for i in chosen]
    norm = float(geometry.norms(context.gram)[list(members)].mean())
    count = settings.outside or len(members)
    directions = [
        Direction(settings.seed + k, norm, settings.exterior, settings.exterior_vectors)
        for k in range(count)
    ]
    drawn = [Point((0.0,) * n, direction) for direction in directions]
    return drawn, [f"{settings.exterior} vector {k + 1}" for k in range(count)]


def _radii(context: Context, groups: dict[str, list[Point]], center: Point) -> dict[str, Any]:
    """Distances from the members' centroid; None where a random vector is in the sum."""
    return {
        name: None
        if any(point.direction for point in group)
        else distances_between(context, group, center)
        for name, group in groups.items()
    }


def distances_between(context: Context, group: list[Point], center: Point) -> list[float]:
    """Distances of mixes from another mix, from the Gram matrix alone."""
    rows = torch.tensor([point.weights for point in [*group, center]], dtype=torch.float64)
    return geometry.distances(geometry.mixed_gram(context.gram, rows))[:-1, -1].tolist()
