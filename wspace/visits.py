"""In which order chunks are read where a tensor is measured before it is written.

A tensor whose chunks fit into the memory budget together is read once: they are kept until it is
measured, and then written. A larger one is read once to be measured, and again to be written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from wspace.devices import Device
from wspace.storage.headers import BITS
from wspace.stream import (
    ALIGNMENT,
    CUT,
    LONG_CUT,
    OUTPUTS,
    SLOTS,
    ChunkPlan,
    Piece,
    chunk_elements,
    for_buffers,
    output_slack,
)
from wspace.zoo import Zoo, ZooTensor


class Visit(NamedTuple):
    """One chunk that is read, and what is done when it is there."""

    plan: ChunkPlan
    measured: bool
    written: tuple[int, ...]  # numbers of the visits whose chunks are written then


def written_at_once(plans: Sequence[ChunkPlan]) -> list[Visit]:
    """Visits of chunks that need not be measured."""
    return [Visit(plan, False, (k,)) for k, plan in enumerate(plans)]


@dataclass(frozen=True)
class Room:
    """What fits into a budget: elements of a chunk, and chunks that can be kept."""

    elements: dict[tuple[str, ...], int]  # by the rows' types
    kept: int
    slot_bytes: int  # of the largest chunk

    @classmethod
    def of(
        cls, kinds: Mapping[tuple[str, ...], int], worker: Device, budget: int, out_bytes: int
    ) -> Room:
        """``kinds``: elements that have these types in the rows. Raises BudgetError."""
        elements = {
            dtypes: min(
                chunk_elements(budget, worker.chunk_bytes, dtypes, out_bytes),
                max(CUT, numel),
            )
            for dtypes, numel in kinds.items()
        }
        slot = max((_slot_bytes(n, dtypes) for dtypes, n in elements.items()), default=0)
        longest = max(elements.values(), default=0)
        free = for_buffers(budget) - OUTPUTS * longest * out_bytes - output_slack(out_bytes)
        # beside what is kept, the next chunks are read
        kept = max(1, free // max(slot, 1) - (SLOTS - 1)) if worker.lasting else 1
        return cls(elements, kept, slot)

    def chunks(self, dtypes: tuple[str, ...], numel: int) -> int:
        """Of a tensor."""
        return -(-numel // self.elements[dtypes])

    def reads(self, dtypes: tuple[str, ...], numel: int) -> int:
        """How often a tensor is read that is measured."""
        return 1 if self.chunks(dtypes, numel) <= self.kept else 2


def _slot_bytes(n: int, dtypes: Sequence[str]) -> int:
    return n * sum(BITS[dtype] for dtype in dtypes) // 8 + len(dtypes) * ALIGNMENT


def measured_first(zoo: Zoo, rows: Sequence[int], room: Room, max_pieces: int) -> list[Visit]:
    """Visits of all of a zoo's tensors, each measured whole before a part of it is written."""
    visits: list[Visit] = []

    def visit(plan: ChunkPlan, measured: bool, written: Sequence[int]) -> None:
        visits.append(Visit(plan, measured, tuple(written)))

    for run in _runs(zoo, rows, room, max_pieces):
        first = len(visits)
        if len(run) <= room.kept:
            for plan in run[:-1]:
                visit(plan, True, ())
            visit(run[-1], True, range(first, first + len(run)))
        else:
            for plan in run:
                visit(plan, True, ())
            for plan in run:
                visit(plan, False, [len(visits)])
    return visits


def _runs(zoo: Zoo, rows: Sequence[int], room: Room, max_pieces: int) -> Iterator[list[ChunkPlan]]:
    """Chunks that belong together: of one large tensor, or one of several small ones."""
    pieces: list[Piece] = []
    filled = 0
    group: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    for index, tensor in enumerate(zoo.tensors):
        limit = room.elements[dtypes] if dtypes else 0
        other = tensor.group != group
        if pieces and (other or filled + tensor.numel > limit or len(pieces) == max_pieces):
            yield [ChunkPlan(tuple(pieces), dtypes, filled)]
            pieces, filled = [], 0
        if other:
            group, dtypes = tensor.group, types_of(tensor, rows)
        if room.chunks(dtypes, tensor.numel) > 1:
            yield list(_cut(index, tensor.numel, dtypes, room.elements[dtypes]))
        elif tensor.numel:
            pieces.append(Piece(index, 0, tensor.numel, filled))
            filled += tensor.numel
    if pieces:
        yield [ChunkPlan(tuple(pieces), dtypes, filled)]


def types_of(tensor: ZooTensor, rows: Sequence[int]) -> tuple[str, ...]:
    return tuple([tensor.stored[row].record.dtype for row in rows])


def _cut(index: int, numel: int, dtypes: tuple[str, ...], longest: int) -> Iterator[ChunkPlan]:
    """A tensor in about equal chunks of at most ``longest`` elements."""
    n_chunks = -(-numel // longest)
    step = -(-numel // n_chunks)
    long = -(-step // LONG_CUT) * LONG_CUT
    step = long if long <= longest else -(-step // CUT) * CUT
    for start in range(0, numel, step):
        stop = min(start + step, numel)
        yield ChunkPlan((Piece(index, start, stop, 0),), dtypes, stop - start)
