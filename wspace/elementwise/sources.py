"""Chunks that statistics are taken from, as often as they need them.

A tensor that fits into the memory budget is a part of one chunk, and is read once. A larger one is
read again for each statistic.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np

from wspace.errors import BudgetError
from wspace.stream import CUT, Chunk, ChunkPlan, Piece
from wspace.zoo import Zoo


@dataclass(frozen=True)
class Layout:
    """A zoo's tensors cut into chunks."""

    whole: list[ChunkPlan]  # of whole tensors
    cut: list[list[ChunkPlan]]  # a tensor each
    rounds: Sequence[Sequence[Sequence[int]]] = ()
    """For each tensor that is cut, the uses whose statistics are found in the same reads."""
    sifted: Sequence[frozenset[int]] = ()
    """And those whose thresholds are found by a sieve, as there is room for what it keeps."""

    @property
    def cut_tensors(
        self,
    ) -> Iterator[tuple[list[ChunkPlan], Sequence[Sequence[int]], frozenset[int]]]:
        return zip(self.cut, self.rounds, self.sifted, strict=True)

    @property
    def plans(self) -> list[ChunkPlan]:
        return [*self.whole, *(plan for plans in self.cut for plan in plans)]


def lay_out(
    zoo: Zoo, rows: Sequence[int], fitting: Callable, target: Callable, unit: Callable, most: int
) -> Layout:
    """``fitting(dtypes)``, ``target(dtypes)``: elements that fit, and that a chunk should have.

    ``unit(tensor)``: a tensor that does not fit is cut at multiples of it, into chunks of the size
    that they should have. ``most``: pieces in a chunk.
    """
    whole: list[ChunkPlan] = []
    cut: list[list[ChunkPlan]] = []
    pieces: list[Piece] = []
    filled, group, dtypes = 0, (), ()

    def close() -> None:
        nonlocal pieces, filled
        if pieces:
            whole.append(ChunkPlan(tuple(pieces), dtypes, filled))
        pieces, filled = [], 0

    for index, tensor in enumerate(zoo.tensors):
        if tensor.group != group:
            close()
            group = tensor.group
            dtypes = tuple([tensor.stored[row].record.dtype for row in rows])
        n, limit = tensor.numel, fitting(dtypes)
        if n > limit:
            step = unit(tensor)
            if step > limit:
                raise BudgetError(f"a row of tensor {tensor.name!r} of {step} elements")
            # half of the memory is for what its statistics hold
            step *= max(1, min(limit // 2, max(target(dtypes), CUT)) // step)
            parts = [(start, min(start + step, n)) for start in range(0, n, step)]
            cut.append([ChunkPlan((Piece(index, a, b, 0),), dtypes, b - a) for a, b in parts])
            continue
        full = filled + n > min(limit, max(target(dtypes), CUT))
        if pieces and (full or len(pieces) == most):
            close()
        if n:
            pieces.append(Piece(index, 0, n, filled))
            filled += n
    close()
    return Layout(whole, cut)


class View(NamedTuple):
    """Rows of a chunk as a device's kernels take them, and which tensors they are runs of."""

    rows: Any
    base: Any  # None: rows are no differences, but magnitudes
    segments: np.ndarray  # int64 [n_pieces, 2]
    firsts: np.ndarray  # int64 [n_pieces]: where each starts in its tensor
    slots: np.ndarray  # int [n_pieces]: the tensor's place in the tables
    tensors: tuple[int, ...]  # and in the zoo
    n: int
    at: int = 0  # elements before it in its chunk

    def split(self, units: np.ndarray) -> View:
        """Pieces cut into runs of ``units[piece]`` elements."""
        lengths = self.segments[:, 1] - self.segments[:, 0]
        counts = -(-lengths // np.maximum(units, 1))
        owner = np.repeat(np.arange(len(lengths)), counts)
        place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
        offsets = place * units[owner]
        starts = self.segments[owner, 0] + offsets
        stops = np.minimum(starts + units[owner], self.segments[owner, 1])
        return self._replace(
            segments=np.stack([starts, stops], axis=1), firsts=self.firsts[owner] + offsets,
            slots=self.slots[owner],
        )  # fmt: skip


def view_of(chunk: Chunk, rows: Any, base: Any) -> View:
    """A chunk, of which the rows and the base are these; each piece has a slot."""
    pieces = chunk.plan.pieces
    return View(
        rows,
        base,
        np.array([(p.at, p.at + p.stop - p.start) for p in pieces], np.int64).reshape(-1, 2),
        np.array([p.start for p in pieces], np.int64),
        np.arange(len(pieces)),
        tuple([p.tensor for p in pieces]),
        chunk.plan.n,
    )


Blocks = Sequence[tuple[int, int]]
"""Slots and starts, counted from the tensor's start: runs of ``CUT`` elements, or up to its end."""


Take = Callable[[View], None]


class Step(NamedTuple):
    """What a statistic needs to see next."""

    take: Take
    blocks: Blocks | None = None  # None: all runs of its tensors, in order


T = TypeVar("T")
Steps = Generator[Step, None, T]
"""Taken one after the other: what a step saw decides the next. Returns the statistic."""


def changed(steps: Steps[T], change: Callable[[Take, View], None]) -> Steps[T]:
    """The same steps, each taken by ``change(take, view)``."""
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return end.value
        yield Step(partial(change, step.take), step.blocks)


def lines_around(start: int, unit: int, n: int) -> tuple[int, int]:
    """The whole lines of ``unit`` elements that a block of a tensor of n elements lies in."""
    return start // unit * unit, min(-(-(start + CUT) // unit) * unit, n)


@dataclass(frozen=True)
class Source:
    """Some tensors, from the start each time that :meth:`runs` is called, in order.

    What it gives is a view, or what views are made of.
    """

    runs: Callable[[], Iterator[Any]]
    at: Callable[[Blocks], Iterator[Any]]


def take_all(
    statistics: Sequence[tuple[Steps[None], Callable[[Any], View]]], source: Source
) -> int:
    """Takes all steps of the statistics; what several wait for is read once.

    Each has a function that makes its views of what the source gives. Returns how often all of the
    source was read.
    """
    times = 0
    waiting = [
        (steps, view_of, step) for steps, view_of in statistics if (step := next(steps, None))
    ]
    while waiting:
        blocks = next((step.blocks for *_, step in waiting if step.blocks is not None), None)
        served = [each for each in waiting if each[2].blocks == blocks]
        for part in source.runs() if blocks is None else source.at(blocks):
            for _, view_of, step in served:
                step.take(view_of(part))
        times += blocks is None
        waiting = [
            (steps, view_of, following)
            for steps, view_of, step in waiting
            if (following := next(steps, None) if step.blocks == blocks else step)
        ]
    return times


def in_memory(view: View) -> Source:
    """Whole tensors, one in each slot."""

    def at(blocks: Blocks) -> Iterator[View]:
        if not blocks:
            return
        slots, firsts = np.array(blocks, np.int64).T
        starts = view.segments[slots, 0] + firsts
        stops = np.minimum(starts + CUT, view.segments[slots, 1])
        yield view._replace(
            segments=np.stack([starts, stops], axis=1), firsts=firsts, slots=slots,
            tensors=tuple([view.tensors[slot] for slot in slots]),
        )  # fmt: skip

    return Source(lambda: iter([view]), at)
