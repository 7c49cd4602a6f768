"""What sketches tell of a model and others: distances, angles, and what it is a mix of.

Everything is taken from differences of sketches, in float32, summed in float64. A mix of models is
found without the sketches' error: they are linear, so what a mix leaves of a sketch is the sketch
of what it leaves of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from wkernels import cpu
from wkernels.sketches import SIZE
from wspace.devices import processors

MIXED = 16
"""Models that a mix is looked for among, at most."""

EXPLAINED = 0.95
"""Share of the squared distance to its nearest part that a mix must explain to count as one. The
mean of 16 models that were tuned from one explains 0.94 of that one, which is no mix of them."""

LEAST_WEIGHT = 0.02
"""Of a mix: less is taken for none."""

_TOLD = 1e-9  # of a squared length: all that sketches in float32 can tell
_SHORTLIST = 64  # models whose products with each other are looked at
_GAIN = 0.02  # share of what is left that a further model of a mix must explain

Rows = Sequence[np.ndarray]
"""Sketches: float32 ``[SIZE]`` each."""


def _pointers(rows: Rows) -> cpu.Pointers:
    return cpu.Pointers.of([row.ctypes.data for row in rows], ["float32"] * len(rows))


def _addresses(rows: Rows) -> np.ndarray:
    return np.array([row.__array_interface__["data"][0] for row in rows], np.int64)


def _products(op: str, rows: Rows, base: Rows) -> np.ndarray:
    out = np.zeros((1, len(rows), len(rows)))
    segments = np.array([[0, SIZE]])
    cpu.products(op, _pointers(rows), None, _pointers(base), segments, out, threads=processors())
    return out[0]


def distances(rows: Rows, row: np.ndarray) -> np.ndarray:
    """Of each row from one: float64 ``[n]``; standard deviation 0.28 % of each."""
    return np.sqrt(cpu.squared_distances(_addresses(rows), row, threads=processors()))


def close_pairs(rows: Rows, limits: np.ndarray, kinds: np.ndarray) -> list[list[int]]:
    """For each row the later rows that may be within a limit; ``limits[kind, kind]`` for two."""
    folded = np.stack([row.reshape(-1, _COARSE).sum(0, dtype=np.float64) for row in rows])
    origin = folded.mean(0)
    coarse = list((folded - origin).astype(np.float32))
    segments = np.array([[0, _COARSE]])
    squares = np.array([np.square(row, dtype=np.float64).sum() for row in coarse])
    found: list[list[int]] = []
    for start in range(0, len(rows), _BATCH):
        some, rest = coarse[start : start + _BATCH], coarse[start:]
        dots = np.zeros((1, len(some), len(rest)))
        cpu.products(
            "dot", _pointers(some), _pointers(rest), _pointers([]), segments, dots,
            threads=processors(),
        )  # fmt: skip
        found += _within(dots[0], squares, start, limits, kinds)
    return found


_COARSE = 1024  # buckets of a sketch that is folded: a squared distance to 4.4 %
_BATCH = 1024
_MARGIN = 1.5  # of squared distances, eleven of their standard deviations


def _within(
    dots: np.ndarray, squares: np.ndarray, start: int, limits: np.ndarray, kinds: np.ndarray
) -> list[list[int]]:
    found = []
    for i, row in enumerate(dots, start):
        apart = squares[i] + squares[start:] - 2 * row
        noise = 1e-13 * (squares[i] + squares[start:])  # rows are rounded to float32
        near = apart <= _MARGIN * limits[kinds[i], kinds[start:]] ** 2 + noise
        later = np.flatnonzero(near) + start
        found.append(later[later > i].tolist())
    return found


class Origins(NamedTuple):
    """Where a model comes from, as far as the others tell. Indices are into the rows given."""

    origin: int  # the parent, or the nearest
    parent: int | None
    children: list[int]  # of those near enough to tell
    cosines: np.ndarray  # float64 [n]: of model - origin and other - origin
    weights: dict[int, float]  # of the mix that explains the model best, without the least
    explained: float  # share of the squared distance to the nearest of them that it explains


def origins(rows: Rows, row: np.ndarray, apart: np.ndarray, related: float) -> Origins:
    """``apart``: :func:`distances`; rows further than ``related`` are nobody's parent or child.

    Task vectors of one base are nearly orthogonal, so that models lie around their base, and it is
    nearer to all of them than they are to each other. Which of two models is on the side of the
    others tells their median, over the others ``k``, of

        side(m) = (|row - k|**2 - |m - k|**2) / |row - m|**2

    near 1 where ``m`` is between the model and them, -1 where the model is, and 0 where both were
    tuned from a third. The parent is the nearest with a side above 1/2; if there is only one model,
    that one. Children have a side below -1/2 and the whole step from the parent to the model in
    theirs (half of it, to tell them from siblings that went further).

    The mix is found by orthogonal matching pursuit: of the differences from the origin, the one
    most in the direction of what is left, then least squares over those chosen.
    """
    near = np.flatnonzero(apart <= related)
    near = near[apart[near].argsort(kind="stable")][:_SHORTLIST]
    sides = _sides(rows, row, near)
    above = near[sides > 0.5]
    parent = int(above[0]) if len(above) else None
    origin = parent if parent is not None else int(apart.argmin())
    step, lengths = apart[origin] ** 2, distances(rows, rows[origin]) ** 2
    along = (step + lengths - apart**2) / 2  # <row - origin, other - origin>
    scale = np.sqrt(lengths * step)
    cosines = np.divide(along, scale, out=np.zeros(len(rows)), where=scale > 0)
    children = [int(k) for k in near[sides < -0.5] if parent is None or along[k] >= step / 2]
    weights, left = _mix(rows, row, origin, lengths, cosines, step)
    weights[origin] = 1 - sum(weights.values())
    weights = {k: w for k, w in weights.items() if abs(w) >= LEAST_WEIGHT}
    alone = min([step, *[apart[k] ** 2 for k in weights]])
    explained = max(0.0, 1 - left / alone) if alone else 1.0
    return Origins(origin, parent, children, cosines, weights, explained)


def _mix(
    rows: Rows, row: np.ndarray, origin: int, lengths: np.ndarray, cosines: np.ndarray, step: float
) -> tuple[dict[int, float], float]:
    """Factors of the others' differences from the origin, and the square of what they leave.

    Only some of the rows are tried: those most in the direction of the model, and then those most
    in the direction of what the first try left, in which a small part shows itself.
    """
    weights: dict[int, float] = {}
    left, tried = step, np.empty(0, np.int64)
    others = np.flatnonzero((lengths > 0) & (np.arange(len(rows)) != origin))
    while len(others) and left > _TOLD * step:
        more = others[(-np.abs(cosines[others])).argsort(kind="stable")][:_SHORTLIST]
        if set(more) <= set(tried):
            break
        tried = np.union1d(tried, more)
        picked = [rows[i] for i in tried]
        factors, left = _pursue(_products("dot", [row, *picked], [rows[origin]]))
        weights = {int(tried[k]): w for k, w in factors.items()}
        if len(tried) >= 2 * _SHORTLIST:
            break
        mixed = rows[origin].astype(np.float64)
        for k, w in weights.items():
            mixed += w * (rows[k].astype(np.float64) - rows[origin])
        rest = (row - mixed).astype(np.float32)
        along = cpu.products_along(_addresses(rows), rows[origin], rest, threads=processors())
        cosines = along / np.sqrt(np.where(lengths > 0, lengths, np.inf))
    return weights, left


def _sides(rows: Rows, row: np.ndarray, near: np.ndarray) -> np.ndarray:
    if len(near) < 2:
        return np.ones(len(near))
    squares = _products("l2", [row, *[rows[k] for k in near]], [])
    mine, between = squares[0, 1:], squares[1:, 1:]
    ahead = (mine[None, :] - between) / np.maximum(mine, np.finfo(float).tiny)[:, None]
    others = ~np.eye(len(near), dtype=bool)
    return np.array([np.median(ahead[k, others[k]]) for k in range(len(near))])


def _pursue(gram: np.ndarray) -> tuple[dict[int, float], float]:
    """The best few of the rows ``1 ..`` of a Gram matrix for its row 0.

    Returns their factors by their places (from 0), and the square of what is left.
    """
    target, products, between = gram[0, 0], gram[0, 1:], gram[1:, 1:]
    picked: list[int] = []
    factors, left = np.empty(0), target

    def fit(tried: list[int]) -> tuple[np.ndarray, float]:
        found = np.linalg.lstsq(between[np.ix_(tried, tried)], products[tried], rcond=1e-12)[0]
        return found, max(0.0, float(target - found @ products[tried]))

    # a wrong one may be among the first, and loses its weight to those that come later
    while len(picked) < min(2 * MIXED, len(products)) and left > _TOLD * target:
        rest = products - between[:, picked] @ factors
        rest[picked] = 0
        tried = [*picked, int((rest**2 / between.diagonal()).argmax())]
        solved, after = fit(tried)
        if after > (1 - _GAIN) * left:
            break
        picked, factors, left = tried, solved, after
    kept = [k for k, factor in zip(picked, factors, strict=True) if abs(factor) >= LEAST_WEIGHT]
    if kept and len(kept) < len(picked):
        picked, (factors, left) = kept, fit(kept)
    return dict(zip(picked, factors.tolist(), strict=True)), left
