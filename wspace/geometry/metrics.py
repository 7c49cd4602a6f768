"""Distances and angles between the models, and between models and mixes, from the Gram matrix."""

from __future__ import annotations

import torch

from wspace.grams import Gram
from wspace.weights import check_weights


def gram_matrix(gram: Gram | torch.Tensor, *, per_tensor: bool = False) -> torch.Tensor:
    """The checked matrix of inner products: float64 ``[n, n]``, symmetric bit for bit.

    With ``per_tensor``, ``[n_tensors, n, n]``. A matrix that is symmetric but for rounding (1e-9 of
    its largest diagonal entry) is averaged with its transpose; anything else is refused, as are
    NaN, Inf and negative squared norms.
    """
    if not per_tensor:
        matrix = gram.total if isinstance(gram, Gram) else gram
    elif isinstance(gram, Gram) and gram.per_tensor is not None:
        matrix = gram.per_tensor
    else:
        raise ValueError("per_tensor=True needs a Gram that was made with per_tensor=True")
    if not isinstance(matrix, torch.Tensor) or matrix.dtype != torch.float64:
        kind = matrix.dtype if isinstance(matrix, torch.Tensor) else type(matrix).__name__
        raise TypeError(f"gram: expected a Gram or a float64 tensor [n, n], got {kind}")
    matrix = matrix.detach().cpu()
    if matrix.ndim != 2 + per_tensor or matrix.shape[-1] != matrix.shape[-2] or not len(matrix):
        raise ValueError(
            f"gram: expected shape [n, n] with n of 1 or more, got {list(matrix.shape)}"
        )
    norms = matrix.diagonal(dim1=-2, dim2=-1)
    refused = ~matrix.isfinite() | torch.diag_embed(norms < 0)
    if refused.any():
        entry = tuple(refused.nonzero()[0].tolist())
        raise ValueError(f"gram: entry {list(entry)} is {matrix[entry]:g}, no inner product")
    flipped = matrix.mT
    excess = (matrix - flipped).abs() - 1e-9 * norms.amax(dim=-1)[..., None, None]
    if (excess > 0).any():
        entry = tuple((excess > 0).nonzero()[0].tolist())
        raise ValueError(
            f"gram: expected a symmetric matrix, but entry {list(entry)} is {matrix[entry]:g} and "
            f"its mirror image {flipped[entry]:g}"
        )
    return (matrix + flipped) / 2


def squared_distances(gram: Gram | torch.Tensor, *, per_tensor: bool = False) -> torch.Tensor:
    """``max(0, G_ii + G_jj - 2 G_ij)``: float64 ``[n, n]``, or ``[n_tensors, n, n]``."""
    matrix = gram_matrix(gram, per_tensor=per_tensor)
    norms = matrix.diagonal(dim1=-2, dim2=-1)
    return (norms[..., :, None] + norms[..., None, :] - 2 * matrix).clamp_min(0)


def distances(gram: Gram | torch.Tensor, *, per_tensor: bool = False) -> torch.Tensor:
    """Euclidean distances between the models: ``sqrt(max(0, G_ii + G_jj - 2 G_ij))``.

    Float64 ``[n, n]``, or ``[n_tensors, n, n]``; symmetric bit for bit, exactly 0 on the diagonal
    and between copies of a model. Squares carry the rounding of the entries, about 1e-16 of
    ``G_ii + G_jj``: without a base, distances below 1e-7 of the norms are noise.
    """
    return squared_distances(gram, per_tensor=per_tensor).sqrt()


def norms(gram: Gram | torch.Tensor, *, per_tensor: bool = False) -> torch.Tensor:
    """``sqrt(G_ii)``: how far each model is from the base, or without one from zero.

    Float64 ``[n]``, or ``[n_tensors, n]``.
    """
    return gram_matrix(gram, per_tensor=per_tensor).diagonal(dim1=-2, dim2=-1).sqrt()


def cosines(gram: Gram | torch.Tensor, *, per_tensor: bool = False) -> torch.Tensor:
    """Cosine similarity of the task vectors: ``G_ij / sqrt(G_ii G_jj)``, within [-1, 1].

    Float64 ``[n, n]``, or ``[n_tensors, n, n]``; the diagonal is exactly 1. A task vector of zero
    (a model equal to the base) has no direction: its cosine is 0 with every other model.
    Source: the paper (arXiv 2302.04863), section 4, which clusters by it.
    """
    similar = directions(gram, per_tensor=per_tensor)
    similar.diagonal(dim1=-2, dim2=-1).fill_(1)
    return similar


def directions(gram: Gram | torch.Tensor, *, per_tensor: bool = False) -> torch.Tensor:
    """Gram matrix of the task vectors scaled to length 1, where those of zero stay zero.

    Float64 ``[n, n]``, or ``[n_tensors, n, n]``: :func:`cosines`, but for the diagonal.
    """
    matrix = gram_matrix(gram, per_tensor=per_tensor)
    lengths = matrix.diagonal(dim1=-2, dim2=-1).sqrt()
    products = lengths[..., :, None] * lengths[..., None, :]
    return torch.where(products > 0, matrix / products, 0).clamp(-1, 1)


def mixed_gram(gram: Gram | torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Gram matrix of mixes, ``W G W^T``: distances and angles of models that were never made.

    ``weights [n_mixes, n]`` as for a merge. Returns float64 ``[n_mixes, n_mixes]``, from the same
    origin as ``gram``, to pass to any function here; rows of ``torch.eye(n)`` stand for the models.
    """
    rows = _mixes(gram, weights)
    mixed = _products(_products(rows, gram_matrix(gram)), rows)
    return (mixed + mixed.T) / 2


def distances_to_centroid(gram: Gram | torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Distance of every model to each mix: ``sqrt(G_ii - 2 (G w)_i + w^T G w)``.

    ``weights [n_mixes, n]``, or ``[n]`` for one mix, as for a merge: any rows with a base; without
    one, rows that sum to 1. Returns float64 ``[n_mixes, n]``.
    Numerics: taken from squared distances, ``sum_j w_j d_ij^2 - sum_jl w_j w_l d_jl^2 / 2`` with
    the base as one more point of weight ``1 - sum(w)``: exactly 0 from a model to itself.
    """
    rows = _mixes(gram, weights)
    squared = squared_distances(torch.nn.functional.pad(gram_matrix(gram), (0, 1, 0, 1)))
    rows = torch.cat([rows, 1 - rows.sum(dim=1, keepdim=True)], dim=1)
    toward = _products(rows, squared)
    spread = (toward * rows).sum(dim=1, keepdim=True) / 2
    return (toward[:, :-1] - spread).clamp_min(0).sqrt()


def _products(rows: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """``rows @ others.T``, with bits that do not depend on the number of threads."""
    return torch.stack([(others * row).sum(dim=1) for row in rows])


def _mixes(gram: Gram | torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    # a plain matrix has its origin at the base, as far as anyone can tell
    has_base = gram.has_base if isinstance(gram, Gram) else True
    return torch.from_numpy(check_weights(weights, len(gram_matrix(gram)), has_base))
