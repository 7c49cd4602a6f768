"""Middles of the zoo that outliers do not move: the medoid and the geometric median."""

from __future__ import annotations

import math

import torch

from wspace.geometry.distances import distances, squared_distances
from wspace.grams import Gram

# Of the least sum: a smaller lead is rounding.
TIE = 1e-12


def medoid(gram: Gram | torch.Tensor) -> int:
    """The model with the least sum of distances to all others; the first of equals."""
    sums = distances(gram).sum(dim=1)
    return int((sums <= sums.min() * (1 + TIE)).nonzero()[0])


def geometric_median(
    gram: Gram | torch.Tensor, *, tolerance: float = 1e-10, max_iterations: int = 1000
) -> torch.Tensor:
    """The mix with the least sum of distances to all models: robust where the average is not.

    Returns mixing weights, float64 ``[1, n]``, non-negative and summing to 1. If models themselves
    are medians, their average: so copies of a model share its weight, and of two models the middle
    is taken. Otherwise Weiszfeld's iteration on the weights, ``w_i ~ 1 / d_i``, from the average,
    stepping off a model it lands on by Vardi and Zhang's rule (PNAS 97, 2000).

    Stops when the sum of the unit vectors towards the models is shorter than ``tolerance * n``; the
    mean distance is then within ``tolerance`` times the largest of the least. Raises ValueError
    if that takes more than ``max_iterations``.
    """
    squared = squared_distances(gram)
    n = len(squared)
    distance = squared.sqrt()
    pulls = torch.where(distance > 0, 1 / distance, 0)
    # |sum of unit vectors from model k|^2; at a median the copies of k, each worth 1, outweigh it
    forces = pulls.sum(dim=1) * distance.sum(dim=1) - ((pulls @ squared) * pulls).sum(dim=1) / 2
    copies = (distance == 0).sum(dim=1)
    medians = forces.clamp_min(0).sqrt() <= copies + tolerance * n
    if medians.any():
        return (medians.double() / medians.sum())[None]
    weights = torch.full((n,), 1 / n, dtype=torch.float64)
    excess = math.inf
    for _ in range(max_iterations):
        toward = (squared * weights).sum(dim=1)
        spread = (toward * weights).sum() / 2
        to_mix = toward - spread
        # a model at the mix: its distance is rounding
        here = to_mix <= 4 * torch.finfo(torch.float64).eps * (toward + spread)
        pull = torch.where(here, 0, 1 / to_mix.sqrt())
        target = pull / pull.sum()
        step = target - weights
        force = float(pull.sum() * (-(squared * step).sum(dim=1) @ step / 2).clamp_min(0).sqrt())
        excess = force - int(here.sum())
        if excess <= tolerance * n:
            return weights[None]
        weights = target - min(1.0, int(here.sum()) / force) * step
    raise ValueError(
        f"geometric_median: after {max_iterations} iterations the unit vectors sum to "
        f"{excess / n:.2g} a model, above the tolerance of {tolerance:g}: raise max_iterations or "
        "tolerance"
    )
