"""Several devices as one: each has a range of every chunk's parameters."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from wkernels.dtypes import FLOATS
from wspace.cuda import Gpu
from wspace.pipeline import HELD, Arrival
from wspace.storage.headers import BITS
from wspace.stream import CUT, Chunk, ChunkPlan, Piece

if TYPE_CHECKING:
    from wkernels.cpu import Digests


class Part(NamedTuple):
    """A device's range of a chunk."""

    device: Gpu
    at: int  # elements, from the chunk's start
    pieces: slice  # of the chunk's pieces
    chunk: Chunk


class Shared(Chunk):
    """A chunk whose buffer is a list of :class:`Part`."""

    def of_rows(self, which: Sequence[int]) -> Shared:
        chunk = super().of_rows(which)
        parts = [part._replace(chunk=part.chunk.of_rows(which)) for part in self.buffer]
        return Shared(chunk.plan, parts, chunk.starts)


class Several:
    """GPUs in one process: copies in and mixes on all at once, over every GPU's own link.

    Sums are added up in the order of the elements, as on one device, so their bits are the same;
    one device's wait for those of the one before, while its next chunk is being copied.
    """

    held = HELD
    lasting = False

    def __init__(self, devices: Sequence[Gpu]) -> None:
        self.devices = devices
        self.name = ",".join(device.name for device in devices)
        self.chunk_bytes = sum(device.chunk_bytes for device in devices)
        self._threads = ThreadPoolExecutor(len(devices), thread_name_prefix="wspace-gpu")

    def host_buffer(self, nbytes: int) -> np.ndarray:
        return self.devices[0].host_buffer(nbytes)

    def staged(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        flying: deque[tuple[Chunk, list[tuple[Part, Arrival]]]] = deque()
        for host in chunks:
            parts = split(host, self.devices)
            flying.append((host, [(part, part.device.pipeline.send(part.chunk)) for part in parts]))
            if len(flying) == HELD:
                yield from self._arrived(*flying.popleft())
        while flying:
            yield from self._arrived(*flying.popleft())

    @staticmethod
    def _arrived(host: Chunk, sent: list[tuple[Part, Arrival]]) -> Iterator[Chunk]:
        parts = [
            part._replace(chunk=part.device.pipeline.receive(arrival)) for part, arrival in sent
        ]
        yield Shared(host.plan, parts, host.starts)
        for part, arrival in sent:
            part.device.pipeline.release(arrival)

    def weighted_sum(
        self, chunk: Chunk, weights: np.ndarray, copied: np.ndarray, *, based: bool,
        out: np.ndarray, out_starts: Sequence[int], out_names: Sequence[str],
        digests: Digests | None,
    ) -> int:  # fmt: skip
        def mix(part: Part) -> int:
            starts = [
                start + part.at * FLOATS[name]
                for start, name in zip(out_starts, out_names, strict=True)
            ]
            return part.device.weighted_sum(
                part.chunk, weights, copied, based=based, out=out, out_starts=starts,
                out_names=out_names, digests=digests,
            )  # fmt: skip

        return sum(self._threads.map(mix, chunk.buffer))

    def products(
        self, op: str, chunk: Chunk, segments: np.ndarray, sums: np.ndarray, *, based: bool
    ) -> None:
        for part in chunk.buffer:
            own = np.clip(segments[part.pieces] - part.at, 0, part.chunk.plan.n)
            part.device.products(op, part.chunk, own, sums[part.pieces], based=based)

    def row_moments(
        self, chunk: Chunk, segments: np.ndarray, sums: np.ndarray, *, based: bool
    ) -> None:
        for part in chunk.buffer:
            own = np.clip(segments[part.pieces] - part.at, 0, part.chunk.plan.n)
            part.device.row_moments(part.chunk, own, sums[part.pieces], based=based)


def split(chunk: Chunk, devices: Sequence[Gpu]) -> list[Part]:
    """Ranges of about the same length, cut only where chunks may be: no sum's bits depend on it.

    A device may have none. The parts' buffers are lists of rows.
    """
    pieces, n = chunk.plan.pieces, chunk.plan.n
    cuts = [0]
    for k in range(1, len(devices)):
        wanted = n * k // len(devices)
        piece = next(piece for piece in reversed(pieces) if piece.at <= wanted)
        cuts.append(max(cuts[-1], piece.at + (wanted - piece.at) // CUT * CUT))
    parts = []
    for device, first, stop in zip(devices, cuts, [*cuts[1:], n], strict=True):
        inside = [
            i for i, p in enumerate(pieces) if p.at < stop and p.at + p.stop - p.start > first
        ]
        if inside:
            own = tuple(_clipped(pieces[i], first, stop) for i in inside)
            rows = []
            for start, dtype in zip(chunk.starts, chunk.plan.dtypes, strict=True):
                width = BITS[dtype] // 8
                rows.append(chunk.buffer[start + first * width : start + stop * width])
            plan = ChunkPlan(own, chunk.plan.dtypes, stop - first)
            among = slice(inside[0], inside[-1] + 1)
            parts.append(Part(device, first, among, Chunk(plan, rows, ())))
    return parts


def _clipped(piece: Piece, first: int, stop: int) -> Piece:
    """What of a piece lies between two elements of the chunk, counted from the first of them."""
    begin = max(piece.at, first)
    end = min(piece.at + piece.stop - piece.start, stop)
    start = piece.start + begin - piece.at
    return Piece(piece.tensor, start, start + end - begin, begin - first)
