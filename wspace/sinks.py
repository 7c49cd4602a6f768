"""Where the results of chunks go: to the files of outputs, and their checksums with them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from wspace.devices import Ready
from wspace.storage.headers import BITS
from wspace.storage.writing import CheckpointWriter
from wspace.stream import Chunk, ChunkPlan

Places = Sequence[tuple[str, int]]
"""For each of a zoo's tensors, the output tensor that it is part of, and the element of it at which
it starts."""


class Results(Protocol):
    """A chunk's results, in a buffer."""

    def ready(self, first: int, n: int) -> Ready:
        """What takes ``n`` elements of all rows, counted from ``first``, once they are there."""
        ...

    def write(self) -> list[Future[None]]:
        """Hand all of them on; the buffer must stay as it is until all futures are done."""
        ...


class Sink(Protocol):
    """Where the rows of mixes go."""

    def positions(self, plan: ChunkPlan, dtype: str) -> list[int]:
        """The byte that each mix's row would start at in its file."""
        ...

    def results(self, plan: ChunkPlan, buffer: Any, starts: Sequence[int], dtype: str) -> Results:
        """``starts``: of the mixes' rows in the buffer."""
        ...


class FileResults:
    """Results on their way to files."""

    def __init__(
        self,
        runs: Sequence[tuple[CheckpointWriter, int, list[list[int]]]],
        buffer: np.ndarray,
        width: int,
    ) -> None:
        """``runs``: of each mix, where its row starts in the buffer, and where parts of it go."""
        self._runs, self._buffer, self._width = runs, buffer, width
        self._summed = False

    def ready(self, first: int, n: int) -> Ready:
        """Takes the checksums of ``n`` elements of all rows, counted from ``first``."""
        starts = self._block_starts
        own = starts[bisect_left(starts, first) : bisect_left(starts, first + n)]
        near = [start - first for start in own]
        return Ready(lambda start, stop: self._sum(first + start, first + stop), near)

    @cached_property
    def _block_starts(self) -> list[int]:
        """Elements at which blocks start that have checksums."""
        return sorted(
            (at + start - position) // self._width
            for writer, _, runs in self._runs[:1]
            for shard, position, at, nbytes in runs
            for start in writer.blocks_in(shard, position, nbytes)
        )

    def _sum(self, first: int, stop: int) -> None:
        self._summed = True
        first, stop, data = first * self._width, stop * self._width, self._buffer.data
        for writer, row, runs in self._runs:
            for shard, position, at, nbytes in runs:
                start, end = max(at, first), min(at + nbytes, stop)
                if start < end:
                    writer.sum(shard, position + start - at, data[row + start : row + end])

    def write(self) -> list[Future[None]]:
        """Start writing; the buffer must stay as it is until all futures are done."""
        futures = []
        for writer, row, runs in self._runs:
            for shard, position, at, nbytes in runs:
                view = self._buffer[row + at : row + at + nbytes]
                futures += writer.write(shard, position, view, summed=self._summed)
        return futures


class FileSink:
    """Writes each mix's row to its checkpoint, neighbouring tensors in one piece."""

    def __init__(self, outputs: Sequence[tuple[Places, CheckpointWriter]]) -> None:
        self._outputs = outputs

    def results(
        self, plan: ChunkPlan, buffer: Any, starts: Sequence[int], dtype: str
    ) -> FileResults:
        """``starts``: of the mixes' rows in the buffer."""
        runs = [
            (writer, row_start, _runs(plan, dtype, places, writer))
            for (places, writer), row_start in zip(self._outputs, starts, strict=True)
        ]
        return FileResults(runs, buffer, BITS[dtype] // 8)

    def __call__(self, chunk: Chunk, buffer, starts, dtype: str) -> list[Future[None]]:
        """The buffer is the sink's until all futures are done."""
        return self.results(chunk.plan, buffer, starts, dtype).write()

    def positions(self, plan: ChunkPlan, dtype: str) -> list[int]:
        """Where in its file each mix's row would start, if all of it went where most of it goes."""
        found = []
        for places, writer in self._outputs:
            longest = max(_runs(plan, dtype, places, writer), key=lambda run: run[3])
            found.append(longest[1] - longest[2])
        return found

    def has(self, plan: ChunkPlan, dtype: str) -> bool:
        """Whether an earlier run has written all that comes of a chunk."""
        return all(
            writer.resumed
            and all(
                writer.finished(shard, position, nbytes)
                for shard, position, _, nbytes in _runs(plan, dtype, places, writer)
            )
            for places, writer in self._outputs
        )


def _runs(plan: ChunkPlan, dtype: str, places: Places, writer: CheckpointWriter) -> list[list[int]]:
    """Where a chunk's results go: shard, byte in its file, byte in the row of results, bytes."""
    width = BITS[dtype] // 8
    runs: list[list[int]] = []
    for piece in plan.pieces:
        name, first = places[piece.tensor]
        shard, position = writer.place(name, (first + piece.start) * width)
        nbytes = (piece.stop - piece.start) * width
        if runs and runs[-1][0] == shard and runs[-1][1] + runs[-1][3] == position:
            runs[-1][3] += nbytes
        else:
            runs.append([shard, position, piece.at * width, nbytes])
    return runs
