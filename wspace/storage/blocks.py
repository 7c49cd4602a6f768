"""Which blocks of an output's tensors are finished, and their checksums."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping

from wspace.storage.checksums import BLOCK, OpenBlock, checksum, checksum_of_blocks
from wspace.storage.journal import Block

Place = tuple[int, int, int]
"""Of a tensor: its shard, the byte in the shard's file at which it starts, and its bytes."""


class Blocks:
    """Those of the tensors at ``places``, by name. May be used by several threads."""

    def __init__(self, places: Mapping[str, Place], n_shards: int) -> None:
        self._places = places
        self._starts: list[list[int]] = [[] for _ in range(n_shards)]
        self._stops: list[list[int]] = [[] for _ in range(n_shards)]
        for shard, start, nbytes in sorted(places.values()):
            if nbytes:
                self._starts[shard].append(start)
                self._stops[shard].append(start + nbytes)
        self._restored: frozenset[tuple[int, int]] = frozenset()  # of an earlier run
        self._done: dict[tuple[int, int], str] = {}
        self._open: dict[tuple[int, int], OpenBlock] = {}
        self._missing: dict[tuple[int, int], int] = {}  # bytes, of blocks that are written in part
        self._lock = threading.Lock()

    def restore(self, blocks: Iterable[Block]) -> None:
        """Blocks that an earlier run has finished."""
        self.complete(blocks)
        self._restored = frozenset(self._done)

    def complete(self, blocks: Iterable[Block]) -> None:
        """Blocks that others have finished."""
        self._done |= {(block.shard, block.start): block.checksum for block in blocks}

    def exists(self, block: Block) -> bool:
        """Whether there is such a block; a journal may lie."""
        if not 0 <= block.shard < len(self._starts) or block.nbytes <= 0:
            return False
        whole = next(self._cut(block.shard, block.start, block.start + 1), None)
        return whole is not None and whole[:2] == (block.start, block.start + block.nbytes)

    def unfinished(self, shard: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Runs of bytes between ``start`` and ``stop`` of blocks that no earlier run finished."""
        if not self._restored:
            yield start, stop
            return
        first = start
        for block, _, part, end in self._cut(shard, start, stop):
            if (shard, block) in self._restored:
                if first < part:
                    yield first, part
                first = end
        if first < stop:
            yield first, stop

    def starts(self, shard: int, start: int, stop: int) -> list[int]:
        """Of the blocks of a run, and of the run."""
        return [part for _, _, part, _ in self._cut(shard, start, stop)]

    def sum(self, shard: int, start: int, data: memoryview) -> None:
        """Take the checksums of bytes that will be written; of those of blocks in several parts."""
        for block, block_stop, part, stop in self._cut(shard, start, start + len(data)):
            if (shard, block) in self._restored:
                continue
            piece = data[part - start : stop - start]
            if stop - part == block_stop - block:
                self._done[shard, block] = checksum(piece)
                continue
            digest = self._joined((shard, block), block_stop - block, part - block, piece)
            if digest is not None:
                self._done[shard, block] = digest

    def written(self, shard: int, start: int, stop: int) -> list[Block]:
        """The blocks that are finished by bytes that were summed before, and are written now."""
        found = []
        for block, block_stop, part, end in self._cut(shard, start, stop):
            nbytes = block_stop - block
            if end - part == nbytes or self._completed((shard, block), nbytes, end - part):
                found.append(Block(shard, block, nbytes, self._done[shard, block]))
        return found

    def _completed(self, key: tuple[int, int], nbytes: int, more: int) -> bool:
        with self._lock:
            left = self._missing.get(key, nbytes) - more
            if left:
                self._missing[key] = left
            else:
                self._missing.pop(key, None)
            return not left

    def _joined(
        self, key: tuple[int, int], nbytes: int, start: int, part: memoryview
    ) -> str | None:
        with self._lock:
            held = self._open.setdefault(key, OpenBlock(nbytes))
            digest = held.add(start, part)
            if digest is not None:
                del self._open[key]
            return digest

    def checksums(self) -> tuple[dict[str, str], list[str]]:
        """Of every tensor that is finished, and the names of the others."""
        found, missing = {}, []
        for name, (shard, start, nbytes) in self._places.items():
            blocks = [self._done.get((shard, k)) for k in range(start, start + nbytes, BLOCK)]
            known = [digest for digest in blocks if digest is not None]
            if len(known) < len(blocks):
                missing.append(name)
            else:
                found[name] = checksum_of_blocks(known)
        return found, missing

    def _cut(self, shard: int, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Start and stop of each block that a run touches, and of the part of it in the run."""
        starts, stops = self._starts[shard], self._stops[shard]
        k = bisect_right(starts, start) - 1
        while 0 <= k < len(starts) and start < stop:
            block = starts[k] + (start - starts[k]) // BLOCK * BLOCK
            block_stop = min(block + BLOCK, stops[k])
            end = min(block_stop, stop)
            yield block, block_stop, start, end
            start = end
            if start == stops[k]:
                k += 1


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
