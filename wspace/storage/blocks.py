"""Which blocks of an output's tensors are finished, and their checksums."""

from __future__ import annotations

import re
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from wspace.storage.checksums import BLOCK, DIGEST, OpenBlock, checksum_of_blocks, digest
from wspace.storage.journal import Block

Place = tuple[int, int, int]
"""Of a tensor: its shard, the byte in the shard's file at which it starts, and its bytes."""


class Run(NamedTuple):
    """Blocks of a shard beside each other: numbers, counted in the order of the file."""

    shard: int
    first: int
    last: int  # the first that is not in it


class _Shard:
    """Tables of a shard's blocks, in the order of the file."""

    def __init__(self, tensors: list[tuple[int, int]]) -> None:
        """``tensors``: where each starts and stops, sorted."""
        cut = [np.arange(start, stop, BLOCK) for start, stop in tensors]
        self.starts = np.concatenate([*cut, np.empty(0, np.int64)]).astype(np.int64)
        ends = np.repeat(np.array([stop for _, stop in tensors], np.int64), [*map(len, cut)])
        self.stops = np.minimum(self.starts + BLOCK, ends)
        self.end = tensors[-1][1] if tensors else 0
        self.digests = np.zeros((len(self.starts), DIGEST), np.uint8)
        self.known = np.zeros(len(self.starts), bool)
        tables = (self.starts, self.stops, self.digests, self.known)
        self._addresses = [(table.ctypes.data, table.strides[0]) for table in tables]
        self.restored = np.zeros(len(self.starts), bool)  # of an earlier run
        # a look at a few of them takes a fifth of what numpy takes, whose code no cache has by then
        self._starts, self._stops = self.starts.data, self.stops.data
        self._known = self.known.data

    def text(self, first: int, last: int) -> str:
        """The checksums of blocks, one after the other."""
        return self.digests[first:last].tobytes().hex()

    def learn(self, number: int, digest: bytes) -> None:
        self.digests[number] = np.frombuffer(digest, np.uint8)
        self.known[number] = True

    def addresses(self, number: int) -> list[int]:
        """Of what the tables say of a block and those after it: as ``wkernels.cpu.Run`` has it."""
        return [address + number * step for address, step in self._addresses]

    def touched(self, start: int, stop: int) -> tuple[int, int]:
        """Numbers of the first block that has bytes of a run, and of the last, and one more."""
        first = bisect_right(self._starts, start) - 1
        return first, max(first, bisect_left(self._starts, stop))

    def all_known(self, first: int, last: int) -> bool:
        return all(self._known[first:last])

    def place(self, number: int) -> tuple[int, int]:
        """The bytes of a block: first and last."""
        return self._starts[number], self._stops[number]


