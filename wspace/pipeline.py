"""Chunks through a device with a memory of its own: copied in, worked on, copied out, at once.

Three streams work at the same time, each in order: copies in, kernels, copies out. What may happen
when is said here, with events, and only here; how a device does each step is an ``Accelerator``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from wspace.stream import ALIGNMENT, Chunk

ARENAS = 3
"""Chunks on the device: one that kernels read, and two on their way."""
HELD = 2
"""Chunks whose host buffers copies read from at the same time: there is always one waiting."""
OUT_SLOTS = 2
"""Results on the device: one being computed, one on its way to the host."""
SLICES = 4
"""Parts of a chunk's results: one is copied out while the next is computed."""
SLICE = 1 << 20
"""Elements of a part at least, but for the last."""


class Accelerator(Protocol):
    """What a device with its own memory can do. Nothing waits but ``synchronize``."""

    def host_memory(self, nbytes: int) -> np.ndarray:
        """uint8, which copies need not stage again."""
        ...

    def memory(self, nbytes: int) -> Any:
        """A uint8 buffer on the device, which can be sliced."""
        ...

    def stream(self) -> Any: ...

    def copy(self, stream: Any, target: Any, source: Any) -> None:
        """Between host (numpy) and device, whichever is which."""
        ...

    def run(self, stream: Any, work: Callable[[], None]) -> None:
        """Kernels, in the stream's order."""
        ...

    def record(self, stream: Any) -> Any:
        """An event: the stream has come this far."""
        ...

    def wait(self, stream: Any, event: Any) -> None:
        """What the stream is given from now on starts after the event."""
        ...

    def synchronize(self, event: Any) -> None:
        """The calling thread waits."""
        ...


class Arrival(NamedTuple):
    """A chunk on its way to the device."""

    chunk: Chunk
    arena: int
    copied: Any  # event


class Pipeline:
    """The three streams, and the buffers on the device. Buffers grow to what is asked for."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._copying_in, self._computing, self._copying_out = (
            accelerator.stream() for _ in range(3)
        )
        self._arenas = _Ring(accelerator, ARENAS)
        self._results = _Ring(accelerator, OUT_SLOTS)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers on the device."""
        return self._arenas.nbytes + self._results.nbytes

    def staged(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """The chunks on the device, in order; the next is being copied while one is worked on.

        Two host buffers are read from at a time: when the next chunk is asked for, the one before
        the last is free.
        """
        flying: deque[Arrival] = deque()
        for host in chunks:
            flying.append(self.send(host))
            if len(flying) == HELD:
                yield self.receive(flying[0])
                self.release(flying.popleft())
        while flying:
            yield self.receive(flying[0])
            self.release(flying.popleft())

    def send(self, host: Chunk) -> Arrival:
        """Starts copying a chunk in, as soon as the work on what the arena held is done.

        A chunk whose buffer is a list of rows (a part of a chunk) is packed on the way.
        """
        rows = host.buffer if isinstance(host.buffer, list) else [host.buffer]
        starts, length = [], 0
        for row in rows:
            starts.append(length)
            length += -(-len(row) // ALIGNMENT) * ALIGNMENT
        index, arena, free = self._arenas.take(length)
        if free is not None:
            self.accelerator.wait(self._copying_in, free)
        for start, row in zip(starts, rows, strict=True):
            self.accelerator.copy(self._copying_in, arena[start : start + len(row)], row)
        placed = tuple(starts) if isinstance(host.buffer, list) else host.starts
        chunk = replace(host, buffer=arena[:length], starts=placed)
        return Arrival(chunk, index, self.accelerator.record(self._copying_in))

    def receive(self, arrival: Arrival) -> Chunk:
        """The chunk; what is computed from now on starts after it has arrived."""
        self.accelerator.wait(self._computing, arrival.copied)
        return arrival.chunk

    def release(self, arrival: Arrival) -> None:
        """The work on the chunk is given to the stream; afterwards its host buffer is free."""
        self._arenas.give_back(arrival.arena, self.accelerator.record(self._computing))
        self.accelerator.synchronize(arrival.copied)

    def compute(self, work: Callable[[], None]) -> None:
        """Runs kernels on chunks that were received, and waits for them."""
        self.accelerator.run(self._computing, work)
        self.accelerator.synchronize(self.accelerator.record(self._computing))

    def results(
        self,
        work: Callable[[int, int, list[Any]], None],
        n: int,
        widths: Sequence[int],
        targets: Sequence[np.ndarray],
    ) -> None:
        """Rows of results into host rows, slice by slice: computed while the last is copied out.

        ``work(start, stop, rows)`` computes elements ``start`` to ``stop`` of all rows into buffers
        on the device; ``widths`` are the bytes of an element of each row, and ``targets`` the host
        rows of ``n`` elements. Waits until all is there.
        """
        accelerator = self.accelerator
        step = max(SLICE, -(-n // SLICES))
        step = -(-step // ALIGNMENT) * ALIGNMENT
        for start in range(0, n, step):
            stop = min(n, start + step)
            places, length = [], 0
            for width in widths:
                places.append(length)
                length += -(-(stop - start) * width // ALIGNMENT) * ALIGNMENT
            index, room, free = self._results.take(length)
            if free is not None:
                accelerator.wait(self._computing, free)
            rows = [
                room[place : place + (stop - start) * width]
                for place, width in zip(places, widths, strict=True)
            ]
            accelerator.run(
                self._computing,
                lambda start=start, stop=stop, rows=rows: work(start, stop, rows),
            )
            accelerator.wait(self._copying_out, accelerator.record(self._computing))
            for row, width, target in zip(rows, widths, targets, strict=True):
                accelerator.copy(self._copying_out, target[start * width : stop * width], row)
            self._results.give_back(index, accelerator.record(self._copying_out))
        accelerator.synchronize(accelerator.record(self._copying_out))


class _Ring:
    """Buffers on the device in turn, each with the event after which it may be used again."""

    def __init__(self, accelerator: Accelerator, n: int) -> None:
        self._accelerator = accelerator
        self._buffers: list[Any] = [None] * n
        self._free: list[Any] = [None] * n
        self._next = 0

    @property
    def nbytes(self) -> int:
        return sum(len(buffer) for buffer in self._buffers if buffer is not None)

    def take(self, nbytes: int) -> tuple[int, Any, Any]:
        """The next buffer, of at least so many bytes, and the event it has to wait for, if any."""
        index, self._next = self._next, (self._next + 1) % len(self._buffers)
        buffer, free = self._buffers[index], self._free[index]
        if buffer is None or len(buffer) < nbytes:
            if free is not None:  # it may still be in use: its memory must not be given to another
                self._accelerator.synchronize(free)
            self._buffers[index] = buffer = None
            self._buffers[index] = buffer = self._accelerator.memory(nbytes)
        return index, buffer, free

    def give_back(self, index: int, free: Any) -> None:
        self._free[index] = free
