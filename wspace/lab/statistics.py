"""What is computed from labels and losses: how good clusters are, which group is better, how flat
a line is, whether one start beats another. Numbers in, plain dicts out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Losses = Sequence[float] | np.ndarray

# Of the lowest loss: above it by no more than this counts as the flat part of a line.
FLAT = 0.05
# Differences of means of accuracies below this are rounding.
TIE = 1e-9


def cluster_scores(labels: Sequence[int], truth: Sequence[str]) -> dict[str, Any]:
    """How well clusters found from the weights agree with what the models are.

    ``majority``: each cluster is called after its commonest group, and two clusters may be called
    alike; ``hungarian``: each cluster is given a group of its own, so that the most models are
    right. For each the accuracy, the mean F1 and the F1 of every group. Besides, the adjusted Rand
    index and the normalised mutual information, the names given to the clusters, and ``perfect``,
    the number of clusters that are one whole group. Source: the paper (arXiv 2302.04863), sections
    2.3 and 4, appendix D.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    groups, clusters = sorted(set(truth)), sorted(set(labels))
    counts = np.array(
        [
            [sum(a == c and b == g for a, b in zip(labels, truth, strict=True)) for g in groups]
            for c in clusters
        ]
    )
    majority = {c: groups[int(row.argmax())] for c, row in zip(clusters, counts, strict=True)}
    chosen, given = linear_sum_assignment(-counts)
    matched = {clusters[c]: groups[g] for c, g in zip(chosen, given, strict=True)}
    whole = (counts == counts.sum(axis=0)) & (counts == counts.sum(axis=1, keepdims=True))
    return {
        "n": len(truth),
        "groups": groups,
        "majority": _named(majority, labels, truth, groups),
        "hungarian": _named(matched, labels, truth, groups),
        "ari": float(adjusted_rand_score(truth, labels)),
        "nmi": float(normalized_mutual_info_score(truth, labels)),
        "perfect": int((whole & (counts > 0)).sum()),
        "clusters": len(clusters),
    }


def _named(names: dict, labels: Sequence[int], truth: Sequence[str], groups: list) -> dict:
    called = [names.get(label, "") for label in labels]
    right = sum(a == b for a, b in zip(called, truth, strict=True))
    f1 = {}
    for group in groups:
        both = sum(a == b == group for a, b in zip(called, truth, strict=True))
        f1[group] = 2 * both / (called.count(group) + list(truth).count(group))
    return {
        "accuracy": right / len(called),
        "f1": f1,
        "mean_f1": math.fsum(f1.values()) / len(f1),
        "names": {str(cluster): name for cluster, name in names.items()},
    }


def probability_better(
    first: Losses, second: Losses, *, bootstrap: int = 2000, seed: int = 0, strict: bool = False
) -> dict[str, Any]:
    """``P_B(G1, G2) = Pr[loss1 <= loss2]`` over all pairs, with a 95 % bootstrap interval.

    ``half_tie`` counts ties one half: Mann-Whitney's U / (n m), the area under the ROC curve.
    ``strict`` counts them not at all. The interval comes from drawing both groups anew, with
    replacement. A loss that is not finite counts as worse than any other.
    Source: the paper, section 3 (P_B); the interval is ours.
    """
    one, two = worst(first), worst(second)
    below = one[:, None] < two
    ties = one[:, None] == two
    won = below.astype(float) if strict else (below | ties).astype(float)
    draw = np.random.default_rng(seed)
    # a group drawn anew is how often each of its models was drawn
    counts = [draw.multinomial(len(x), [1 / len(x)] * len(x), size=bootstrap) for x in (one, two)]
    means = np.einsum("bi,ij,bj->b", counts[0], won, counts[1], optimize=True) / won.size
    low, high = np.quantile(means, [0.025, 0.975]) if bootstrap else (math.nan, math.nan)
    return {
        "p": float(won.mean()),
        "half_tie": float((below + ties / 2).mean()),
        "low": float(low),
        "high": float(high),
        "n": len(one),
        "m": len(two),
        "ties": int(ties.sum()),
        "not_finite": int((~np.isfinite(one)).sum() + (~np.isfinite(two)).sum()),
    }


