"""Which elements of a difference count, and how those that count are joined. Imports no torch.

Both are tables of numbers, one for each segment (a run of one tensor) and each row. They describe
every element on its own: neither chunks, threads nor the device change what they mean.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
"""SplitMix64 (Steele, Lea and Flood 2014): draw ``k`` is the mix of ``key + (k + 1) * GAMMA``."""

CHANCE_BITS = 24
"""The upper bits of a draw, as a float32 below 1: an element is kept if that is below its chance"""

NOTHING = -1
"""Below the bits of every magnitude."""

BEYOND = {"float32": (1 << 31) - 1, "float64": (1 << 63) - 1}
"""Above the bits of every magnitude that is compared with it, NaN included."""

DIGITS = {
    "float32": ((20, 11), (10, 10), (0, 10)),
    "float64": ((52, 11), (41, 11), (30, 11), (20, 10), (10, 10), (0, 10)),
}
"""``(shift, width)`` of the digits, highest first, of a magnitude's bits (those without sign)."""


class Mask(NamedTuple):
    """Element ``k`` of row ``i`` in segment ``s`` is kept if all three hold; tables ``[S, N]``.

    - it is among the largest: ``bits > keep``, or ``bits == keep`` and ``k < keep_before``
    - it is not an outlier: not (``bits > drop``, or ``bits == drop`` and ``k < drop_before``)
    - it is drawn: SplitMix64 of ``(key, k)``, as a number in [0, 1), is below ``chance``

    ``bits``: those of the magnitude of the row's difference (or of a score given instead), as an
    integer, which has the order of the magnitudes. ``k`` counts from the start of the tensor.
    """

    keep: np.ndarray  # int64
    keep_before: np.ndarray  # int64
    drop: np.ndarray  # int64
    drop_before: np.ndarray  # int64
    key: np.ndarray  # uint64
    chance: np.ndarray  # float32

    def of(self, which: np.ndarray) -> Mask:
        """The mask of some segments."""
        return Mask(*(np.ascontiguousarray(table[which]) for table in self))


def no_mask(n_segments: int, n_rows: int) -> Mask:
    """Keeps everything; tables are to be filled in."""
    shape = (n_segments, n_rows)
    return Mask(
        np.full(shape, NOTHING, np.int64), np.zeros(shape, np.int64),
        np.full(shape, BEYOND["float64"], np.int64), np.zeros(shape, np.int64),
        np.zeros(shape, np.uint64), np.ones(shape, np.float32),
    )  # fmt: skip


ELECT = {"none": 0, "sum": 1, "signs": 2}


class Joint(NamedTuple):
    """``out = base + scale * sum_i factor_i d_i / max(sum_i share_i, least)`` over what agrees.

    ``d_i``: the masked difference of row ``i``; tables are float64 ``[S, N]``.

    - Election (``elect``): the sign of ``sum_i vote_i d_i`` (``sum``), or of the sum of the signs
      of those terms (``signs``); where that is 0, ``undecided``. Rows agree where ``vote_i d_i`` is
      of that sign, which 0 never is. With ``none``, all rows agree where ``d_i`` is not 0.
    - Division (``divide``): by the shares of the rows that agree; by 1 where those sum to 0.
    - Where one row agrees alone, its term is multiplied by ``lone_i`` (if ``lone`` is not None).
    """

    factor: np.ndarray
    vote: np.ndarray
    share: np.ndarray
    scale: np.ndarray  # float64 [S]
    lone: np.ndarray | None = None
    elect: str = "none"
    divide: bool = False
    least: float = 0.0
    undecided: float = 1.0

    def of(self, which: np.ndarray) -> Joint:
        """The joint of some segments."""
        lone = None if self.lone is None else self.lone[which]
        return self._replace(
            factor=self.factor[which], vote=self.vote[which], share=self.share[which],
            scale=self.scale[which], lone=lone,
        )  # fmt: skip
