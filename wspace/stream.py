"""The zoo as a stream of chunks: the same run of elements of every checkpoint, read ahead.

A chunk is made of pieces of tensors. Pieces are cut at multiples of ``CUT`` elements from their
tensor's start, so that sums over blocks have the same bits however a stream is cut.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from wspace.devices import Device
from wspace.errors import BudgetError
from wspace.profiling import READS, stage
from wspace.storage.checkpoints import Checkpoint, StoredTensor
from wspace.storage.headers import BITS, KERNEL_NAMES
from wspace.storage.reading import Range, Reader, append_range
from wspace.storage.remote import FAR_THREADS, FAR_WORKSPACE
from wspace.storage.residence import PAGE
from wspace.zoo import Zoo

CUT = 16384
"""Elements. A multiple of the kernels' blocks (a test compares them)."""

LONG_CUT = 8 * CUT
"""Elements: chunks that have so many of a tensor end at a multiple of these, so that no block of
an output that has a checksum is in two chunks (of any type of 16 bits or more)."""

SLOTS = 3
"""Input buffers: one that the kernel works on, and two being filled."""

OUTPUTS = 3
"""Output buffers of a pass that writes: one being filled, the others on their way to the disk."""

BESIDES = 4 << 20
"""Bytes that a pass takes besides buffers: stacks, requests to a disk, Python's objects. Of small
budgets an eighth is kept for it."""

LEAST_REQUEST = 64 << 10
"""Bytes of a request to a disk, where memory is scarce."""

