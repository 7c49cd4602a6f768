"""Thresholds of the largest magnitudes in one read, from limits that a sample gives.

A sample of a tensor tells two limits that its threshold is almost surely between. One read counts
what is beyond them, and keeps what is between: among those the threshold is found. Where the sample
misled, which the counts show, the answer is left open. So the sample decides nothing but the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from wkernels.cpu import sifting
from wkernels.cpu.blocks import BLOCK, blocks_of
from wkernels.cpu.parallel import over_ranges
from wkernels.cpu.pointers import Pointers
from wkernels.cpu.vectors import LANES, TURN
from wkernels.masks import BEYOND, NOTHING

SAMPLE = 1 << 14
"""Elements in the sample of a large tensor."""

SHARE = 1 << 11
"""Of so many elements, one is in the sample of a tensor that is larger still."""


class Sampling(NamedTuple):
    """Where the sample of a large tensor comes from, and what it tells."""

    blocks: int
    run: int  # elements beside each other
    spread: float
    """Standard deviations of the sample's rank, if its elements were independent, between the
    limits and where the threshold should be."""


ELEMENTS = Sampling(64, TURN, 5.0)
LINES = Sampling(256, 8, 8.0)
"""Where lines have factors of their own, elements of a line are alike."""


@cache
def sampled_blocks(size: int, sampling: Sampling) -> tuple[int, ...]:
    """Where the blocks start that a tensor's sample is of."""
    n_blocks = -(-size // BLOCK)
    blocks = np.linspace(0, n_blocks - 1, min(n_blocks, sampling.blocks), dtype=int)
    return tuple([int(block) * BLOCK for block in np.unique(blocks)])


ROOM = 8
"""Of so many elements, one may be between the limits; where there are more, the answer is open."""


class Wanted(NamedTuple):
    """The ``nth`` element equal to a threshold, in a block of a row of a tensor."""

    slot: int
    row: int
    start: int  # of the block, counted from the tensor's start
    nth: int


class Sieve:
    """Thresholds of the ``largest[t, i]`` largest of ``sizes[t]`` differences, in float32.

    1. :meth:`sample` elements of the blocks that :meth:`samples` names, in that order
    2. :meth:`sift` all elements of all tensors, in order
    3. :meth:`settle`; and where equal magnitudes are divided, :meth:`locate` what it wants
    4. ``bits`` and ``before`` are the tables of a ``Mask``, except where ``open`` is true
    """

    def __init__(
        self, largest: np.ndarray, sizes: np.ndarray, rooms: list[np.ndarray] | None = None,
        *, quantiles: bool = False,
    ) -> None:  # fmt: skip
        """``rooms``: work areas that sieves hand on to one another.

        ``quantiles``: of scores whose lines have factors of their own; where all are taken, the
        smallest is found too.
        """
        self.largest = np.ascontiguousarray(largest, np.int64)
        self.sizes = np.ascontiguousarray(sizes, np.int64)
        none = self.largest <= 0
        whole = self.largest >= self.sizes[:, None] + quantiles
        self.bits = np.where(none, BEYOND["float64"], np.where(whole, NOTHING, 0))
        self.before = np.zeros(largest.shape, np.int64)
        self.open = ~(none | whole)
        self._sampling = LINES if quantiles else ELEMENTS
        self._limits = np.zeros((*largest.shape, 2), np.int32)
        self._samples: list[np.ndarray] = []
        self._rooms = [] if rooms is None else rooms
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._kept: list[np.ndarray] = []  # which the places in the parts count in
        self._n_kept = 0

    def samples(self) -> list[tuple[int, int]]:
        """``(tensor, start)`` of the blocks to be sampled."""
        found = []
        for slot in np.flatnonzero(self.open.any(axis=1)):
            starts = sampled_blocks(int(self.sizes[slot]), self._sampling)
            found += [(int(slot), start) for start in starts]
        return found

    def sample(self, rows: Pointers, base: Pointers, segments: np.ndarray, slots: np.ndarray):
        """``segments``: the blocks, and their tensors."""
        n_blocks = np.minimum(-(-self.sizes // BLOCK), self._sampling.blocks)[slots]
        lengths, run = segments[:, 1] - segments[:, 0], self._sampling.run
        wanted = np.maximum(self.sizes[slots] // SHARE, SAMPLE)
        share = -(-wanted // (n_blocks * run)) * run
        counts = np.minimum(lengths, share)
        steps = np.maximum(lengths // np.maximum(counts // run, 1) // run, 1) * run
        ends = np.cumsum(counts)
        taken = np.empty((len(rows), int(ends[-1])), np.int32)
        sifting.gather(*rows, *base, segments, steps, ends - counts, ends, run, taken)
        self._samples.append(np.repeat(slots, counts))
        self._samples.append(taken)

    def _bracket(self) -> None:
        slots = np.concatenate(self._samples[::2])
        taken = np.concatenate(self._samples[1::2], axis=1)
        edges = np.searchsorted(slots, np.arange(len(self.sizes) + 1))
        self._samples = []
        sifting.bracket(
            taken, edges, self.sizes, self.largest, self.open, self._sampling.spread, self._limits
        )

    def sift(
        self, rows: Pointers, base: Pointers, segments: np.ndarray, slots: np.ndarray, *,
        threads: int,
    ) -> None:  # fmt: skip
        """``segments``: runs of the tensors in ``slots``, from block to block."""
        if self._samples:
            self._bracket()
        blocks = blocks_of(segments)
        n_blocks, n_rows = len(blocks.ranges), len(rows)
        owners = slots[blocks.segments]
        room = int((segments[:, 1] - segments[:, 0]).sum()) // ROOM
        share = -(-room // max(n_blocks, 1))
        counts = np.zeros((n_blocks, n_rows, 4), np.int64)
        places = np.zeros((n_blocks, n_rows), np.int64)

        def work(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
            shape = n_rows, share * (stop - start) + BLOCK + LANES
            room = self._rooms.pop() if self._rooms else np.empty(0, np.int32)
            if room.size < shape[0] * shape[1]:
                room = np.empty(shape[0] * shape[1], np.int32)
            kept = room[: shape[0] * shape[1]].reshape(shape)
            areas = np.zeros((2, sifting.COLUMNS), np.float32)
            sifting.sift(
                rows, base, blocks.ranges, owners, start, stop, self._limits, self.open, *areas,
                np.zeros(n_rows, np.int64), kept, counts,
            )  # fmt: skip
            # row by row, and there block by block
            lengths = np.maximum(counts[start:stop, :, 3], 0).T
            places[start:stop] = (np.cumsum(lengths).reshape(lengths.shape) - lengths).T
            packed = np.concatenate([kept[i, :n] for i, n in enumerate(lengths.sum(axis=1))])
            self._rooms.append(room)
            return places[start:stop], packed

        for part, packed in over_ranges(work, n_blocks, step=1, threads=threads, least=4):
            part += self._n_kept
            self._kept.append(packed)
            self._n_kept += packed.size
        self._parts.append((owners, counts, places))

    def settle(self) -> list[Wanted]:
        """Which elements are to be located; all tensors have been sifted."""
        if not self._parts:
            return []
        owners, counts, places = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        edges = np.searchsorted(owners, np.arange(len(self.sizes) + 1))
        shape = self.largest.shape
        block, nth = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        sifting.resolve(
            edges, counts, places, np.concatenate(self._kept), self._limits, self.largest,
            self.open, self.bits, self.before, block, nth,
        )  # fmt: skip
        self._parts, self._kept = [], []
        return [
            Wanted(int(slot), int(row), int(block[slot, row]) * BLOCK, int(nth[slot, row]))
            for slot, row in np.argwhere(nth)
        ]

    def locate(
        self, wanted: Sequence[Wanted], rows: Pointers, base: Pointers, segments: np.ndarray
    ) -> None:
        """``segments``: the wanted blocks, of these rows."""
        slots, which, starts, nths = np.array(wanted, np.int64).T
        found = np.empty(len(wanted), np.int64)
        bits = self.bits[slots, which]
        sifting.place(*rows, *base, segments, which.copy(), bits, nths.copy(), found)
        self.before[slots, which] = starts + found


def sieved(
    rows: Pointers, base: Pointers, segments: np.ndarray, largest: np.ndarray, *,
    quantiles: bool = False, threads: int,
) -> Sieve:  # fmt: skip
    """A sieve's answers for tensors that are in memory, one in each segment."""
    sieve = Sieve(largest, segments[:, 1] - segments[:, 0], quantiles=quantiles)
    slots = np.arange(len(segments))
    blocks = np.array(sieve.samples(), np.int64).reshape(-1, 2)
    if not len(blocks):
        return sieve
    starts = segments[blocks[:, 0], 0] + blocks[:, 1]
    stops = np.minimum(starts + BLOCK, segments[blocks[:, 0], 1])
    sieve.sample(rows, base, np.stack([starts, stops], axis=1), blocks[:, 0])
    sieve.sift(rows, base, segments, slots, threads=threads)
    for wanted in sieve.settle():
        start, stop = segments[wanted.slot]
        start += wanted.start
        block = np.array([[start, min(start + BLOCK, stop)]])
        sieve.locate([wanted], rows, base, block)
    return sieve
