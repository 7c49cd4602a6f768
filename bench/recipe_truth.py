"""Whether a recipe's output is right: against float64, and how far mergekit's is from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from bench import merging
from bench.recipe_cases import RecipeCase
from wspace.recipes import formulas

N_CHECKED = 12
"""Tensors of an output that are compared."""


def _factors(case: RecipeCase) -> Callable[[np.ndarray], np.ndarray] | None:
    """The rows' factors from their Gram matrix ``[1, n, n]``; None for elementwise methods."""
    weights = [case.weight or 0.0] * case.n_models
    known: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "linear": lambda gram: formulas.linear(weights, normalize=True),
        "task_arithmetic": lambda gram: formulas.task_arithmetic(weights, normalize=False, scale=1),
        "slerp": lambda gram: formulas.slerp(gram, 0.3)[0],
        "karcher": lambda gram: formulas.karcher(gram, max_iter=10, tol=1e-5)[0],
        "model_stock": lambda gram: formulas.model_stock(gram, eps=1e-6)[0],
        "nuslerp": lambda gram: formulas.nuslerp(gram, weights)[0],
        "multislerp": lambda gram: formulas.multislerp(
            gram, weights, normalize_weights=True, eps=1e-8
        )[0],
        "passthrough": lambda gram: np.ones(1),
    }
    return known.get(case.method)


def check(case: RecipeCase, out: Path, folder: Path) -> str:
    """Asserts that an output is right; says what was compared.

    Of elementwise methods, whose truth the tests have, only that each element is as near to the
    base as the models are, all together.
    """
    read, names = merging.tensors_of(out)
    readers = [merging.tensors_of(model) for model in case.inputs(folder)]
    assert names == readers[0][1], "the merged model has other tensors than its inputs"
    chosen = sorted(names)[:: max(1, len(names) // N_CHECKED)]
    factors = _factors(case)
    for name in chosen:
        rows = torch.stack([reader(name).flatten().double() for reader, _ in readers])
        found = read(name).flatten().double()
        based = case.base == "base"
        origin = rows[0] if case.base else torch.zeros_like(rows[0])
        deltas = rows[1:] - origin if based else rows
        eps = torch.finfo(torch.bfloat16).eps
        if factors is None:
            bound = 4 * (rows - origin).abs().sum(0) + eps * origin.abs()
            assert ((found - origin).abs() <= bound).all(), f"{case.method}: {name} is far off"
            continue
        weights = torch.from_numpy(factors((deltas @ deltas.T).numpy()[None]))
        truth = weights @ deltas + (origin if based else 0)
        terms = weights.abs() @ deltas.abs() + origin.abs()
        error = (found - truth).abs()
        bound = eps / 2 * truth.abs() + 8 * torch.finfo(torch.float32).eps * terms
        assert (error <= bound).all(), f"{case.method}: {name} is {float(error.max()):.3e} off"
    return f"{len(chosen)} tensors of the output against " + (
        "the range of the inputs" if factors is None else "the float64 result, rounded once"
    )


def deviations(ours: Path, theirs: Path, donor: Path) -> str:
    """How far two outputs are apart, relative to each tensor's largest value."""
    (mine, names), (other, _) = merging.tensors_of(ours), merging.tensors_of(theirs)
    worst, equal, count = 0.0, 0, 0
    for name in sorted(names)[:: max(1, len(names) // N_CHECKED)]:
        a, b = mine(name).double(), other(name).double()
        worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)))
        equal, count = equal + int((a == b).sum()), count + a.numel()
    return f"{equal / count:.1%} of mergekit's elements are the same, none is {worst:.1e} x max off"
