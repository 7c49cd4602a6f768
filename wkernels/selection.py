"""From counts of digits to thresholds: which magnitudes are among the k largest. Imports no torch.

The rule for equal magnitudes: what is beyond the threshold is kept, then the elements equal to it
in the order of their places, until there are k.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from wkernels.masks import BEYOND, DIGITS, NOTHING

ALL = 1 << 62
"""A place after every element."""


class Selection:
    """Thresholds of the ``largest[t, i]`` largest of ``sizes[t]`` elements, found digit by digit.

    Walk through :meth:`digits`; count each in all elements, and give the counts to :meth:`narrow`.
    Then ``bits`` and ``before`` are the tables of a ``Mask``, except where ``left`` is not 0: there
    the place of the ``left``-th element equal to ``bits`` is still to be found, and put into
    ``before``.
    """

    def __init__(self, largest: np.ndarray, sizes: np.ndarray, *, wide: bool = False) -> None:
        self.compute = "float64" if wide else "float32"
        self.none = largest <= 0
        self.all = largest >= np.broadcast_to(sizes[:, None], largest.shape)
        self.prefix = np.zeros(largest.shape, np.int64)
        self.left = np.maximum(largest, 1).astype(np.int64)
        self._equal = np.zeros(largest.shape, np.int64)

    @property
    def trivial(self) -> bool:
        """Whether nothing has to be counted."""
        return bool((self.none | self.all).all())

    def digits(self) -> Iterator[tuple[int, int]]:
        """``(shift, width)`` of each digit that is to be counted."""
        return iter(() if self.trivial else DIGITS[self.compute])

    def narrow(self, counts: np.ndarray, width: int) -> None:
        """``counts`` int64 ``[T, N, 2**width]``: of elements whose higher digits are ``prefix``."""
        beyond = np.cumsum(counts[..., ::-1], axis=-1)  # in this bin and those above it
        steps = (beyond < self.left[..., None]).sum(axis=-1)
        steps = np.minimum(steps, counts.shape[-1] - 1)  # where nothing counts
        found = np.take_along_axis(beyond, steps[..., None], -1)[..., 0]
        digit = counts.shape[-1] - 1 - steps
        self._equal = np.take_along_axis(counts, digit[..., None], -1)[..., 0]
        self.left = self.left - (found - self._equal)
        self.prefix = (self.prefix << width) | digit

    def settle(self) -> tuple[np.ndarray, np.ndarray]:
        """``(bits, before)``, after the last digit."""
        bits = np.where(self.none, BEYOND["float64"], np.where(self.all, NOTHING, self.prefix))
        fixed = self.none | self.all
        split = ~fixed & (self.left < self._equal)
        before = np.where(fixed | split, 0, ALL)
        self.left = np.where(split, self.left, 0)
        return bits, before
