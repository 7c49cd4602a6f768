"""Work that the launch configurations of kernels that choose elements are measured with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from wkernels.gpu import consensus, kept, means, scores, selection
from wkernels.gpu.addresses import type_name
from wkernels.masks import DIGITS, Joint, no_mask

N_ROWS = 8
LINE = 4096
"""Elements of a row of a matrix."""
SMALLER = 8
"""Of rows: their differences in float32 and what is made of them fit beside them."""


def work(
    kernel: str, rows: Sequence[torch.Tensor], base: torch.Tensor, out: torch.Tensor
) -> Callable[[], torch.Tensor]:
    """One launch of the kernel over all of the rows; what it finds is the same for every way.

    ``rows [8, n]`` of one type, ``out [n]`` of the type that is written.
    """
    whole, first = np.array([[0, len(base)]]), np.zeros(1, np.int64)
    n, mask = len(rows), no_mask(1, len(rows))
    weights = np.linspace(0.2, 1.0, n)[None]
    wide = type_name(base) == "float64"

    def digits() -> torch.Tensor:
        shift, width = DIGITS["float64" if wide else "float32"][0]
        counts = torch.zeros((1, n, 1 << width), dtype=torch.int64, device=base.device)
        selection.digit_counts(rows, base, whole, np.zeros((1, n), np.int64), shift, width, counts)
        return counts

    def places() -> torch.Tensor:
        # more than there are of 0: all are counted
        left = np.full((1, n), len(base) + 1, np.int64)
        selection.nth_equal(rows, base, whole, np.zeros((1, n), np.int64), left)
        return torch.from_numpy(left)

    def sums() -> torch.Tensor:
        found = np.zeros((1, n, kept.N_SUMS))
        kept.kept_sums(rows, base, whole, first, mask, found)
        return torch.from_numpy(found)

    def agreements() -> torch.Tensor:
        counts = np.zeros((1, n, 2), np.int64)
        kept.agreements(rows, base, whole, first, mask, counts)
        return torch.from_numpy(counts)

    def join() -> torch.Tensor:
        joint = Joint(weights, weights, weights, np.ones(1), elect="sum", divide=True)
        consensus.joined(rows, base, whole, first, mask, joint, out)
        return out

    def variances() -> torch.Tensor:
        found = torch.empty(len(base), device=base.device)
        scores.variances(rows, base, found)
        return found

    def pull() -> torch.Tensor:
        scores.pulled(rows[0], base, whole, np.full(1, 0.01), out)
        return out

    def mean() -> torch.Tensor:
        half = n // 2
        means.precision_mean(
            rows[:half], rows[half:], whole, weights[:, :half], np.zeros(1), out,
            np.zeros((1, half), np.int64),
        )  # fmt: skip
        return out

    def importances() -> torch.Tensor:
        found = torch.empty(len(base), device=base.device)
        scores.importances(rows[0], base, whole, np.array([LINE]), found)
        return found

    known = (agreements, digits, importances, join, mean, places, pull, sums, variances)
    return {function.__name__: function for function in known}[kernel]
