"""Middles of the zoo that outliers do not move: the medoid and the geometric median."""

from __future__ import annotations

from typing import NamedTuple

import torch

from wspace.geometry.metrics import distances, squared_distances
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
    with Vardi and Zhang's step (PNAS 97, 2000) where it lands on a model, and Newton's wherever
    that gains more: Weiszfeld's alone creeps when the median is close to a model.

    Stops when the sum of the unit vectors towards the models is no longer than ``tolerance * n``;
    the mean distance then exceeds the least by at most ``tolerance`` times the distance between
    the two points. Raises ValueError if that takes more than ``max_iterations``.
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
    at = _pull(squared, torch.full((n,), 1 / n, dtype=torch.float64))
    for _ in range(max_iterations):
        held = int(at.here.sum())
        if at.force - held <= tolerance * n:
            chosen = at.here.double() if held else at.strength
            return (chosen / chosen.sum())[None]
        target = at.strength / at.strength.sum()
        steps = [target + min(1.0, held / at.force) * (at.weights - target)]
        if not held and (newton := _newton(squared, at)).isfinite().all():
            steps += [at.weights + part * newton for part in (1, 1 / 4, 1 / 16, 1 / 64)]
        trials = [_pull(squared, weights) for weights in steps]
        best = min(trials, key=lambda trial: trial.total)
        if best.total > at.total * (1 - TIE):  # all is rounding in the sum, not yet in the force
            best = min(trials, key=lambda trial: trial.force)
        at = best
    raise ValueError(
        f"geometric_median: after {max_iterations} iterations the unit vectors towards the models "
        f"sum to {at.force / n:.2g} a model, above the tolerance of {tolerance:g}: raise "
        "max_iterations or tolerance"
    )


class _Pull(NamedTuple):
    """How the models pull at a mix, each with a unit vector."""

    weights: torch.Tensor  # [n], of the mix
    squared: torch.Tensor  # [n], distances to the mix
    here: torch.Tensor  # bool [n]; at the mix, so without a direction
    strength: torch.Tensor  # [n]; 1 / distance, 0 where here
    force: float  # length of the sum of unit vectors
    total: float  # sum of distances, which the force lowers


def _pull(squared: torch.Tensor, weights: torch.Tensor) -> _Pull:
    toward = (squared * weights).sum(dim=1)
    spread = (toward * weights).sum() / 2
    to_mix = toward - spread
    # a model at the mix: its distance is rounding
    here = to_mix <= 4 * torch.finfo(torch.float64).eps * (toward.abs() + spread.abs())
    strength = torch.where(here, 0, 1 / to_mix.sqrt())
    # coefficients that sum to 0: the squared length of their sum is -c^T d^2 c / 2
    sum_of_units = strength - strength.sum() * weights
    force = -((squared * sum_of_units).sum(dim=1) * sum_of_units).sum() / 2
    force, total = force.clamp_min(0).sqrt(), to_mix.clamp_min(0).sqrt().sum()
    return _Pull(weights, to_mix, here, strength, float(force), float(total))


def _newton(squared: torch.Tensor, at: _Pull) -> torch.Tensor:
    """Newton's step on the sum of distances, as a change of the weights.

    The Hessian is ``A - U^T P U``: unit vectors ``U``, ``P = diag(1 / d)``, ``A`` its trace. So, by
    Woodbury's identity, the step is ``sum_i (1 + z_i) u_i / A``, ``(A / P - U U^T) z = U U^T 1``.
    """
    units = (at.squared[:, None] + at.squared - squared) / 2 * at.strength[:, None] * at.strength
    total = at.strength.sum()
    # solve_ex: a singular system gives a step that the caller turns down, not an exception
    system = torch.diag(total / at.strength) - units
    z = torch.linalg.solve_ex(system, units.sum(dim=1)).result
    step = (1 + z) * at.strength / total
    return step - step.sum() * at.weights
