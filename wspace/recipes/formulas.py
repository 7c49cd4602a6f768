"""Merge methods as coefficients: pure float64 arithmetic on Gram matrices, many tensors at once.

``gram`` is ``[T, n, n]``: for each tensor, the inner products of its ``n`` rows (models, or their
differences from the base). Each function returns the factors of the rows, ``[T, n]``, or ``[n]``
where they do not depend on the tensors. NaN stands for "there is no such point". Formulas are those
of the sources named; guards against small numbers are mergekit's, so that results agree with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Weights = Sequence[float] | np.ndarray

PARALLEL = 0.9995
"""|cosine| above which slerp is a straight line."""


def linear(weights: Weights, *, normalize: bool) -> np.ndarray:
    """``sum_i w_i x_i``, divided by ``sum_i w_i`` if ``normalize``.

    Raises ValueError where that sum is zero. Source: Model soups, arXiv 2203.05482.
    """
    w = np.asarray(weights, dtype=np.float64)
    if not normalize:
        return w
    total = w.sum()
    if abs(total) <= 1e-12 * np.abs(w).sum():
        raise ValueError("the weights sum to 0; give others, or normalize: false")
    return w / total


def task_arithmetic(weights: Weights, *, normalize: bool, scale: float) -> np.ndarray:
    """``scale * sum_i w_i delta_i``, divided by ``sum_i w_i`` if ``normalize`` (unless it is 0).

    Source: Task arithmetic, arXiv 2212.04089.
    """
    w = np.asarray(weights, dtype=np.float64)
    total = w.sum()
    divisor = total if normalize and abs(total) >= 1e-8 else 1.0
    return scale * w / divisor


def slerp(gram: np.ndarray, t: float) -> np.ndarray:
    """``[sin((1 - t) a) x_0 + sin(t a) x_1] / sin(a)``, ``a`` the angle of ``x_0`` and ``x_1``.

    Where their cosine is beyond ``PARALLEL``, ``(1 - t) x_0 + t x_1``. Source: Shoemake 1985.
    """
    norms = _norms(gram)
    lengths = np.where(norms > 1e-8, norms, 1.0)
    cosine = gram[:, 0, 1] / (lengths[:, 0] * lengths[:, 1])
    return _arc(cosine, t, straight=np.abs(cosine) > PARALLEL)


def nuslerp(gram: np.ndarray, weights: Weights) -> np.ndarray:
    """:func:`slerp` at ``w_2 / (w_1 + w_2)``, straight only where the arc has no sine."""
    first, second = weights
    total = first + second
    t = second / total if abs(total) >= 1e-6 else 0.5
    lengths = np.maximum(_norms(gram), 1e-7)
    cosine = np.clip(gram[:, 0, 1] / (lengths[:, 0] * lengths[:, 1]), -1, 1)
    return _arc(cosine, t, straight=np.abs(np.sin(np.arccos(cosine))) < 1e-8)


def _arc(cosine: np.ndarray, t: float, straight: np.ndarray) -> np.ndarray:
    angle = np.arccos(np.clip(np.where(straight, 0, cosine), -1, 1))
    arc = np.stack([np.sin((1 - t) * angle), np.sin(t * angle)], axis=1) / np.sin(angle)[:, None]
    return np.where(straight[:, None], np.array([1 - t, t]), arc)


def multislerp(
    gram: np.ndarray, weights: Weights, *, normalize_weights: bool, eps: float
) -> np.ndarray:
    """The weighted mean direction, with the weighted mean length.

    ``c_i = (sum_k w_k n_k) / s * w_i / n_i`` with ``s`` the length of ``sum_i w_i v_i / n_i``. The
    published method then moves along a tangent that is zero. Directions that cancel have no mean:
    of two, their weighted sum; of more, NaN. Source: goddard.blog, multislerp.
    """
    w = np.asarray(weights, dtype=np.float64)
    if normalize_weights:
        if abs(w.sum()) <= 1e-12 * np.abs(w).sum():
            raise ValueError("the weights sum to 0; give others, or normalize_weights: false")
        w = w / w.sum()
    norms = _norms(gram)
    on_units = w / (norms + eps)
    length = np.sqrt(np.maximum(np.einsum("ti,tij,tj->t", on_units, gram, on_units), 0))
    cancel = length < eps
    mean = (norms @ w)[:, None] * on_units / np.where(cancel, 1, length)[:, None]
    zero = (norms == 0).all(axis=1)  # all rows are zero, and so is what is made of them
    mean = np.where(zero[:, None], w, mean)
    return np.where((cancel & ~zero)[:, None], w if len(w) == 2 else np.nan, mean)


def karcher(gram: np.ndarray, *, max_iter: int, tol: float) -> np.ndarray:
    """The mean of the rows' directions on the sphere, with the rows' mean length.

    Gradient steps on the sphere, each iterate a combination of the unit rows. Rows shorter than
    ``tol`` have no direction, but count in the length. Source: Karcher 1977; arXiv 2603.04972.
    """
    norms = _norms(gram)
    n = norms.shape[1]
    counted = norms > tol
    lengths = np.where(counted, norms, 1)
    units = gram / (lengths[:, :, None] * lengths[:, None, :])
    units = np.where(counted[:, :, None] & counted[:, None, :], units, 0)
    share = counted / np.maximum(counted.sum(axis=1), 1)[:, None]
    start = _length(units, share)
    first = np.eye(n)[counted.argmax(axis=1)] * counted
    at = np.where((start < tol)[:, None], first, share / np.where(start < tol, 1, start)[:, None])
    running = counted.any(axis=1)
    for _ in range(max_iter):
        cosine = np.clip(np.einsum("tij,tj->ti", units, at), -1, 1)
        angle = np.arccos(cosine)
        sine = np.sin(angle)
        near = (angle < tol) | (sine == 0)
        pull = np.where(near, 0, share * angle / np.where(near, 1, sine))
        step = pull - (pull * cosine).sum(axis=1)[:, None] * at
        length = _length(units, step)
        running = running & (length >= tol)
        if not running.any():
            break
        move = np.sin(length) / np.where(running, length, 1)
        moved = np.cos(length)[:, None] * at + move[:, None] * step
        moved_length = _length(units, moved)
        moved = moved / np.where(moved_length > 0, moved_length, 1)[:, None]
        at = np.where(running[:, None], moved, at)
    return norms.mean(axis=1)[:, None] * at / lengths


def model_stock(gram: np.ndarray, *, eps: float) -> np.ndarray:
    """``t / n`` for each delta: between the base and the mean, by how much the deltas agree.

    ``t = n c / (1 + (n - 1) c)`` with ``c`` the mean cosine of all pairs; where that divides by
    zero, the base. ``eps`` bounds the divisor of a cosine from below. Source: Model Stock, arXiv
    2403.19522.
    """
    n = gram.shape[1]
    norms = _norms(gram)
    rows, columns = np.triu_indices(n, 1)
    lengths = np.maximum(norms[:, rows] * norms[:, columns], eps)
    products = gram[:, rows, columns]
    cosines = np.clip(products / np.where(lengths > 0, lengths, 1), -1, 1)
    mean = cosines.mean(axis=1)
    divisor = 1 + (n - 1) * mean
    singular = np.abs(divisor) < 1e-12
    t = np.where(singular, 0, n * mean / np.where(singular, 1, divisor))
    return np.repeat(t[:, None] / n, n, axis=1)


def geometric_median(gram: np.ndarray, *, max_iter: int, tol: float) -> np.ndarray:
    """The mix with the least sum of distances to all rows, by Weiszfeld's iteration on its weights.

    ``w_i ~ 1 / |x_i - sum_k w_k x_k|`` from the average, until no weight moves by more than
    ``tol``; a row that the mix reaches keeps it. Source: Weiszfeld 1937; RFA, arXiv 1912.13445.
    """
    n = gram.shape[1]
    at = np.full(gram.shape[:2], 1 / n)
    squares = np.einsum("tii->ti", gram)
    tiny = 1e-14 * np.maximum(squares.max(axis=1, initial=0), np.finfo(np.float64).tiny)[:, None]
    running = np.ones(len(gram), bool)
    for _ in range(max_iter):
        along = np.einsum("tij,tj->ti", gram, at)
        mean = (along * at).sum(axis=1, keepdims=True)
        pull = 1 / np.sqrt(np.maximum(squares - 2 * along + mean, tiny))
        moved = pull / pull.sum(axis=1, keepdims=True)
        done = np.abs(moved - at).max(axis=1, initial=0) <= tol
        at = np.where(running[:, None], moved, at)
        running &= ~done
        if not running.any():
            break
    return at


def _norms(gram: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(np.einsum("tii->ti", gram), 0))


def _length(units: np.ndarray, factors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(np.einsum("ti,tij,tj->t", factors, units, factors), 0))
