"""Where the results of chunks go: to the files of outputs, and their checksums with them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from wspace.storage.digests import digest_function
from wspace.storage.headers import BITS
from wspace.storage.writing import CheckpointWriter
from wspace.stream import Chunk, ChunkPlan

if TYPE_CHECKING:
    from wkernels.cpu import Digests

Places = Sequence[tuple[str, int]]
"""For each of a zoo's tensors, the output tensor that it is part of, and the element of it at which
it starts."""


class Results(Protocol):
    """A chunk's results, in a buffer."""

    def digests(self, first: int, n: int) -> Digests | None:
        """The checksums that are wanted of ``n`` elements of all rows, counted from ``first``."""
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

    def digests(self, first: int, n: int) -> Digests | None:
        """Those of blocks that lie in ``n`` elements of the rows."""
        function = digest_function()
        if not function:
            return None
        from wkernels.cpu import Digests, Run

        low, high = first * self._width, (first + n) * self._width
        found: list[Run] = []
        borders: list[np.ndarray] = []  # of one output; the others are cut like it
        for k, (writer, row, runs) in enumerate(self._runs):
            address = self._buffer.ctypes.data + row
            for shard, position, at, nbytes in _between(runs, low, high):
                starts, tables = writer.blocks_in(shard, position, nbytes)
                found.append(Run(address + low, address + at - position, len(starts), *tables))
                if k == 0:
                    borders.append((starts + (at - position - low)) // self._width)
        joined = np.concatenate(borders) if len(borders) > 1 else borders[0]
        return Digests.of(function, self._width, found, joined)

    def write(self) -> list[Future[None]]:
        """Start writing; the buffer must stay as it is until all futures are done."""
        futures = []
        for writer, row, runs in self._runs:
            for shard, position, at, nbytes in runs:
                view = self._buffer[row + at : row + at + nbytes]
                futures += writer.write(shard, position, view)
        return futures


def _between(runs: list[list[int]], low: int, high: int) -> Iterator[tuple[int, int, int, int]]:
    """What of runs (see :func:`_runs`) lies between two bytes of the row."""
    for k in range(bisect_right(runs, low, key=lambda run: run[2]) - 1, len(runs)):
        shard, position, at, nbytes = runs[k]
        if at >= high:
            return
        start, stop = max(at, low), min(at + nbytes, high)
        yield shard, position + start - at, start, stop - start


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