class Blocks:
    """Those of the tensors at ``places``, by name. May be used by several threads."""

    def __init__(self, places: Mapping[str, Place], n_shards: int) -> None:
        self._places = places
        tensors: list[list[tuple[int, int]]] = [[] for _ in range(n_shards)]
        for shard, start, nbytes in sorted(places.values()):
            if nbytes:
                tensors[shard].append((start, start + nbytes))
        self._shards = [*map(_Shard, tensors)]
        self._resumed = False
        self._open: dict[tuple[int, int], OpenBlock] = {}
        self._missing: dict[tuple[int, int], int] = {}  # bytes, of blocks that are written in part
        self._lock = threading.Lock()

    def restore(self, blocks: Iterable[Block]) -> None:
        """Blocks that an earlier run has finished."""
        self.complete(blocks)
        for shard in self._shards:
            shard.restored[:] = shard.known
        self._resumed = any(shard.restored.any() for shard in self._shards)

    def complete(self, blocks: Iterable[Block]) -> None:
        """Blocks that others have finished."""
        for block in blocks:
            shard = self._shards[block.shard]
            number = shard.touched(block.start, block.start + 1)[0]
            shard.learn(number, bytes.fromhex(block.checksum))

    def unfinished(self, shard: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Runs of bytes between ``start`` and ``stop`` of blocks that no earlier run finished."""
        if not self._resumed:
            yield start, stop
            return
        of = self._shards[shard]
        first, last = of.touched(start, stop)
        for number in first + np.flatnonzero(of.restored[first:last]):
            done, end = int(of.starts[number]), int(of.stops[number])
            if start < done:
                yield start, min(done, stop)
            start = max(start, end)
        if start < stop:
            yield start, stop

    def within(self, shard: int, start: int, stop: int) -> tuple[np.ndarray, list[int]]:
        """Of those that start in a run where each does, and for kernels, which may take their
        checksums, the addresses of their tables."""
        of = self._shards[shard]
        first, last = of.touched(start, stop)
        if first < last and of.place(first)[0] < start:
            first += 1
        return of.starts[first:last], of.addresses(first)

    def unsummed(self, shard: int, start: int, stop: int) -> int:
        """Bytes of a run whose blocks' checksums are not known."""
        of = self._shards[shard]
        first, last = of.touched(start, stop)
        if of.all_known(first, last):
            return 0
        starts, stops = of.starts[first:last], of.stops[first:last]
        sizes = np.minimum(stops, stop) - np.maximum(starts, start)
        return int(sizes[~of.known[first:last]].sum())

    def sum(self, shard: int, start: int, data: memoryview) -> None:
        """Take the checksums that are not known yet of bytes that will be written."""
        of = self._shards[shard]
        first, last = of.touched(start, start + len(data))
        starts = np.maximum(of.starts[first:last], start)
        stops = np.minimum(of.stops[first:last], start + len(data))
        whole = stops - starts == of.stops[first:last] - of.starts[first:last]
        left = ~of.known[first:last]
        for k in np.flatnonzero(left).tolist():
            begin, number = int(starts[k]), first + k
            piece = data[begin - start : int(stops[k]) - start]
            found = digest(piece) if whole[k] else self._joined(shard, number, begin, piece)
            if found is not None:
                of.learn(number, found)

    def written(self, shard: int, start: int, stop: int) -> list[Run]:
        """The blocks that are finished by bytes that were summed before, and are written now."""
        of = self._shards[shard]
        first, last = of.touched(start, stop)
        runs = []
        if first < last and start > of.place(first)[0]:
            if self._completed(shard, first, min(stop, of.place(first)[1]) - start):
                runs.append(Run(shard, first, first + 1))
            first += 1
        if first < last and stop < of.place(last - 1)[1]:
            last -= 1
            if self._completed(shard, last, stop - of.place(last)[0]):
                runs.append(Run(shard, last, last + 1))
        if first < last:
            runs.append(Run(shard, first, last))
        return runs

    def listed(self, run: Run) -> Block:
        """Finished blocks, as a line of a journal: one block, or several beside each other."""
        of = self._shards[run.shard]
        start, stop = of.place(run.first)[0], of.place(run.last - 1)[1]
        return Block(run.shard, start, stop - start, of.text(run.first, run.last))

    def split(self, lines: Iterable[Block]) -> list[Block]:
        """The blocks of a journal's lines, if they are so; a journal may lie. Each once, the last
        of its kind."""
        found: dict[tuple[int, int], Block] = {}
        for shard, start, nbytes, text in lines:
            if not 0 <= shard < len(self._shards) or nbytes <= 0 or start < 0:
                continue
            of = self._shards[shard]
            if start + nbytes > of.end or not re.fullmatch("[0-9a-f]*", text):
                continue
            first, last = of.touched(start, start + nbytes)
            if first < 0 or first == last:
                continue
            starts, stops = of.starts[first:last].tolist(), of.stops[first:last].tolist()
            digits = 2 * DIGEST
            if (starts[0], stops[-1], len(text)) != (start, start + nbytes, digits * len(starts)):
                continue
            for k, (at, stop) in enumerate(zip(starts, stops, strict=True)):
                own = text[digits * k : digits * (k + 1)]
                found[shard, at] = Block(shard, at, stop - at, own)
        return list(found.values())

    def _completed(self, shard: int, number: int, more: int) -> bool:
        of, key = self._shards[shard], (shard, number)
        with self._lock:
            left = self._missing.get(key, int(of.stops[number] - of.starts[number])) - more
            if left:
                self._missing[key] = left
            else:
                self._missing.pop(key, None)
            return not left

    def _joined(self, shard: int, number: int, start: int, part: memoryview) -> bytes | None:
        of, key = self._shards[shard], (shard, number)
        first, stop = int(of.starts[number]), int(of.stops[number])
        with self._lock:
            held = self._open.setdefault(key, OpenBlock(stop - first))
            found = held.add(start - first, part)
            if found is not None:
                del self._open[key]
            return found

    def checksums(self) -> tuple[dict[str, str], list[str]]:
        """Of every tensor that is finished, and the names of the others."""
        found, missing = {}, []
        for name, (shard, start, nbytes) in self._places.items():
            of = self._shards[shard]
            first, last = of.touched(start, start + nbytes) if nbytes else (0, 0)
            if of.known[first:last].all():
                found[name] = checksum_of_blocks([of.text(first, last)])
            else:
                missing.append(name)
        return found, missing


def blocks_within(
    blocks: Iterable[Block], own: Mapping[str, tuple[int, int]], places: Mapping[str, Place]
) -> list[Block]:
    """Those that start inside ``own``: bytes of tensors, first and last, by name."""
    runs: dict[int, list[tuple[int, int]]] = {}
    for name, (start, stop) in own.items():
        shard, first, _ = places[name]
        runs.setdefault(shard, []).append((first + start, first + stop))
    for shard in runs.values():
        shard.sort()
    found = []
    for block in blocks:
        of_shard = runs.get(block.shard, [])
        k = bisect_right(of_shard, (block.start, 1 << 62)) - 1
        if k >= 0 and block.start < of_shard[k][1]:
            found.append(block)
    return found
