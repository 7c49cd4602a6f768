"""The tables of several uses of the same tensors: what is kept alike is found once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import NamedTuple

import numpy as np

from wspace.elementwise.choices import Choice
from wspace.elementwise.kernels import Kernels
from wspace.elementwise.sources import Source, View, in_memory, take_all, view_of
from wspace.elementwise.statistics import Tables, draw_key
from wspace.elementwise.work import Work
from wspace.storage.headers import BITS
from wspace.stream import Chunk, ChunkPlan, Piece


class Whole(NamedTuple):
    """What is known of whole models: the bits of each one's threshold, and the sign of most."""

    thresholds: np.ndarray
    undecided: float


class Ready(NamedTuple):
    """A run of tensors with one choice, and the tables that say what becomes of them."""

    view: View
    tables: Tables
    choice: Choice


Shared = dict[Hashable, tuple[View, Tables]]
Content = dict[int, list[tuple[Hashable, Choice]]]
"""Of each use, which of the shared tables its choices need."""


class Preparing:
    """Makes what the uses of a work need to write its chunks.

    ``wholes``: for each use, what is known of whole models.
    """

    def __init__(self, work: Work, kernels: Kernels, wholes: Sequence[Whole | None]) -> None:
        self._work, self._kernels, self._wholes = work, kernels, wholes

    def whole(self, chunk: Chunk, uses: Sequence[int]) -> Iterator[tuple[int, list[Ready]]]:
        """Of a chunk of whole tensors, for one use after the other; the scores of one are held."""
        shared: Shared = {}
        content: Content = {use: [] for use in uses}
        for use in uses:
            for first, pieces, choice in _runs(chunk.plan, self._work.uses[use].choices):
                key = (*self._key(use, choice), first, len(pieces))
                if key not in shared:
                    view = self._part(chunk, use, pieces)
                    shared[key] = view, self._tables(use, choice, view.tensors)
                shared[key][1].add(choice)
                content[use].append((key, choice))
        found: set[Hashable] = set()

        def prepare(key: Hashable) -> None:
            if key not in found:
                view, tables = shared[key]
                take_all([(tables.steps(keep_scores=True), _itself)], in_memory(view))
                found.add(key)

        yield from _served(shared, content, prepare)

    def cut(
        self, tensor: int, rounds: Sequence[Sequence[int]], sifted: Collection[int], source: Source
    ) -> tuple[Callable[[Chunk, Sequence[int]], Iterator[tuple[int, list[Ready]]]], int]:
        """Reads a tensor that does not fit for the statistics of all uses in the rounds.

        ``sifted``: uses whose thresholds are found by a sieve.
        Returns :meth:`whole` for its chunks, and how often all of it was read.
        """
        tables_of: dict[Hashable, Tables] = {}
        reads = 0
        for uses in rounds:
            statistics = []
            for use in uses:
                choice = self._work.uses[use].choices[tensor]
                key = self._key(use, choice)
                if key not in tables_of:
                    tables_of[key] = tables = self._tables(use, choice, (tensor,), use in sifted)
                    steps = tables.steps(keep_scores=False)
                    statistics.append((steps, partial(self.view, use=use)))
                tables_of[key].add(choice)
            reads += take_all(statistics, source)

        def content(chunk: Chunk, uses: Sequence[int]) -> Iterator[tuple[int, list[Ready]]]:
            shared: Shared = {}
            content: Content = {}
            for use in uses:
                choice = self._work.uses[use].choices[tensor]
                key = self._key(use, choice)
                if key not in shared:
                    shared[key] = self.view(chunk, use), tables_of[key]
                content[use] = [(key, choice)]
            return _served(shared, content, lambda key: None)

        return content, reads

    def view(self, chunk: Chunk, use: int) -> View:
        """A use's rows of a chunk, with its pieces in slots of their own."""
        own = chunk.of_rows(self._work.uses[use].which)
        return view_of(own, *self._kernels.rows(own))

    def _part(self, chunk: Chunk, use: int, pieces: Sequence[Piece]) -> View:
        """The same for neighbouring pieces alone."""
        at = pieces[0].at
        moved = tuple([piece._replace(at=piece.at - at) for piece in pieces])
        n = pieces[-1].at + pieces[-1].stop - pieces[-1].start - at
        dtypes = chunk.plan.dtypes
        starts = tuple(
            [
                start + at * BITS[dtype] // 8
                for start, dtype in zip(chunk.starts, dtypes, strict=True)
            ]
        )
        part = Chunk(ChunkPlan(moved, dtypes, n), chunk.buffer, starts)
        return self.view(part, use)._replace(at=at)

    def _key(self, use: int, choice: Choice) -> tuple[Hashable, ...]:
        """The same for those that keep the same."""
        return self._work.alike[use], choice.keep, id(self._wholes[use])

    def _tables(
        self, use: int, choice: Choice, tensors: Sequence[int], sifted: bool = True
    ) -> Tables:
        work = self._work
        of, whole = work.uses[use], self._wholes[use]
        keys = [[draw_key(work.seed, model, of.names[t]) for model in of.models] for t in tensors]
        return Tables(
            choice.keep, [work.zoo.tensors[t].shape for t in tensors],
            np.array(keys, np.uint64).reshape(len(tensors), len(of.models)),
            wide=any(work.wide(of, t) for t in tensors), kernels=self._kernels,
            thresholds=whole and whole.thresholds, sifted=sifted,
        )  # fmt: skip


def _runs(
    plan: ChunkPlan, choices: Sequence[Choice]
) -> Iterator[tuple[int, tuple[Piece, ...], Choice]]:
    """The chunk's runs of tensors with one choice, and the first one's number."""
    first = 0
    for _, run in groupby(plan.pieces, key=lambda piece: id(choices[piece.tensor])):
        pieces = tuple(run)
        yield first, pieces, choices[pieces[0].tensor]
        first += len(pieces)


def _served(
    shared: Shared, content: Content, prepare: Callable[[Hashable], None]
) -> Iterator[tuple[int, list[Ready]]]:
    """Use by use, those of the same tables one after the other: their scores are made once."""
    places = {key: place for place, key in enumerate(shared)}
    for use in sorted(content, key=lambda use: places[content[use][0][0]]):
        needed = dict(content[use])
        for key, (_, tables) in shared.items():
            if key not in needed:
                tables.forget()
        for key in needed:
            prepare(key)
        yield use, [Ready(*shared[key], choice) for key, choice in content[use]]
    for _, tables in shared.values():
        tables.forget()


def _itself(view: View) -> View:
    return view