ALIGNMENT = 256
"""Bytes; where each row of a buffer starts."""

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and in all."""


class Piece(NamedTuple):
    """A run of one tensor inside a chunk."""

    tensor: int  # index into Zoo.tensors
    start: int  # elements, from the tensor's start
    stop: int
    at: int  # elements, from the chunk's start


@dataclass(frozen=True)
class ChunkPlan:
    pieces: tuple[Piece, ...]
    dtypes: tuple[str, ...]  # safetensors name, one for each checkpoint that is read
    n: int  # elements

    @property
    def nbytes(self) -> int:
        """Read for it."""
        return self.n * sum(BITS[dtype] for dtype in self.dtypes) // 8


@dataclass(frozen=True)
class Chunk:
    """Rows of one buffer, on the device; valid until the next chunk is asked for."""

    plan: ChunkPlan
    buffer: Any  # uint8: a numpy array (CPU) or a torch tensor (GPU)
    starts: tuple[int, ...]  # bytes, one for each row

    def of_rows(self, which: Sequence[int]) -> Chunk:
        """The chunk with only those of its rows, in that order."""
        if len(which) == len(self.starts) and list(which) == list(range(len(which))):
            return self
        dtypes = tuple([self.plan.dtypes[k] for k in which])
        starts = tuple([self.starts[k] for k in which])
        return Chunk(ChunkPlan(self.plan.pieces, dtypes, self.plan.n), self.buffer, starts)

    @property
    def names(self) -> list[str]:
        """The kernels' names of the rows' types."""
        return [KERNEL_NAMES[dtype] for dtype in self.plan.dtypes]


def row_starts(n: int, dtypes: Sequence[str]) -> tuple[tuple[int, ...], int]:
    """Where rows of ``n`` elements start in a buffer, in bytes, and how long it is."""
    starts, position = [], 0
    for dtype in dtypes:
        starts.append(position)
        position += -(-n * BITS[dtype] // 8 // ALIGNMENT) * ALIGNMENT
    return tuple(starts), position


def output_starts(
    n: int, dtypes: Sequence[str], positions: Sequence[int]
) -> tuple[tuple[int, ...], int]:
    """:func:`row_starts` of rows that are written to ``positions`` of their files.

    In the buffer, that starts at a page, each lies in its pages as it will in its file's: so the
    file system takes it straight from there (see ``wspace.storage.files``).
    """
    starts, end = [], 0
    for dtype, position in zip(dtypes, positions, strict=True):
        width = BITS[dtype] // 8
        starts.append(end + ((position - end) % PAGE if position % width == 0 else -end % width))
        end = starts[-1] + n * width
    return tuple(starts), end


def output_slack(out_bytes: int) -> int:
    """Bytes that buffers of outputs need beyond ``out_bytes`` for each element."""
    return OUTPUTS * PAGE * (out_bytes // 2)  # at most a page a row, and no type is narrower


def plan_chunks(
    zoo: Zoo,
    rows: Sequence[int],
    n_elements: Callable[[Sequence[str]], int],
    max_pieces: int,
    span: int | None = None,
) -> Iterator[ChunkPlan]:
    """Cut the zoo's tensors into chunks of up to ``n_elements(dtypes)`` elements.

    ``rows``: which of ``zoo.checkpoints`` are read. All tensors of a chunk have the same group:
    the same dtypes in all checkpoints, read or not. ``span``: pieces are cut at its multiples, too.
    """
    pieces: list[Piece] = []
    filled = 0
    dtypes: tuple[str, ...] = ()
    group: tuple[str, ...] = ()
    limit = 0
    for index, tensor in enumerate(zoo.tensors):
        start = 0
        if pieces and tensor.group != group:
            yield ChunkPlan(tuple(pieces), dtypes, filled)
            pieces, filled = [], 0
        if tensor.group != group:
            group = tensor.group
            dtypes = tuple([tensor.stored[row].record.dtype for row in rows])
            limit = n_elements(dtypes)
        while start < tensor.numel:
            room = limit - filled
            stop = min(tensor.numel, start + room)
            if stop < tensor.numel:
                whole = LONG_CUT if stop - start >= LONG_CUT else CUT
                stop = start + (stop - start) // whole * whole
            full = stop < tensor.numel
            if span and stop > (border := (start // span + 1) * span):
                stop, full = border, False
            if stop > start:
                pieces.append(Piece(index, start, stop, filled))
                filled += stop - start
                start = stop
            if full or len(pieces) >= max_pieces:
                yield ChunkPlan(tuple(pieces), dtypes, filled)
                pieces, filled = [], 0
    if pieces:
        yield ChunkPlan(tuple(pieces), dtypes, filled)


def for_buffers(budget: int) -> int:
    """What of a budget the buffers may take."""
    return budget - min(BESIDES, budget // 8)


def chunk_elements(budget: int, target: int, in_dtypes: Sequence[str], out_bytes: int) -> int:
    """Elements of a chunk: ``SLOTS`` inputs and ``OUTPUTS`` outputs within ``budget`` bytes.

    ``target``: bytes of input that the device likes best in one chunk. ``out_bytes``: bytes of
    output for each element. Raises BudgetError if not even ``CUT`` elements fit.
    """
    in_bytes = sum(BITS[dtype] for dtype in in_dtypes) // 8
    fixed = SLOTS * len(in_dtypes) * ALIGNMENT + output_slack(out_bytes)
    per_element = SLOTS * in_bytes + OUTPUTS * out_bytes
    fitting = (for_buffers(budget) - fixed) // per_element
    if fitting < CUT:
        raise BudgetError(f"one chunk of {CUT} elements of {len(in_dtypes)} checkpoints")
    best = max(CUT, target // max(1, in_bytes))
    return min(fitting, best) // CUT * CUT


def reading_threads(checkpoints: Iterable[Checkpoint]) -> int:
    if any(checkpoint.is_remote for checkpoint in checkpoints):
        return FAR_THREADS
    return min(8, 2 * (os.cpu_count() or 1))


def reading_workspace(
    checkpoints: Sequence[Checkpoint], tensors: Iterable[Sequence[StoredTensor]]
) -> int:
    """Bytes that the threads hold besides the buffers while they read these tensors: answers of
    servers, and what derived tensors are computed from."""
    largest = max(
        (s.derived.workspace for stored in tensors for s in stored if s.derived), default=0
    )
    remote = any(checkpoint.is_remote for checkpoint in checkpoints)
    return largest * reading_threads(checkpoints) + (FAR_WORKSPACE if remote else 0)


class Buffers:
    """What chunks are read into. A stream after another that takes the same ones holds no more."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self.nbytes = nbytes  # of each
        self._device = device
        self._free: list[np.ndarray] = []

    def take(self) -> np.ndarray:
        """The last that was given back: the caches may have it; else a new one."""
        return self._free.pop() if self._free else self._device.host_buffer(self.nbytes)

    def give_back(self, buffer: np.ndarray) -> None:
        self._free.append(buffer)


