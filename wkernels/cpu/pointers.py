"""Rows of memory as the CPU kernels take them: where each starts, and what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from wkernels.dtypes import CODES


class Pointers(NamedTuple):
    """``n`` rows: addresses (int64 ``[n]``, aligned to the element) and type codes (int64 ``[n]``).

    Whoever makes one keeps the memory alive.
    """

    addresses: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, addresses: Sequence[int], names: Sequence[str]) -> Pointers:
        return cls(
            np.array(addresses, dtype=np.int64),
            np.array([CODES[name] for name in names], dtype=np.int64),
        )

    def __len__(self) -> int:  # rows, not fields
        return self.addresses.shape[0]

    @property
    def compute(self) -> type[np.floating]:
        """float64 if any row is, else float32."""
        return np.float64 if (self.codes == CODES["float64"]).any() else np.float32
