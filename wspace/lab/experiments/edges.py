"""Where a region ends: random directions from its centroid, the way to zero, and a plane of it.

Source: the paper (arXiv 2302.04863), appendix F, Figure 11; the plane is not in the paper.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from wspace.errors import WspaceError
from wspace.geometry import distances_to_centroid
from wspace.lab.experiments.context import Context, Level, levels
from wspace.lab.points import (
    centroid,
    length,
    origin,
    outward,
    plane,
    random_directions,
    towards_origin,
    vertex,
)
from wspace.lab.records import plain
from wspace.lab.statistics import spread


def run(context: Context) -> dict[str, Any]:
    """Loss against the distance from a data set's centroid, and over the plane of three models."""
    settings = context.settings.edges
    assert settings is not None
    found, left_out = levels(context)
    same = next((level for level in found if level.name == "same-dataset"), None)
    done: dict[str, Any] = {"left_out": {}, "radius": None, "plane": None}
    if same is None:
        done["left_out"]["radius"] = left_out["same-dataset"]
    else:
        done["radius"] = _radius(context, same)
    corners = _corners(context)
    if isinstance(corners, str):
        done["left_out"]["plane"] = corners
    else:
        done["plane"] = _plane(context, corners)
    return plain(done)


def _radius(context: Context, level: Level) -> dict[str, Any]:
    """From the centroid: random directions, the members' own, and towards zero."""
    settings = context.settings.edges
    assert settings is not None and context.resident is not None
    n, factors = len(context.zoo), list(settings.radii)
    center = centroid(n, level.members)
    rows = np.array(center.weights)
    radii = distances_to_centroid(context.gram, rows)[0][list(level.members)]  # type: ignore[arg-type]
    radius = float(radii.mean())
    steps = [factor * radius for factor in factors]
    seeds = [settings.seeds * context.seed + k for k in range(settings.seeds)]
    members = [vertex(n, i) for i in level.members]
    norm = length(center, context.resident)
    ways = {
        "random": random_directions(center, radius, factors, seeds, kind=settings.kind),
        "member": [p for m in members for p in outward(center, m, context.gram, steps)],
        "origin": towards_origin(center, norm, steps),
    }
    context.progress(
        f"edges: {sum(map(len, ways.values()))} points around the centroid of {level.title}"
    )
    points = [center, origin(n), *members, *(p for way in ways.values() for p in way)]
    losses = context.evaluate(points, level.tasks)
    start = 2 + len(members)
    found: dict[str, Any] = {}
    for name, way in ways.items():
        part = losses.part(start, start + len(way))
        shape = (len(way) // len(factors), len(factors))
        curves = part.mean.reshape(shape)
        found[name] = part.table(shape) | {"mean": curves.mean(axis=0)}
        start += len(way)
    return level.heading() | {
        "kind": settings.kind,
        "seeds": seeds,
        "factors": factors,
        "member_radius": radius,
        "member_radii": radii.tolist(),
        "centroid_norm": norm,
        "centroid": losses.part(0, 1).table(),
        "pretrained": losses.part(1, 2).table(),
        "members": losses.part(2, 2 + len(members)).table()
        | {"spread": spread(losses.part(2, 2 + len(members)).mean)},
        "ways": found,
    }


def _corners(context: Context) -> tuple[int, int, int] | str:
    """The plane's three models: those named, or the first of three data sets."""
    settings = context.settings.edges
    assert settings is not None
    if settings.plane_grid < 2:
        return "it is not asked for (plane_grid)"
    if settings.plane:
        missing = [name for name in settings.plane if name not in context.gram.members]
        if missing or len(settings.plane) != 3:
            known = ", ".join(context.gram.members[:4])
            raise WspaceError(
                f"edges: plane takes the names of three models of the zoo, got "
                f"{', '.join(settings.plane)} (models are called {known}, ...)"
            )
        first, second, third = (context.gram.members.index(name) for name in settings.plane)
        return first, second, third
    wanted = context.settings.levels
    # two of one family and one of another, where the settings say which
    preferred = [*wanted.family_pair, *wanted.general_pair, *context.tasks]
    tasks = [task for task in dict.fromkeys(preferred) if context.models_of(task)]
    if len(tasks) < 3:
        return "it takes models of three data sets"
    first, second, third = (context.models_of(task)[0] for task in tasks[:3])
    return first, second, third


def _plane(context: Context, corners: tuple[int, int, int]) -> dict[str, Any]:
    settings = context.settings.edges
    assert settings is not None
    made = plane(context.gram, corners, grid=settings.plane_grid, margin=settings.plane_margin)
    tasks = list(dict.fromkeys(context.task_of[i] for i in corners))
    context.progress(f"edges: {len(made.points)} points of a plane on {', '.join(tasks)}")
    points = [*made.points, *(vertex(len(context.zoo), i) for i in corners)]
    losses = context.evaluate(points, tasks)
    cut = len(made.points)
    return {
        "models": [context.gram.members[i] for i in corners],
        "tasks": tasks,
        "x": made.x,
        "y": made.y,
        "corners": made.corners,
        **losses.part(0, cut).table((len(made.y), len(made.x))),
        "corner_losses": losses.part(cut, None).table(),
    }
