"""The check that every set of mixing weights passes before bytes are read. Imports no torch."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from wspace.errors import WeightsError

# float32 weights that were meant to sum to 1 are this close
SUM_TOLERANCE = 1e-6


def check_weights(weights: ArrayLike, n: int, has_base: bool) -> np.ndarray:
    """Mixing weights as the write pass takes them: float64 ``[n_mixes, n]``, a copy.

    Row ``j`` stands for ``base + sum_i weights[j, i] * (theta_i - base)``. With a base any finite
    numbers will do: the base takes what is missing to 1. Without one, each row must sum to 1 within
    1e-6, and is then used as it is: nothing is rescaled.

    ``weights``: real numbers ``[n_mixes, n]``, or ``[n]`` for one mix, in anything that
    ``numpy.asarray`` accepts, tensors on the CPU included. Raises WeightsError, a ValueError.
    """
    try:
        given = np.asarray(weights)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(
            f"weights: expected numbers [n_mixes, {n}]; numpy says: {reason}"
        ) from None
    if given.dtype.kind not in "fiu":
        raise WeightsError(f"weights: expected real numbers, got {given.dtype}")
    if given.ndim not in (1, 2) or given.shape[-1] != n:
        raise WeightsError(
            f"weights: expected shape [n_mixes, {n}], one column for each model of the zoo, "
            f"got {list(given.shape)}"
        )
    rows = np.array(np.atleast_2d(given), dtype=np.float64, order="C")
    if not len(rows):
        raise WeightsError("weights: expected at least one row, one for each mix, got none")
    wrong = np.argwhere(~np.isfinite(rows))
    if len(wrong):
        row, model = wrong[0]
        raise WeightsError(
            f"weights row {row} has {rows[row, model]} for model {model}; weights must be finite"
        )
    if not has_base:
        for row, values in enumerate(rows):
            total = math.fsum(values)
            if abs(total - 1) > SUM_TOLERANCE:
                # four decimals would print 1.0000 for a sum that is refused
                shown = f"{total:.4f}" if abs(total - 1) >= 1e-4 else f"{total:.9f}"
                raise WeightsError(
                    f"weights row {row} sums to {shown}; without a base each row must sum to 1 "
                    "(pass base=... or rescale)"
                )
    return rows
