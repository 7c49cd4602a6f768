"""A low-rank update of a tensor, never written out: ``W = base + scale * left @ right``."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from wspace.derived.operands import Operand, compute_type
from wspace.storage.headers import BITS, TensorRecord
from wspace.storage.reading import DERIVED_REQUEST


class Factor(NamedTuple):
    """A matrix of a file, or its transpose; more than two axes count as a matrix of ``rows``."""

    operand: Operand
    transposed: bool = False

    @property
    def _stored(self) -> tuple[int, int]:
        rows = self.operand.shape[0]
        return rows, self.operand.numel // max(rows, 1)

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self._stored
        return (columns, rows) if self.transposed else (rows, columns)

    def rows(self, first: int, end: int, compute: type[np.floating]) -> np.ndarray:
        """Rows ``first .. end``, contiguous."""
        n_rows, n_columns = self._stored
        if not self.transposed:
            found = self.operand.floats(first * n_columns, end * n_columns, compute)
            return found.reshape(end - first, n_columns)
        runs = [
            self.operand.floats(row * n_columns + first, row * n_columns + end, compute)
            for row in range(n_rows)
        ]
        return np.ascontiguousarray(np.stack(runs, axis=1))

    def whole(self, compute: type[np.floating]) -> np.ndarray:
        found = self.operand.floats(0, self.operand.numel, compute).reshape(self._stored)
        return np.ascontiguousarray(found.T) if self.transposed else found


class LowRank:
    """``W = base + scale * left @ right``, with zeros for no base, and for no factors.

    Products and sums in float32 (float64 if anything is), in the order of the rank: first those of
    the update, which is then added to the base. The scale goes into ``left``.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        left: Factor | None,
        right: Factor | None,
        scale: float,
        base: Operand | None,
    ) -> None:
        self.left, self.right, self.scale, self._base = left, right, scale, base
        operands = [f.operand for f in (left, right) if f] + ([base] if base else [])
        code, self._compute = compute_type(*operands)
        numel = math.prod(shape)
        self._columns = numel // max(shape[0], 1)
        if left and right:
            inner = left.shape[1] == right.shape[0]
            if not inner or (left.shape[0], right.shape[1]) != (shape[0], self._columns):
                raise ValueError(
                    f"factors {list(left.shape)} and {list(right.shape)} do not fit a tensor of "
                    f"shape {list(shape)}"
                )
        width = BITS[code] // 8
        self.record = TensorRecord(code, shape, 0, width * numel)
        donor = base or (operands[0] if operands else None)
        self.dtype = donor.tensor.written if donor else "F32"
        self.nbytes = sum(operand.tensor.read_bytes for operand in operands)
        held = sum(2 * width * f.operand.numel for f in (left, right) if f)
        self.workspace = 3 * DERIVED_REQUEST + held + (base.workspace if base else 0)

    def fill(self, start: int, view: np.ndarray) -> None:
        from wkernels.cpu.derived import add_low_rank

        compute = self._compute
        width = compute().itemsize
        first, n = start // width, len(view) // width
        if self._base:
            values = self._base.floats(first, first + n, compute)
        else:
            values = np.zeros(n, compute)
        if self.left and self.right and n:
            top, end = first // self._columns, -(-(first + n) // self._columns)
            scaled = self.left.rows(top, end, np.float64) * self.scale
            add_low_rank(values, first, scaled.astype(compute), self.right.whole(compute))
        view[:] = values.view(np.uint8)