class Stream:
    """Chunks of a zoo in order, read ahead into reused buffers; each byte is read once.

    ``rows``: which of ``zoo.checkpoints`` to read. ``plans``: the chunks. ``until``: for each
    chunk, the one with which the work on it ends; itself, if not given. ``buffers``: of an earlier
    stream, taken if they are long enough. Iterate once, inside ``with``.
    """

    def __init__(
        self,
        zoo: Zoo,
        rows: Sequence[int],
        plans: Sequence[ChunkPlan],
        device: Device,
        *,
        until: Sequence[int] | None = None,
        progress: Progress | None = None,
        threads: int | None = None,
        buffers: Buffers | None = None,
    ) -> None:
        self.zoo, self.rows, self.plans, self.device = zoo, tuple(rows), plans, device
        self.progress = progress or (lambda done, total: None)
        layouts = [row_starts(plan.n, plan.dtypes) for plan in plans]
        self._starts = [starts for starts, _ in layouts]
        self._lengths = [length for _, length in layouts]
        self.nbytes = sum(plan.nbytes for plan in plans)
        self._ending: dict[int, list[int]] = {}  # chunk -> those whose work ends with it
        for k in range(len(plans)):
            self._ending.setdefault(until[k] if until else k, []).append(k)
        longest = max(self._lengths, default=0)
        if buffers is None or buffers.nbytes < longest:
            buffers = Buffers(device, longest)
        self._buffers = buffers
        self._slots: dict[int, np.ndarray] = {}  # of chunks that are read, or worked on
        self._pending: dict[int, list[Future[None]]] = {}
        self._next = 0
        threads = threads or reading_threads([zoo.checkpoints[row] for row in self.rows])
        # what they hold besides the buffers: a quarter of one, at most
        largest = max(LEAST_REQUEST, self._buffers.nbytes // (4 * threads) // PAGE * PAGE)
        self._reader = Reader(threads, self.nbytes, largest)
        self._read_ahead(0)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.close()
        for slot in self._slots.values():
            self._buffers.give_back(slot)
        self._slots.clear()

    def __iter__(self) -> Iterator[Chunk]:
        done = 0
        self.progress(0, self.nbytes)
        for chunk in self.device.staged(self._host_chunks()):
            yield chunk
            done += chunk.plan.nbytes
            self.progress(done, self.nbytes)

    def _host_chunks(self) -> Iterator[Chunk]:
        """Chunks in host buffers, of which the device holds a few: asking for one more gives the
        first of them back."""
        for k, plan in enumerate(self.plans):
            for done in self._ending.pop(k - self.device.held, ()):
                self._buffers.give_back(self._slots.pop(done))
            self._read_ahead(k)
            with stage(READS):
                for future in self._pending.pop(k):
                    future.result()
            yield Chunk(plan, self._slots[k][: self._lengths[k]], self._starts[k])

    def _read_ahead(self, k: int) -> None:
        """Start reading what comes after chunk ``k``, as far as there shall be buffers."""
        ahead = max(SLOTS - self.device.held, 0)
        while self._next < len(self.plans) and self._next <= k + ahead:
            self._slots[self._next] = slot = self._buffers.take()
            self._pending[self._next] = self._reader.submit(self._ranges(self._next), slot)
            self._next += 1

    def _ranges(self, k: int) -> list[Range]:
        plan, starts = self.plans[k], self._starts[k]
        ranges: list[Range] = []
        for row, dtype, row_start in zip(self.rows, plan.dtypes, starts, strict=True):
            files = self.zoo.checkpoints[row].files
            width = BITS[dtype] // 8
            for piece in plan.pieces:
                stored = self.zoo.tensors[piece.tensor].stored[row]
                append_range(
                    ranges, files[stored.file], stored, piece.start * width,
                    (piece.stop - piece.start) * width, row_start + piece.at * width,
                )  # fmt: skip
        return ranges
