"""The loops of one mix of rows of one type, stored in that type as soon as it is summed.

The commonest weighted sum, without what costs others a pass: a block of sums to round later, and a
block of the base. ``like`` stands for the stored type (``STAND_INS``); ``n_models`` (of ``GROUPS``)
and ``bypass`` are literals; ``base`` is None or, like ``out``, the address of its element
``first``. The order within ``sums`` is that of ``Loop.load_line``.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from wkernels.cpu.parts import intrinsic, types
from wkernels.cpu.row_sums import chain, factors_at, starts_of
from wkernels.cpu.stores import Output, all_finite
from wkernels.cpu.vectors import FLOAT, Loop, lines
from wkernels.dtypes import FLOATS

STAND_INS = {
    "float32": np.empty(0, np.float32),
    "bfloat16": np.empty(0, np.uint16),
    "float16": np.empty(0, np.int16),
}
"""Arrays by whose type a kernel is compiled for one stored type."""

NAMES = {array.dtype.name: name for name, array in STAND_INS.items()}


def stand_in(codes: Iterable[int]) -> np.ndarray | None:
    """That of the one type that all have; None if they have several, or one without vectors."""
    different = set(codes)
    return STAND_INS.get(list(FLOATS)[different.pop()]) if len(different) == 1 else None


class _Rows:
    """A loop over rows that are added to sums."""

    def __init__(
        self, builder, name, n_models, rows, first, n, base, factors, sums, ahead, carried
    ):
        self._starts = starts_of(builder, rows, first, name, n_models)
        self._factors = factors_at(builder, factors, n_models)
        self._name, self._base, self._sums = name, base, sums
        self.loop = Loop(builder, n, carried)
        for start in self._starts if base is None else [*self._starts, base]:
            self.loop.fetch(start, name, ahead)

    def origins(self, line: int):
        """A line of the base, as vectors."""
        return self.loop.load_line(self._base, self._name, line)

    def totals(self, line: int, vectors):
        """The sums that a line adds to, with the line."""
        loop, builder = self.loop, self.loop.builder
        rows = [loop.load_line(start, self._name, line) for start in self._starts]
        if self._base is not None:
            origins = self.origins(line)
            rows = [map(builder.fsub, row, origins) for row in rows]
        sums = [loop.load(self._sums, FLOAT, 4, k) for k in vectors]
        values = zip(*rows, strict=True)
        return [
            chain(builder, column, self._factors, total)
            for column, total in zip(values, sums, strict=True)
        ]


@intrinsic(prefer_literal=True)
def add_rows(context, like, n_models, rows, first, n, base, factors, sums, ahead):
    """``sums += factors[0] * (row 0 - base) + ...``, one rounding each."""

    def generate(context, builder, signature, args):
        _, _, rows, first, n, origin, factors, sums, ahead = args
        name, origin = NAMES[str(like.dtype)], None if base is types.none else origin
        added = _Rows(builder, name, n_models.literal_value, rows, first, n, origin, factors, sums,
                      ahead, [])  # fmt: skip
        for line, vectors in lines(name):
            for k, total in zip(vectors, added.totals(line, vectors), strict=True):
                added.loop.store(total, sums, FLOAT, 4, k)
        added.loop.end()
        return context.get_dummy_value()

    three = [types.int64] * 3
    return types.void(like, n_models, *three, base, *three), generate


@intrinsic(prefer_literal=True)
def store_rows(context, like, n_models, bypass, rows, first, n, base, factors, sums, out, ahead):
    """``out = base + (sums + factors[0] * (row 0 - base) + ...)``, rounded once to its type.

    Returns whether all is finite; where it is not, what was stored counts for nothing.
    """

    def generate(context, builder, signature, args):
        _, _, _, rows, first, n, origin, factors, sums, out, ahead = args
        name, origin = NAMES[str(like.dtype)], None if base is types.none else origin
        added = _Rows(builder, name, n_models.literal_value, rows, first, n, origin, factors, sums,
                      ahead, [Output.FIRST])  # fmt: skip
        output = Output(added.loop, *added.loop.totals, out, name, bypass=bypass.literal_value,
                        paired=True)  # fmt: skip
        for line, vectors in lines(name):
            totals = added.totals(line, vectors)
            if origin is not None:
                totals = list(map(builder.fadd, added.origins(line), totals))
            output.put(totals, line)
        return all_finite(builder, *added.loop.end([output.largest]), name)

    three = [types.int64] * 3
    return types.boolean(like, n_models, bypass, *three, base, *three, types.int64), generate