def line_statistics(alphas: Sequence[float], losses: Losses) -> dict[str, float]:
    """What the losses on one line between two models say.

    ``alphas`` ascending, from 0 (the second model) to 1 (the first)::

        barrier         max over alpha of L(alpha) - [alpha L(1) + (1 - alpha) L(0)]
        midpoint_gain   min(L(0), L(1)) - L(1/2): positive where the middle beats both ends
        mean_gain       (L(0) + L(1)) / 2 - L(1/2)
        best_alpha      where the loss is least, and ``best_gain``: min(L(0), L(1)) - min L
        flat_width      length in alpha of the stretch around it within 5 % of the least loss

    Between grid points the loss is taken as linear. Source: the paper, section 5.1; Juneja et al.,
    arXiv 2205.12411 (barrier).
    """
    at, loss = np.asarray(alphas, float), worst(losses)
    first, last, middle = (float(np.interp(a, at, loss)) for a in (0, 1, 0.5))
    best = int(np.argmin(loss))
    inside = (at >= 0) & (at <= 1)
    chord = at * last + (1 - at) * first
    return {
        "barrier": float((loss - chord)[inside].max()),
        "midpoint_gain": min(first, last) - middle,
        "mean_gain": (first + last) / 2 - middle,
        "best_alpha": float(at[best]),
        "best_gain": min(first, last) - float(loss[best]),
        "flat_width": _flat_width(at, loss, best),
    }


def _flat_width(at: np.ndarray, loss: np.ndarray, best: int) -> float:
    limit = loss[best] + FLAT * abs(loss[best])

    def reach(step: int) -> float:
        here = best
        while 0 <= (there := here + step) < len(at):
            if loss[there] > limit:
                rise = loss[there] - loss[here]
                share = (limit - loss[here]) / rise if np.isfinite(rise) else 0.0
                return float(at[here] + share * (at[there] - at[here]))
            here = there
        return float(at[here])

    return reach(1) - reach(-1)


def outside_statistics(
    alphas: Sequence[float], losses: Losses, limit: float
) -> dict[str, float | None]:
    """How soon the loss is poor beyond the two models of a line.

    ``alphas`` ascending, below 0 and above 1. ``left_reach`` and ``right_reach``: how far beyond
    the second and the first model, in distances between the two, the loss first exceeds ``limit``
    (that of the base, say); None if it never does. ``above_ends``: share of the points outside
    whose loss exceeds that of the worse of the two models. ``flat_width`` as in
    :func:`line_statistics`. Source: the paper, section 6.1.
    """
    at, loss = np.asarray(alphas, float), worst(losses)
    right, left = at >= 1, at <= 0
    ends = [float(np.interp(a, at, loss)) for a in (0, 1)]
    outer = loss[(at > 1) | (at < 0)]
    return {
        "left_reach": _crossing(-at[left][::-1], loss[left][::-1], limit),
        "right_reach": _crossing(at[right] - 1, loss[right], limit),
        "above_ends": float((outer > max(ends)).mean()),
        "flat_width": _flat_width(at, loss, int(np.argmin(loss))),
    }


def _crossing(distance: np.ndarray, loss: np.ndarray, limit: float) -> float | None:
    """Where the loss first exceeds the limit, taken as linear between the points."""
    above = np.flatnonzero(loss > limit)
    if not len(above):
        return None
    there = int(above[0])
    if there == 0:
        return 0.0
    rise = loss[there] - loss[there - 1]
    share = (limit - loss[there - 1]) / rise if np.isfinite(rise) else 1.0
    return float(distance[there - 1] + share * (distance[there] - distance[there - 1]))


def paired_summary(baseline: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """Whether ``other`` beats ``baseline`` on the same targets: higher is better.

    Mean and standard deviation of the gains, wins, ties and losses; two-sided p values of
    Wilcoxon's signed-rank test and of the exact sign test, both without the ties. None where there
    is nothing to test.
    """
    from scipy.stats import binomtest, wilcoxon

    gains = np.asarray(other, float) - np.asarray(baseline, float)
    gains[np.abs(gains) < TIE] = 0
    wins, losses = int((gains > 0).sum()), int((gains < 0).sum())
    moved = gains[gains != 0]
    ranks: Any = wilcoxon(moved) if len(moved) else None
    return {
        "n": len(gains),
        "mean_gain": float(gains.mean()) if len(gains) else None,
        "sd": float(gains.std(ddof=1)) if len(gains) > 1 else None,
        "wins": wins,
        "ties": len(gains) - wins - losses,
        "losses": losses,
        "wilcoxon_p": float(ranks.pvalue) if len(moved) else None,
        "sign_p": float(binomtest(wins, wins + losses).pvalue) if len(moved) else None,
    }


def worst(losses: Losses) -> np.ndarray:
    """Losses as float64, where one that is no number is the worst of all: infinite."""
    numbers = np.asarray(losses, float)
    return np.where(np.isnan(numbers), np.inf, numbers)


def spread(values: Losses) -> dict[str, Any]:
    """Mean, standard deviation (n - 1), least, middle and greatest of some numbers."""
    numbers = worst(values)
    finite = bool(np.isfinite(numbers).all())
    return {
        "n": len(numbers),
        "mean": float(numbers.mean()),
        "sd": float(numbers.std(ddof=1)) if len(numbers) > 1 and finite else None,
        "min": float(numbers.min()),
        "median": float(np.median(numbers)),
        "max": float(numbers.max()),
    }
