"""An embedding put together anew: each row taken from some model's, or a mean, or zeros."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wspace.derived.operands import Operand, compute_type
from wspace.storage.headers import BITS, TensorRecord
from wspace.storage.reading import DERIVED_REQUEST

ZERO, MEAN, FILL = -1, -2, -3
"""Kinds of rows that are no one model's: zeros; the mean over the models that have the token; the
mean of all rows that stand for a token, for those that stand for none."""


@dataclass(frozen=True)
class Rows:
    """Where each row of an embedding comes from; many tensors share one."""

    source: np.ndarray  # int64 [n_rows]: index of an operand, or ZERO, MEAN, FILL
    row: np.ndarray  # int64 [n_rows]: its row there
    of_mean: np.ndarray  # int64 [n_operands, n_rows]: the token's row in each, -1 where it has none

    def __len__(self) -> int:
        return len(self.source)

    def identity(self, operand: int) -> bool:
        """Whether the rows are the first rows of that operand, in order."""
        own = (self.source == operand).all()
        return bool(own and (self.row == np.arange(len(self.row))).all())


class GatheredRows:
    """``W[i] = operands[source[i]][row[i]]``, and rows that are computed.

    Rows that are taken over keep their bits, where all that are used have one type; otherwise, and
    with means among them, everything is float32 (float64 if anything is). Means are summed in
    float64 in the order of the operands, and rounded once.
    """

    def __init__(
        self, rows: Rows, operands: Sequence[Operand | None], own: int, shape: tuple[int, ...]
    ) -> None:
        self._rows, self._operands = rows, tuple(operands)
        self._n = len(rows)
        self._length = int(np.prod(shape, dtype=np.int64)) // max(self._n, 1)
        used = set(rows.source[rows.source >= 0].tolist())
        if (rows.source == MEAN).any():
            used |= set(np.flatnonzero((rows.of_mean >= 0).any(axis=1)).tolist())
        donor = operands[own] or next(o for o in operands if o)
        taken = [operand for k, operand in enumerate(operands) if k in used and operand]
        mixed = bool(((rows.source == MEAN) | (rows.source == FILL)).any())
        if mixed or len({operand.dtype for operand in (*taken, donor)}) > 1:
            code, self._compute = compute_type(*taken, donor)
        else:
            code, self._compute = donor.dtype, None
        self._width = BITS[code] // 8
        self.record = TensorRecord(code, shape, 0, self._width * self._n * self._length)
        self.dtype = donor.tensor.written
        share = self._n / max(1, donor.numel // max(self._length, 1))
        self.nbytes = int(share * donor.tensor.read_bytes)
        self.workspace = 4 * max(DERIVED_REQUEST, 2 * self._width * self._length) + max(
            operand.workspace for operand in (*taken, donor)
        )
        self._fill: np.ndarray | None = None
        self._lock = threading.Lock()

    def fill(self, start: int, view: np.ndarray) -> None:
        row_bytes = self._width * self._length
        first, end = start // row_bytes, -(-(start + len(view)) // row_bytes)
        found = self._made(np.arange(first, end)).reshape(-1).view(np.uint8)
        view[:] = found[start - first * row_bytes :][: len(view)]

    def _made(self, which: np.ndarray) -> np.ndarray:
        """Rows of the output: raw bytes, or in the computing type."""
        source, row = self._rows.source[which], self._rows.row[which]
        width, kind = (self._length, self._compute) if self._compute else (
            self._width * self._length, np.uint8
        )  # fmt: skip
        found = np.zeros((len(which), width), kind)
        for k in np.unique(source[source >= 0]).tolist():
            at = np.flatnonzero(source == k)
            found[at] = self._taken(k, row[at], kind)
        at = np.flatnonzero(source == MEAN)
        if len(at):
            found[at] = self._means(which[at])
        at = np.flatnonzero(source == FILL)
        if len(at):
            found[at] = self._filling()
        return found

    def _taken(self, k: int, rows: np.ndarray, kind) -> np.ndarray:
        """Rows of an operand: those that follow one another in one read."""
        operand, length = self._operands[k], self._length
        assert operand is not None
        cuts = np.flatnonzero(np.diff(rows) != 1) + 1
        firsts, ends = rows[np.r_[0, cuts]], rows[np.r_[cuts - 1, len(rows) - 1]] + 1
        parts = [
            operand.raw(a * length, b * length) if kind is np.uint8
            else operand.floats(a * length, b * length, kind)
            for a, b in zip(firsts.tolist(), ends.tolist(), strict=True)
        ]  # fmt: skip
        return np.concatenate(parts).reshape(len(rows), -1)

    def _means(self, which: np.ndarray) -> np.ndarray:
        total = np.zeros((len(which), self._length))
        count = np.zeros((len(which), 1))
        for k, rows in enumerate(self._rows.of_mean[:, which]):
            has = np.flatnonzero(rows >= 0)
            if len(has) and self._operands[k]:
                total[has] += self._taken(k, rows[has], np.float64)
                count[has] += 1
        return total / np.maximum(count, 1)

    def _filling(self) -> np.ndarray:
        """The mean of the rows that stand for tokens: one pass over them, when it is first used."""
        with self._lock:
            if self._fill is None:
                self._fill = self._mean_of_all()
            return self._fill

    def _mean_of_all(self) -> np.ndarray:
        real = np.flatnonzero(self._rows.source != FILL)
        total = np.zeros(self._length)
        step = max(1, DERIVED_REQUEST // max(1, 8 * self._length))
        for first in range(0, len(real), step):
            total += self._made(real[first : first + step]).sum(axis=0, dtype=np.float64)
        return total / max(1, len(real))
