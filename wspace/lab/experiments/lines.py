"""Lines through two models: between them, and far beyond both.

Source: the paper (arXiv 2302.04863), sections 5.1 and 6.1, Figures 3, 5, 10, 12, 13.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wspace import geometry
from wspace.lab.experiments.context import Context, Losses, levels
from wspace.lab.points import Point, extrapolation_alphas, line, origin
from wspace.lab.records import plain
from wspace.lab.statistics import line_statistics, outside_statistics, spread


def run(context: Context) -> dict[str, Any]:
    """Losses along the lines of every level's pairs; ``alpha`` is the weight of the pair's first.

    For each level and side: the ``alphas``, every loss ``[n_pairs, n_alphas]``, its mean and
    standard deviation over pairs, and what each line says (barrier, midpoint gain...).
    """
    settings = context.settings.lines
    assert settings is not None
    inside = _alphas(settings.alphas)
    outside = extrapolation_alphas(settings.extrapolation_steps, settings.extrapolation_limit)
    found, left_out = levels(context)
    done = []
    for level in found:
        near = _chosen(level.pairs, settings.pairs, context.seed)
        far = _chosen(near, settings.extrapolation_pairs, context.seed)
        context.progress(
            f"lines: {level.name}, {len(near)} pairs inside and {len(far)} outside, "
            f"{len(level.tasks)} data sets"
        )
        # the base, then one line after the other
        points = [origin(len(context.zoo))]
        points += _walk(context, near, inside) + _walk(context, far, outside)
        losses = context.evaluate(points, level.tasks)
        middle = 1 + len(near) * len(inside)
        base = float(losses.mean[0])
        beyond = functools.partial(outside_statistics, limit=base)
        done.append(
            level.heading()
            | {
                "pretrained": losses.part(0, 1).table(),
                "inside": _side(context, near, inside, losses.part(1, middle), line_statistics),
                "outside": _side(context, far, outside, losses.part(middle, None), beyond),
            }
        )
    return plain({"levels": done, "left_out": left_out})


def _alphas(given: int | Sequence[float]) -> list[float]:
    """Ascending, with both ends."""
    if isinstance(given, int):
        return [k / (given - 1) for k in range(given)]
    return sorted({0.0, 1.0, *map(float, given)})


def _chosen(pairs: Sequence[tuple[int, int]], count: int | None, seed: int) -> list:
    """All pairs, or a seeded draw of some."""
    if count is None or count >= len(pairs):
        return list(pairs)
    drawn = np.random.default_rng(seed).choice(len(pairs), count, replace=False)
    return [pairs[i] for i in sorted(drawn)]


def _walk(context: Context, pairs, alphas: Sequence[float]) -> list[Point]:
    return [point for pair in pairs for point in line(len(context.zoo), pair, alphas)]


def _side(
    context: Context, pairs, alphas: list[float], losses: Losses, statistics: Callable
) -> dict[str, Any]:
    shape = (len(pairs), len(alphas))
    curves, relative = losses.mean.reshape(shape), losses.relative.reshape(shape)
    lines = [statistics(alphas, curve) for curve in curves]
    apart = geometry.distances(context.gram)
    return {
        "alphas": alphas,
        "pairs": [[context.gram.members[i] for i in pair] for pair in pairs],
        "distances": [float(apart[i, j]) for i, j in pairs],
        **losses.table(shape),
        "mean": _over_pairs(curves, np.mean),
        "sd": _over_pairs(curves, _deviation),
        "relative_mean": _over_pairs(relative, np.mean),
        "relative_sd": _over_pairs(relative, _deviation),
        "task_means": {
            name: _over_pairs(values.reshape(shape), np.mean)
            for name, values in losses.loss.items()
        },
        "lines": lines,
        "summary": {key: _summary([line[key] for line in lines]) for key in lines[0]},
    }


def _summary(values: list[float | None]) -> dict[str, Any]:
    """Spread over the lines; ``never`` counts those that have no such number."""
    found = [value for value in values if value is not None]
    return (spread(found) if found else {"n": 0}) | {"never": len(values) - len(found)}


def _deviation(values: np.ndarray, axis: int) -> np.ndarray:
    return np.std(values, axis=axis, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


def _over_pairs(curves: np.ndarray, reduce) -> list[float]:
    with np.errstate(invalid="ignore"):  # losses that are not finite
        return reduce(curves, axis=0).tolist()
