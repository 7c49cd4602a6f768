"""Inputs for the benchmarks, and their answers in float64: a timing counts only if it was right."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from wkernels import reference
from wkernels.reference import Rows

PERIOD = (1 << 20) + 24  # elements after which the inputs repeat
EDGE = 100_003  # elements that are checked at the start, in the middle and at the end
FLOAT32_EPS = torch.finfo(torch.float32).eps


def make_rows(n_models: int, n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """``x [n_models, n]``, models one percent of noise away from a ``base [n]``, and that base."""
    random = torch.Generator().manual_seed(0)
    origin = torch.randn(PERIOD, generator=random)
    noise = torch.randn((n_models, PERIOD), generator=random)
    pattern = (origin + 0.01 * noise).to(dtype)
    x, base = torch.empty((n_models, n), dtype=dtype), torch.empty(n, dtype=dtype)
    for start in range(0, n, PERIOD):
        stop = min(start + PERIOD, n)
        x[:, start:stop] = pattern[:, : stop - start]
        base[start:stop] = origin[: stop - start]
    return x, base


def make_weights(n_mixes: int, n_models: int) -> torch.Tensor:
    """Mixing weights whose rows sum to 1; none is zero or one."""
    weights = torch.linspace(1, 2, n_mixes * n_models, dtype=torch.float64)
    weights = weights.reshape(n_mixes, n_models)
    return weights / weights.sum(1, keepdim=True)


def check_mixes(
    out: Rows,
    x: Rows,
    weights: torch.Tensor,
    base: torch.Tensor | None = None,
    roundings: int = 1,
) -> None:
    """Each mix is the float64 sum but for its rounding and what a float32 sum may lose.

    ``roundings``: how often the output's type rounds the sum; 1 unless a plain way does it oftener.
    """
    info = torch.finfo(out[0].dtype)
    for part in edges(len(out[0])):
        rows = reference.rows_in_float64([row[part] for row in x])
        origin = torch.zeros_like(rows[0]) if base is None else base[part].double()
        truth = origin + weights.double() @ (rows - origin)
        terms = origin.abs() + weights.double().abs() @ (rows - origin).abs()
        bound = (len(x) + 2) * FLOAT32_EPS * terms + 0.5 * info.eps * truth.abs() + info.tiny
        bound += (roundings - 1) * info.eps * terms
        for row, expected, allowed in zip(out, truth, bound, strict=True):
            error = (row[part].double() - expected).abs()
            assert (error <= allowed).all(), f"error {error.max():.3e} at elements {part}"


def gram_in_float64(x: torch.Tensor, base: torch.Tensor | None = None) -> torch.Tensor:
    """The Gram matrix in float64, a block of columns at a time."""
    return _in_blocks(lambda rows, origin: reference.gram(rows, origin), x, base)


def gram_error(result: torch.Tensor, truth: torch.Tensor) -> float:
    """The largest error of an entry, relative to the product of its two rows' norms."""
    norms = truth.diagonal().sqrt()
    allowed = torch.outer(norms, norms).clamp_min(torch.finfo(torch.float64).tiny)
    return ((result.double() - truth).abs() / allowed).max().item()


def check_gram(result: torch.Tensor, truth: torch.Tensor, n: int, *, based: bool) -> None:
    """Float64 sums of ``n`` products; with a base, of differences rounded to float32."""
    bound = n * torch.finfo(torch.float64).eps + (2 * FLOAT32_EPS if based else 0)
    error = gram_error(result, truth)
    assert error <= bound, f"relative error {error:.3e}, allowed {bound:.3e}"


def squared_distances_in_float64(x: torch.Tensor) -> torch.Tensor:
    """The distances of the first row to every row, in float64."""
    return _in_blocks(lambda rows, _: reference.pairwise_distances(rows[:1], other=rows), x, None)


def _in_blocks(
    function: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
    x: torch.Tensor,
    base: torch.Tensor | None,
) -> torch.Tensor:
    step = 1 << 18
    parts = [slice(start, start + step) for start in range(0, x.shape[1], step)]
    terms = [function(x[:, part], None if base is None else base[part]) for part in parts]
    return torch.stack(terms).sum(0)


def edges(n: int) -> Iterator[slice]:
    """The first, middle and last elements, of which checks look at every one."""
    for start in sorted({0, max(0, (n - EDGE) // 2), max(0, n - EDGE)}):
        yield slice(start, min(start + EDGE, n))
