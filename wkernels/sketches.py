"""What a sketch of a tensor is: ``SIZE`` sums of its elements with random signs. Imports no torch.

    S[b] = sum of sign(k) * x[k] over the elements k that fall into bucket b

The sketch is linear, and keeps inner products: for two tensors of one key,

    E <S(x), S(y)> = <x, y>        Var <S(x), S(y)> <= (|x|**2 |y|**2 + <x, y>**2) / SIZE

so that a squared distance has a standard deviation of at most ``ERROR`` of itself. That is a count
sketch (Charikar, Chen and Farach-Colton 2002) whose buckets are made for vectors. The tensor is cut
into rows of ``SIZE`` elements, and each row is turned by an offset of its own:

    bucket of element k = (k + offset of row k // SIZE) mod SIZE

Elements of one row never meet, and two of different rows meet with a chance of exactly 1 / SIZE,
which is all that the variance asks for, whatever the tensor is made of. Signs and offsets are draws
of SplitMix64 (``wkernels.masks``) by the tensor's key: bit ``b % WORD`` of draw
``row * (SIZE // WORD) + b // WORD`` is the sign of the element in bucket ``b`` of a row (1 is
minus), and the upper bits of draw ``OFFSETS + row`` are the row's offset. So neither chunks,
threads nor the order of tensors change what a sketch is.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SIZE = 65536
"""Buckets: floats of a sketch."""

WORD = 64
"""Signs of one draw."""

OFFSETS = 1 << 63
"""The first of the draws that are offsets."""

ERROR = (2 / SIZE) ** 0.5
"""Standard deviation of a squared distance or norm, of itself: 0.55 %. Of a distance, half of that.
An inner product has at most this much of the two norms' product, and ``SIZE ** -0.5`` (0.39 %) if
the two are orthogonal."""


class Runs(NamedTuple):
    """Runs of tensors that are added to a sketch, in this order; arrays of one length ``n``.

    The runs of a tensor must come in order and cover it, in one call or in several, before those of
    another tensor begin.
    """

    segments: np.ndarray  # int64 [n, 2]: start and stop in the row of memory
    firsts: np.ndarray  # int64: the element of the tensor at which the run starts
    sizes: np.ndarray  # int64: elements of the tensor
    parts: np.ndarray  # int64: which of the sums the tensor belongs to
    keys: np.ndarray  # uint64: of the tensor


class SketchSums:
    """Sketches of ``n_parts`` sets of tensors while they are made: float64 ``[n_parts, SIZE]``.

    Each tensor is summed in float64 in the order of its elements, and the tensors in twice that
    precision, so that their order does not matter.
    """

    def __init__(self, n_parts: int = 1) -> None:
        self.high, self.low = np.zeros((2, n_parts, SIZE))
        self.open = np.zeros(SIZE)  # of the tensor that is being read

    @property
    def nbytes(self) -> int:
        return self.high.nbytes + self.low.nbytes + self.open.nbytes

    def value(self, *parts: int) -> np.ndarray:
        """The sketch of all tensors of these parts together: float64 ``[SIZE]``."""
        chosen = list(parts)
        return self.high[chosen].sum(0) + self.low[chosen].sum(0)
