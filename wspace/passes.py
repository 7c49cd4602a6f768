"""Reading the zoo once, for sums over each of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from wkernels.moments import NON_FINITE, N
from wspace.devices import Device
from wspace.errors import BudgetError, NonFiniteError
from wspace.profiling import PASS, stage
from wspace.stream import Chunk, Progress, Stream, chunk_elements, plan_chunks, reading_workspace
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
    check: Callable[[np.ndarray], bool] | None = None,
    progress: Progress | None = None,
) -> TensorSums:
    """One pass over ``rows`` of ``zoo.checkpoints``; ``add(chunk, segments, sums)`` does the work.

    ``segments`` are the chunk's pieces, and ``sums [n_segments, *shape]`` what each tensor has so
    far. ``keep`` keeps the sums of every tensor. ``check(sums)`` false raises NonFiniteError with
    the tensor's name. ``what`` names the pass in errors. Sums over tensors are in twice float64's
    precision: their bits do not depend on the order of the tensors.
    """
    matrix = 8 * shape[0] * shape[1]
    results = matrix * (len(zoo.tensors) if keep else 0) + 4 * matrix
    # each of a chunk's tensors has its sums, and in the kernel those of its blocks
    max_pieces = max(1, min(4096, budget // 32 // matrix))
    workspace = 2 * (max_pieces + 1) * matrix
    room = (
        budget
        - results
        - workspace
        - reading_workspace(zoo.checkpoints, (t.stored for t in zoo.tensors))
    )
    if room <= 0:
        raise BudgetError(
            f"{what} of {shape[0]} models and {len(zoo.tensors)} tensors: results take {results} "
            f"bytes and {workspace} to work in, more than the memory budget of {budget}; "
            f"{'pass per_tensor=False or ' if keep else ''}raise it"
        )

    def size(dtypes: Sequence[str]) -> int:
        return chunk_elements(room, worker.chunk_bytes, dtypes, 0, what)

    plans = list(plan_chunks(zoo, rows, size, max_pieces))
    kept = np.zeros((len(zoo.tensors), *shape)) if keep else None
    total = _Accurate(shape)
    unfinished = np.zeros(shape)
    with Stream(zoo, rows, plans, worker, progress=progress) as stream:
        for chunk in stream:
            pieces = chunk.plan.pieces
            sums = np.zeros((len(pieces), *shape))
            if pieces[0].start:
                sums[0] = unfinished
            add(chunk, segments_of(chunk), sums)
            if check and not check(sums):
                raise NonFiniteError(
                    describe_non_finite(zoo, chunk, rows, worker) or f"{what}: exceeds float64"
                )
            for piece, tensor_sums in zip(pieces, sums, strict=True):
                if piece.stop < zoo.tensors[piece.tensor].numel:
                    unfinished = tensor_sums
                    continue
                total.add(tensor_sums)
                if kept is not None:
                    kept[piece.tensor] = tensor_sums
    return TensorSums(kept, total.value())


class _Accurate:
    """A sum in twice float64's precision (Knuth's two-sum), the same in any order of its terms."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._sum, self._lost = np.zeros(shape), np.zeros(shape)

    def add(self, term: np.ndarray) -> None:
        with np.errstate(invalid="ignore"):
            summed = self._sum + term
            back = summed - self._sum
            self._lost += (self._sum - (summed - back)) + (term - back)
        self._sum = summed

    def value(self) -> np.ndarray:
        # an infinite sum lost nothing that could be counted
        return self._sum + np.where(np.isfinite(self._lost), self._lost, 0)


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
