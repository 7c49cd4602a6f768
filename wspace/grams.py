"""The first pass: the Gram matrix of the task vectors, of every tensor, from one read of the zoo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from wspace.devices import device_named
from wspace.errors import BudgetError, NonFiniteError
from wspace.non_finite import describe_non_finite
from wspace.sizes import parse_bytes
from wspace.stream import Progress, Stream, chunk_elements, plan_chunks
from wspace.zoo import Zoo


@dataclass(frozen=True)
class Gram:
    """Inner products of task vectors: everything that distances and angles are made of."""

    total: torch.Tensor  # float64 [n, n]
    per_tensor: torch.Tensor | None  # float64 [n_tensors, n, n]
    tensors: tuple[str, ...]  # names, in per_tensor's order
    members: tuple[str, ...]  # names of the models
    has_base: bool  # rows are differences from the base; else they are the weights themselves
    left_out: dict[str, str]  # tensors that took no part, and why


def gram(
    zoo: Zoo,
    *,
    per_tensor: bool = True,
    device: str = "auto",
    memory: int | str = "1GiB",
    allow_non_finite: bool = False,
    progress: Progress | None = None,
) -> Gram:
    """Gram matrix of the task vectors: ``G[i, j] = <theta_i - base, theta_j - base>``.

    One pass over the bytes: each is read once. Without a base the rows are the weights themselves.
    ``per_tensor`` keeps the matrix of every tensor too (``n_tensors * n * n`` doubles). ``memory``
    bounds what the pass holds, results included. ``progress(done, total)`` counts bytes.

    Numerics: differences in float32 (float64 where an input is), products and sums in float64; the
    sum over tensors in twice float64's precision, so that the bits do not depend on the order of
    tensors, the shard layout, the chunks or the threads.
    Raises NonFiniteError naming a tensor with NaN or Inf, unless allowed; BudgetError.
    """
    budget = parse_bytes(memory)
    worker = device_named(device)
    n = len(zoo)
    matrix = 8 * n * n
    results = matrix * (len(zoo.tensors) if per_tensor else 0) + 4 * matrix
    # the matrices of a chunk's tensors, once as sums and once as blocks that wait
    max_pieces = max(1, min(4096, budget // 16 // matrix))
    workspace = 2 * max_pieces * matrix + max(32 << 20, 2 * matrix)
    if results + workspace >= budget:
        advice = "; pass per_tensor=False" if per_tensor and 4 * matrix < budget // 2 else ""
        raise BudgetError(
            f"Gram matrices of {n} models and {len(zoo.tensors)} tensors take {results} bytes and "
            f"{workspace} to work in, more than the memory budget of {budget}{advice} or raise it"
        )
    rows = range(len(zoo.checkpoints))
    plans = list(
        plan_chunks(
            zoo, rows,
            lambda dtypes: chunk_elements(
                budget - results - workspace, worker.chunk_bytes, dtypes, 0, "gram"
            ),
            max_pieces,
        )
    )  # fmt: skip
    kept = np.zeros((len(zoo.tensors) if per_tensor else 0, n, n))
    total = _Accurate((n, n))
    running = np.zeros((n, n))
    with Stream(zoo, rows, plans, worker, progress=progress) as stream:
        for chunk in stream:
            pieces = chunk.plan.pieces
            segments = np.array([(p.at, p.at + p.stop - p.start) for p in pieces], dtype=np.int64)
            sums = np.zeros((len(pieces), n, n))
            if pieces[0].start:
                sums[0] = running
            worker.gram(chunk, segments, sums, based=zoo.base is not None)
            diagonals = np.diagonal(sums, axis1=1, axis2=2)
            if not allow_non_finite and not np.isfinite(diagonals).all():
                raise NonFiniteError(
                    describe_non_finite(zoo, chunk, rows, worker)
                    or "the Gram matrix exceeds the range of float64"
                )
            for piece, matrix_of_piece in zip(pieces, sums, strict=True):
                if piece.stop < zoo.tensors[piece.tensor].numel:
                    running = matrix_of_piece
                    continue
                total.add(matrix_of_piece)
                if per_tensor:
                    kept[piece.tensor] = matrix_of_piece
    return Gram(
        total=torch.from_numpy(total.value()),
        per_tensor=torch.from_numpy(kept) if per_tensor else None,
        tensors=tuple(tensor.name for tensor in zoo.tensors),
        members=zoo.names,
        has_base=zoo.base is not None,
        left_out=zoo.left_out | {t.name: f"{t.dtypes[0]} is not floating point" for t in zoo.copied},
    )


class _Accurate:
    """A sum in twice float64's precision (Knuth's two-sum): the same in any order of terms."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._sum, self._lost = np.zeros(shape), np.zeros(shape)

    def add(self, term: np.ndarray) -> None:
        summed = self._sum + term
        back = summed - self._sum
        self._lost += (self._sum - (summed - back)) + (term - back)
        self._sum = summed

    def value(self) -> np.ndarray:
        return self._sum + self._lost
