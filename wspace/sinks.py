"""Where the results of chunks go: to the files of outputs, and their checksums with them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from wspace.profiling import TAKEN, stage
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


class _Asked(NamedTuple):
    """Blocks whose checksums a kernel may take, in the order in which they end."""

    homes: Sequence[tuple[CheckpointWriter, int]]  # outputs, and their shards
    home: np.ndarray  # int64 [n]
    number: np.ndarray  # int64 [n], of the block in the shard
    digests: Digests

    def learn(self) -> None:
        """Tell the outputs what was taken."""
        taken = self.digests.taken.view(bool)
        found = self.digests.as_bytes()
        for k in np.unique(self.home).tolist():
            own = taken & (self.home == k)
            writer, shard = self.homes[k]
            with stage(TAKEN, int(self.digests.lengths[own].sum())):
                writer.learn(shard, self.number[own], found[own])


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
        self._asked: list[_Asked] = []

    def digests(self, first: int, n: int) -> Digests | None:
        """Those of blocks that lie in ``n`` elements of the rows; :meth:`write` looks at them."""
        function = digest_function()
        if not function:
            return None
        from wkernels.cpu import Digests

        homes, table = self._blocks
        low, high = first * self._width, (first + n) * self._width
        of_part = table[:, slice(*np.searchsorted(table[3], (low, high), "right"))]
        home, number, start, stop, address = of_part[:, of_part[2] >= low]
        starts, stops = start // self._width - first, stop // self._width - first
        digests = Digests.of(function, starts, stops, address, stop - start)
        self._asked.append(_Asked(homes, home, number, digests))
        return digests

    @cached_property
    def _blocks(self) -> tuple[list[tuple[CheckpointWriter, int]], np.ndarray]:
        """Outputs and their shards, and the blocks that lie in the rows, as they end: which of
        those, number, first and last byte in the row, address; int64 ``[5, n]``."""
        homes: list[tuple[CheckpointWriter, int]] = []
        columns: list[np.ndarray] = []
        for writer, row, runs in self._runs:
            address = self._buffer.ctypes.data + row
            for shard, position, at, nbytes in runs:
                numbers, starts, stops = writer.blocks_in(shard, position, nbytes)
                starts, stops = starts - position + at, stops - position + at
                which = np.full(len(numbers), len(homes))
                columns.append(np.stack([which, numbers, starts, stops, address + starts]))
                homes.append((writer, shard))
        table = np.concatenate(columns, axis=1)
        return homes, table[:, np.argsort(table[3], kind="stable")]

    def write(self) -> list[Future[None]]:
        """Start writing; the buffer must stay as it is until all futures are done."""
        for asked in self._asked:
            asked.learn()
        futures = []
        for writer, row, runs in self._runs:
            for shard, position, at, nbytes in runs:
                view = self._buffer[row + at : row + at + nbytes]
                futures += writer.write(shard, position, view)
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
