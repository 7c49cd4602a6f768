"""A zoo's columns divided among processes: ranges of about the same number of bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from wspace.shares import Share
from wspace.storage.headers import BITS
from wspace.stream import ChunkPlan, Piece
from wspace.zoo import Zoo

SPAN = 1 << 20
"""Elements. Ranges start at multiples of it from their tensor's start, so that whatever the
processes are, sums are made of the same terms (see ``wspace.passes``), and no block of an output
that is journaled belongs to two of them (a test compares them)."""

Place = tuple[int, int]
"""A column: the number of its tensor, and of its element in there."""


class Columns(NamedTuple):
    """Those from ``first`` up to ``last``, in the order of the zoo's tensors."""

    first: Place
    last: Place

    def of(self, tensor: int, start: int, stop: int) -> tuple[int, int]:
        """What of the elements ``start .. stop`` of a tensor is in the range."""
        if tensor < self.first[0] or tensor > self.last[0]:
            return start, start
        if tensor == self.first[0]:
            start = min(max(start, self.first[1]), stop)
        if tensor == self.last[0]:
            stop = max(min(stop, self.last[1]), start)
        return start, stop


def divided(zoo: Zoo, rows: Sequence[int], n: int, *, whole: bool = False) -> list[Columns]:
    """All columns in ``n`` ranges, by the bytes of ``rows`` of ``zoo.checkpoints``.

    ``whole``: cut only between tensors. A range may be empty.
    """
    widths = [sum(BITS[t.stored[row].record.dtype] for row in rows) // 8 for t in zoo.tensors]
    sizes = [t.numel * width for t, width in zip(zoo.tensors, widths, strict=True)]
    starts = [0, *accumulate(sizes)]
    cuts: list[Place] = [(0, 0)]
    for k in range(1, n):
        wanted = starts[-1] * k // n
        tensor = min(bisect_right(starts, wanted), len(sizes)) - 1
        numel = zoo.tensors[tensor].numel
        step = numel if whole else SPAN
        inside = (wanted - starts[tensor]) // max(1, widths[tensor])
        element = (2 * inside + step) // max(1, 2 * step) * step  # the nearest
        cuts.append((tensor, element) if element < numel else (tensor + 1, 0))
    cuts.append((len(sizes), 0))
    return [Columns(first, last) for first, last in pairwise(cuts)]


def own_columns(zoo: Zoo, rows: Sequence[int], share: Share, *, whole: bool = False) -> Columns:
    """Those of one share."""
    return divided(zoo, rows, share.n, whole=whole)[share.index]


def within(plans: Sequence[ChunkPlan], columns: Columns) -> list[ChunkPlan]:
    """What of the chunks is in a range."""
    found = []
    for plan in plans:
        pieces: list[Piece] = []
        n = 0
        for piece in plan.pieces:
            start, stop = columns.of(piece.tensor, piece.start, piece.stop)
            if start < stop:
                pieces.append(Piece(piece.tensor, start, stop, n))
                n += stop - start
        if n == plan.n:
            found.append(plan)
        elif pieces:
            found.append(ChunkPlan(tuple(pieces), plan.dtypes, n))
    return found
