"""Every operation in float64, in a few lines: the truth that tests and benchmarks compare with.

No fast path imports this module.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

Rows = torch.Tensor | Sequence[torch.Tensor]


def rows_in_float64(x: Rows) -> torch.Tensor:
    """``[n_models, n]`` in float64, whatever the rows' types."""
    return torch.stack([row.to(torch.float64) for row in x])


def weighted_sum(x: Rows, weights: torch.Tensor, *, base: torch.Tensor | None = None):
    """``out[j] = base + sum_i weights[j, i] * (x[i] - base)``; without a base it counts as zero."""
    rows, weights = rows_in_float64(x), weights.double()
    if base is None:
        return weights @ rows
    return base.double() + weights @ (rows - base.double())


def gram(x: Rows, base: torch.Tensor | None = None, *, other: Rows | None = None) -> torch.Tensor:
    """``G[i, j] = <x[i] - base, other[j] - base>``; ``other`` is ``x`` unless given."""
    rows = rows_in_float64(x)
    columns = rows if other is None else rows_in_float64(other)
    if base is not None:
        rows, columns = rows - base.double(), columns - base.double()
    return rows @ columns.T


def pairwise_distances(x: Rows, *, other: Rows | None = None, metric: str = "l2") -> torch.Tensor:
    """``l2``: ``sum_k (x[i, k] - other[j, k])**2``. ``l1``: ``mean_k |x[i, k] - other[j, k]|``."""
    rows = rows_in_float64(x)
    columns = rows if other is None else rows_in_float64(other)
    differences = rows[:, None, :] - columns[None, :, :]
    return differences.square().sum(-1) if metric == "l2" else differences.abs().mean(-1)


def row_statistics(x: Rows, base: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Norm, mean, max |x|, kurtosis, non-finite count and share changed, of each row."""
    rows = rows_in_float64(x)
    finite = rows.isfinite()
    clean = torch.where(finite, rows, 0.0)
    n_finite = finite.sum(-1)
    mean = clean.sum(-1) / n_finite
    centred = torch.where(finite, rows - mean[:, None], 0.0)
    variance = centred.square().sum(-1) / n_finite
    changed = torch.full_like(mean, torch.nan)
    if base is not None:
        # equal numbers are unchanged, -0 and +0 included; a NaN differs from everything
        changed = (rows != base.double()).double().mean(-1)
    return {
        "norm": clean.square().sum(-1).sqrt(),
        "mean": mean,
        "max_abs": clean.abs().amax(-1),
        "kurtosis": centred.pow(4).sum(-1) / n_finite / variance.square(),
        "non_finite": (~finite).sum(-1),
        "changed": changed,
    }


def largest(differences: torch.Tensor, count: int) -> torch.Tensor:
    """Bool ``[n]``: the ``count`` largest magnitudes, equal ones by their place."""
    order = differences.abs().argsort(descending=True, stable=True)
    kept = torch.zeros(differences.shape, dtype=torch.bool)
    kept[order[: max(count, 0)]] = True
    return kept


def rank_chances(differences: torch.Tensor, density: float, epsilon: float) -> torch.Tensor:
    """Chances from ``density - epsilon`` to ``density + epsilon``, by ranks of ``|d|`` on axis 1.

    Equal ones in the order of their places; those of lines of one element are the density.
    """
    ranks = differences.abs().argsort(dim=1, stable=True).argsort(dim=1).double()
    last = differences.shape[1] - 1
    return density + epsilon * (2 * ranks / last - 1 if last else 0 * ranks)


def importances(x: torch.Tensor, base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``|x - base|`` times ``sum p ln(p / q)``, the softmaxes on the last axis, each plus 1e-8.

    Also with the magnitudes of all that is added, of which rounding is a part.
    The CPU adds other terms of the same sum, none of them negative, in float32 where models are
    near their base: within 1e-6 of itself.
    """
    x, base = x.double(), base.double()
    p, q = x.softmax(-1) + 1e-8, base.softmax(-1) + 1e-8
    terms = p * (p / q).log()
    size = (x - base).abs()
    return size * terms.sum(-1, keepdim=True), size * (terms.abs() + p).sum(-1, keepdim=True)


def drawn(n: int, key: int, chance: float | torch.Tensor) -> torch.Tensor:
    """Bool ``[n]``: SplitMix64's draw ``k``, as a number in [0, 1), is below the chance."""
    bits = _draws(key, np.arange(n, dtype=np.uint64))
    draws = torch.from_numpy((bits >> np.uint64(40)).astype(np.float64)) / 2**24
    return draws < torch.as_tensor(chance).double()


def _draws(key: int, counters: np.ndarray) -> np.ndarray:
    """SplitMix64: 64 bits for each counter (uint64)."""
    z = np.uint64(key) + (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return z


def sketch(x: torch.Tensor, key: int = 0, size: int = 65536) -> torch.Tensor:
    """``S[b]``: the sum of ``sign(k) x[k]`` over ``k`` in bucket ``b``, as ``sketches`` has it."""
    row, column = np.divmod(np.arange(x.numel(), dtype=np.uint64), np.uint64(size))
    offset = _draws(key, row + np.uint64(1 << 63)) >> np.uint64(65 - size.bit_length())
    bucket = (column + offset) % np.uint64(size)
    word, bit = np.divmod(row * np.uint64(size) + bucket, np.uint64(64))
    minus = (_draws(key, word) >> bit) & np.uint64(1)
    signed = x.flatten().double() * torch.from_numpy(1.0 - 2.0 * minus)
    return torch.zeros(size, dtype=torch.float64).index_add_(
        0, torch.from_numpy(bucket.astype(np.int64)), signed
    )


def joined(
    differences, base, *, factor, vote=None, share=None, scale=1.0, lone=None, elect="none",
    least=0.0, undecided=1.0,
):  # fmt: skip
    """``base + scale * sum factor d / sum share`` over the rows that agree with the election.

    ``differences [n_models, n]``: with zeros where nothing is kept; the rest as ``masks.Joint``.
    ``share`` None: no division.
    """
    d = differences.double()

    def column(numbers):
        return torch.as_tensor(numbers, dtype=torch.float64)[:, None]

    agree = d != 0
    if elect != "none":
        votes = column(vote) * d
        poll = (votes.sign() if elect == "signs" else votes).sum(0)
        elected = torch.where(poll == 0, undecided, poll.sign())
        agree = votes * elected > 0
    terms = torch.where(agree, column(factor) * d, 0.0)
    if lone is not None:
        terms = torch.where(agree.sum(0) == 1, column(lone) * d * agree, torch.where(agree, d, 0.0))
    total = terms.sum(0)
    if share is not None:
        divisor = torch.where(agree, column(share), 0.0).sum(0)
        if least:
            divisor = divisor.clamp_min(least)
        total = total / torch.where(divisor == 0, 1.0, divisor)
    return base.double() + scale * total


def precision_mean(
    x: torch.Tensor, precisions: torch.Tensor, weights: torch.Tensor, floor: float = 0.0
) -> torch.Tensor:
    """``sum_i w_i f_i x_i / sum_i w_i f_i``, ``f_i >= floor``; by ``w_i`` where all are 0."""
    x, w = x.double(), weights.double().reshape(-1, *[1] * (x.ndim - 1))
    f = w * precisions.double().clamp_min(floor)
    total = f.sum(0)
    return torch.where(total > 0, (f * x).sum(0) / total, (w * x).sum(0) / w.sum())
