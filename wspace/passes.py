"""Reading the zoo once, for sums over each of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from wkernels.moments import NON_FINITE, N
from wspace.budgets import enough, recorded
from wspace.devices import Device
from wspace.dividing import SPAN, own_columns, within
from wspace.errors import BudgetError, NonFiniteError
from wspace.profiling import PASS, stage
from wspace.stream import (
    Chunk,
    ChunkPlan,
    Progress,
    Stream,
    chunk_elements,
    plan_chunks,
    reading_workspace,
)
from wspace.team import ALONE, Team
from wspace.zoo import Zoo


class TensorSums(NamedTuple):
    """Sums over the elements of each tensor, and over all tensors."""

    per_tensor: np.ndarray | None  # float64 [n_tensors, n, m], in the zoo's order
    total: np.ndarray  # float64 [n, m]


@stage(PASS)
def sum_over_tensors(
    zoo: Zoo,
    rows: Sequence[int],
    shape: tuple[int, int],
    add: Callable[[Chunk, np.ndarray, np.ndarray], None],
    *,
    worker: Device,
    budget: int,
    keep: bool,
    what: str,
    taken: int = 0,
    check: Callable[[np.ndarray], bool] | None = None,
    progress: Progress | None = None,
    additive: bool = False,
    team: Team = ALONE,
) -> TensorSums:
    """One pass over ``rows`` of ``zoo.checkpoints``; ``add(chunk, segments, sums)`` does the work.

    ``segments`` are the chunk's pieces, and ``sums [n_segments, *shape]`` what each tensor has so
    far. ``keep`` keeps the sums of every tensor. ``check(sums)`` false raises NonFiniteError with
    the tensor's name. ``what`` names the pass in errors; ``taken``: bytes of the budget that the
    caller holds. Sums over tensors are in twice float64's precision: their bits do not depend on
    the order of the tensors.

    ``additive``: sums of runs of ``SPAN`` elements of a tensor may be added up, in that precision
    too (not so with maxima). Only then a team may divide the elements among its processes; each
    of them has the same result.
    """
    assert additive or team.share.n == 1
    matrix = 8 * shape[0] * shape[1]
    several = 2 * (team.share.n > 1)  # what another process has summed
    results = matrix * (len(zoo.tensors) + 2 if keep else 0) + (4 + several) * matrix
    reading = reading_workspace(zoo.checkpoints, (t.stored for t in zoo.tensors))
    span = SPAN if additive else None

    def plan(budget: int) -> list[ChunkPlan]:
        # each of a chunk's tensors has its sums, and in the kernel those of its blocks
        max_pieces = max(1, min(4096, budget // 32 // matrix))
        room = budget - results - 2 * (max_pieces + 1) * matrix - reading
        if room <= 0:
            raise BudgetError(
                f"{'pass per_tensor=False or raise it: ' if keep else ''}what is summed of "
                f"{shape[0]} models and {len(zoo.tensors)} tensors"
            )

        def size(dtypes: Sequence[str]) -> int:
            return chunk_elements(room, worker.chunk_bytes, dtypes, 0)

        return list(plan_chunks(zoo, rows, size, max_pieces, span))

    plans = enough(plan, budget, what, taken + recorded(zoo.checkpoints))
    own = own_columns(zoo, rows, team.share, whole=keep)
    plans = within(plans, own)
    kept = np.zeros((len(zoo.tensors), *shape)) if keep else None
    total, of_tensor = (Accurate(np.zeros((2, *shape))) for _ in range(2))
    unfinished = np.zeros(shape)
    with Stream(zoo, rows, plans, worker, progress=progress) as stream:
        for chunk in stream:
            pieces = chunk.plan.pieces
            sums = np.zeros((len(pieces), *shape))
            if pieces[0].start % span if span else pieces[0].start:
                sums[0] = unfinished
            add(chunk, segments_of(chunk), sums)
            if check and not check(sums):
                raise NonFiniteError(
                    describe_non_finite(zoo, chunk, rows, worker) or f"{what}: exceeds float64"
                )
            for piece, piece_sums in zip(pieces, sums, strict=True):
                numel = zoo.tensors[piece.tensor].numel
                if piece.stop < numel and not (span and piece.stop % span == 0):
                    unfinished = piece_sums
                    continue
                total.add(piece_sums)
                if kept is None:
                    continue
                if not span or numel <= span:
                    kept[piece.tensor] = piece_sums
                    continue
                of_tensor.add(piece_sums)
                if piece.stop == numel:
                    kept[piece.tensor] = of_tensor.value()
                    of_tensor.pair[:] = 0
    if kept is not None:
        kept = team.gathered(kept[own.first[0] : own.last[0]])
    return TensorSums(kept, Accurate(team.added(total.pair)).value())


class Accurate:
    """A sum in twice float64's precision (Knuth's two-sum), the same in any order of its terms.

    ``pair`` ``[2, ...]``: the sum in float64, and what it lost.
    """

    def __init__(self, pair: np.ndarray) -> None:
        self.pair = pair

    def add(self, term: np.ndarray) -> None:
        so_far, lost = self.pair
        with np.errstate(invalid="ignore"):
            summed = so_far + term
            back = summed - so_far
            lost += (so_far - (summed - back)) + (term - back)
        so_far[:] = summed

    def add_pair(self, pair: np.ndarray) -> None:
        """Another such sum."""
        self.add(pair[0])
        with np.errstate(invalid="ignore"):
            self.pair[1] += pair[1]

    def value(self) -> np.ndarray:
        so_far, lost = self.pair
        # an infinite sum lost nothing that could be counted
        return so_far + np.where(np.isfinite(lost), lost, 0)


def segments_of(chunk: Chunk) -> np.ndarray:
    """Where the chunk's pieces start and stop in its rows: int64 ``[n_pieces, 2]``."""
    pieces = chunk.plan.pieces
    return np.array([(p.at, p.at + p.stop - p.start) for p in pieces], dtype=np.int64)


def describe_non_finite(zoo: Zoo, chunk: Chunk, rows: Sequence[int], worker: Device) -> str | None:
    """Which input has NaN or Inf in this chunk, in words; None if none has."""
    segments = segments_of(chunk)
    moments = np.zeros((len(segments), len(rows), N))
    worker.row_moments(chunk, segments, moments, based=False)
    found = np.argwhere(moments[:, :, NON_FINITE])
    if not len(found):
        return None
    piece, row = found[0]
    tensor = zoo.tensors[chunk.plan.pieces[piece].tensor]
    checkpoint = zoo.checkpoints[rows[row]]
    file = checkpoint.files[tensor.stored[rows[row]].file]
    return (
        f"{file}: tensor {tensor.name!r} has NaN or Inf; allow it with --allow-non-finite, or "
        f"leave it out with --exclude '{tensor.name}'"
    )
