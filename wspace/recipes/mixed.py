"""The tensors of plans that are mixes of rows: measured if their factors need it, and written.

Factors that come from inner products are computed tensor by tensor, in the pass that writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from wspace.devices import Device
from wspace.errors import BudgetError, NonFiniteError
from wspace.jobs import MAX_PIECES, Job, Mixes, plan_jobs, run_jobs, unfinished
from wspace.passes import describe_non_finite, segments_of
from wspace.recipes.parts import MATRIX_ROWS, Batch, Part, Shared, Use, batches_of, parts_of
from wspace.recipes.plan import Plan
from wspace.recipes.problems import RecipeError
from wspace.recipes.steps import TensorPlan
from wspace.sinks import FileSink
from wspace.storage.headers import BITS, KERNEL_NAMES
from wspace.storage.writing import CheckpointWriter
from wspace.stream import OUTPUTS, SLOTS, Chunk, Progress, chunk_elements, reading_workspace
from wspace.visits import Room, Visit, measured_first, written_at_once

Rows = tuple[tuple[int, ...], bool]
"""Rows of a part, and whether the last is the origin of the others."""


class MixedTensors:
    """The passes over all parts of some plans, with one progress."""

    def __init__(
        self, plans: Sequence[Plan], worker: Device, budget: int, *, allow_non_finite: bool
    ) -> None:
        self._plans, self._worker, self._budget = plans, worker, budget
        self._allow = allow_non_finite
        self._parts = [(part, needs_of(part, worker, budget)) for part in parts_of(plans)]

    @property
    def nbytes(self) -> int:
        """That will be read, of the stream."""
        return sum(needs.read_bytes for _, needs in self._parts)

    def write(self, writers: Sequence[CheckpointWriter], progress: Progress) -> None:
        start = 0
        for part, needs in self._parts:
            done = start

            def follow(read: int, _total: int) -> None:
                progress(done + read, self.nbytes)  # noqa: B023 - called before it changes

            for batch in batches_of(part):
                done += self._write(part, batch, needs, writers, follow)
            start += needs.read_bytes

    def _write(
        self,
        part: Part,
        batch: Batch,
        needs: Needs,
        writers: Sequence[CheckpointWriter],
        progress: Progress,
    ) -> int:
        """Returns how many bytes were read."""
        batch = _left(part, batch, writers)
        if not batch.tensors:
            return 0
        factors: list[np.ndarray | None] = [None] * len(part.uses)
        jobs, sinks = [], []
        alike: dict[tuple, list[int]] = {}
        for u, use in enumerate(part.uses):
            alike.setdefault((use.which, use.based, use.dtype, use.known), []).append(u)
        for (which, based, dtype, known), uses in alike.items():
            n = len(which) - based
            if known:
                weights, kinds = _known(batch, uses)
            else:
                weights = np.full((len(batch.tensors), len(uses), n), np.nan)
                kinds = np.arange(len(batch.tensors))
                for k, u in enumerate(uses):
                    factors[u] = weights[:, k]
            outputs = []
            for u in uses:
                names = [tensor.made[u].name for tensor in batch.tensors]
                places = list(zip(names, batch.starts, strict=True))
                outputs.append((places, writers[part.uses[u].output]))
            mixes = Mixes(weights, which, based, kinds)
            sinks.append((FileSink(outputs), KERNEL_NAMES[dtype]))
            jobs.append(Job(mixes, KERNEL_NAMES[dtype], sinks[-1][0]))
        visits: list[Visit]
        if needs.room:
            rows = range(len(part.rows))
            visits = measured_first(batch.zoo, rows, needs.room, needs.pieces)
        else:
            plans = plan_jobs(batch.zoo, jobs, self._worker, self._budget)
            visits = written_at_once(unfinished(batch.zoo, plans, sinks))
        measure = _Measure(self._plans, part, batch, factors, self._worker, self._allow)
        run_jobs(batch.zoo, jobs, visits, self._worker, progress, self._allow, measure)
        return sum(visit.plan.nbytes for visit in visits)


def _left(part: Part, batch: Batch, writers: Sequence[CheckpointWriter]) -> Batch:
    """The batch without the tensors that an earlier run has written."""
    if not all(writers[use.output].resumed for use in part.uses):
        return batch

    def has(tensor: Shared, start: int, numel: int) -> bool:
        return all(
            writers[use.output].has(
                tensor.made[u].name, start * BITS[use.dtype] // 8, numel * BITS[use.dtype] // 8
            )
            for u, use in enumerate(part.uses)
        )

    across = batch.zoo.tensors
    left = [
        k
        for k, (tensor, start) in enumerate(zip(batch.tensors, batch.starts, strict=True))
        if not has(tensor, start, across[k].numel)
    ]
    zoo = replace(batch.zoo, tensors=tuple([across[k] for k in left]))
    return Batch(zoo, [batch.tensors[k] for k in left], [batch.starts[k] for k in left])


def _known(batch: Batch, uses: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct factors of the uses, ``[n_kinds, n_uses, n]``, and which each tensor has."""
    distinct: dict[bytes, int] = {}
    tables: list[np.ndarray] = []
    kinds = np.empty(len(batch.tensors), np.int64)
    for t, tensor in enumerate(batch.tensors):
        rows = np.stack([_given(tensor.factors[u]) for u in uses])
        kinds[t] = distinct.setdefault(rows.tobytes(), len(distinct))
        if len(tables) < len(distinct):
            tables.append(rows)
    return np.stack(tables), kinds


def _given(factors: np.ndarray | None) -> np.ndarray:
    assert factors is not None
    return factors


class _Measure:
    """Takes chunks of a batch, and sets factors from the Gram matrices of tensors that are whole.

    Inner products are in float64, and of one tensor at a time; ``factors[u]`` ``[n_tensors, n]``
    are those of use ``u``, or None where it knows its own.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        part: Part,
        batch: Batch,
        factors: Sequence[np.ndarray | None],
        worker: Device,
        allow: bool,
    ) -> None:
        self._plans, self._part, self._batch, self._factors = plans, part, batch, factors
        self._worker, self._allow = worker, allow
        self._unfinished: dict[Rows, np.ndarray] = {}

    def __call__(self, chunk: Chunk) -> None:
        zoo, pieces = self._batch.zoo, chunk.plan.pieces
        segments = segments_of(chunk)
        done = [k for k, p in enumerate(pieces) if p.stop == zoo.tensors[p.tensor].numel]
        which = [pieces[k].tensor for k in done]
        grams: dict[Rows, np.ndarray] = {}
        for rows in _measured(self._part.uses):
            own, based = rows
            n = len(own) - based
            grams[rows] = sums = np.zeros((len(pieces), n, n))
            if pieces[0].start:
                sums[0] = self._unfinished[rows]
            self._worker.products("dot", chunk.of_rows(own), segments, sums, based=based)
            if not self._allow and not np.isfinite(sums).all():
                every = range(len(self._part.rows))
                raise NonFiniteError(
                    describe_non_finite(zoo, chunk, every, self._worker)
                    or "Gram matrices: exceeds float64"
                )
            self._unfinished[rows] = sums[-1]
        for u, (use, factors) in enumerate(zip(self._part.uses, self._factors, strict=True)):
            if factors is not None and done:
                made = [self._batch.tensors[t].made[u] for t in which]
                gram = grams[use.which, use.based][done]
                factors[which] = _from_gram(self._plans[use.output], made, gram, self._allow)


def _measured(uses: Sequence[Use]) -> list[Rows]:
    return list(dict.fromkeys((use.which, use.based) for use in uses if not use.known))


def _from_gram(plan: Plan, made: Sequence[TensorPlan], gram: np.ndarray, allow: bool) -> np.ndarray:
    """Each tensor's factors from its Gram matrix, ``[n_tensors, n]``."""
    factors = np.empty(gram.shape[:2])
    steps = np.array([id(tensor.step) for tensor in made])
    for step in {id(tensor.step): tensor.step for tensor in made}.values():
        which = np.flatnonzero(steps == id(step))
        assert step is not None
        found = plan.method.factors(step.numbers, gram[which])
        assert found is not None
        factors[which] = found
    wrong = np.flatnonzero(~np.isfinite(factors).all(axis=1))
    if len(wrong) and not allow:
        name = made[wrong[0]].name
        raise RecipeError([f"{plan.recipe.method}: the directions of {name!r} cancel"])
    return factors


class Needs(NamedTuple):
    """What the pass over a part reads, and holds of the budget."""

    room: Room | None  # None: nothing is measured
    pieces: int  # tensors in a chunk, at most
    read_bytes: int  # of the stream
    file_bytes: int
    held_bytes: int


def needs_of(part: Part, worker: Device, budget: int) -> Needs:
    """Raises BudgetError if the budget is too little."""
    out_bytes = sum(BITS[use.dtype] // 8 for use in part.uses)
    n_rows = len(part.rows)
    computed = [
        tensor for tensor, group in zip(part.tensors, part.groups, strict=True)
        if len(group) > n_rows
    ]  # fmt: skip
    fixed = reading_workspace(part.rows, (tensor.stored for tensor in computed))
    types_of = {group: group[:n_rows] for group in set(part.groups)}
    kinds: dict[tuple[str, ...], int] = dict.fromkeys(types_of.values(), 0)
    for tensor, group in zip(part.tensors, part.groups, strict=True):
        kinds[types_of[group]] += tensor.made[0].numel
    measured = _measured(part.uses)
    if not measured:
        held = 0
        for dtypes, numel in kinds.items():
            n = chunk_elements(budget - fixed, worker.chunk_bytes, dtypes, out_bytes)
            each = SLOTS * sum(BITS[dtype] for dtype in dtypes) // 8 + OUTPUTS * out_bytes
            held = max(held, fixed + min(n, numel) * each)
        stream = sum(_bytes_of(dtypes, numel) for dtypes, numel in kinds.items())
        return Needs(None, MAX_PIECES, stream, stream + sum(map(_beyond, computed)), held)
    matrix = sum(8 * (len(which) - based) ** 2 for which, based in measured)
    # each of a chunk's tensors has its sums, and in the kernel those of its blocks
    pieces = max(1, min(MAX_PIECES, budget // 32 // matrix))
    tensors = MATRIX_ROWS if part.rowwise else len(part.tensors)
    fixed += 2 * (pieces + 1) * matrix + sum(8 * use.n * tensors for use in part.uses)
    if budget <= fixed:
        raise BudgetError(f"work on the factors of {tensors} tensors")
    room = Room.of(kinds, worker, budget - fixed, out_bytes)
    types = [types_of[group] for group in part.groups]
    sizes = [_numel(part, tensor) for tensor in part.tensors]
    reads = [room.reads(dtypes, numel) for dtypes, numel in zip(types, sizes, strict=True)]
    chunks = [room.chunks(dtypes, numel) for dtypes, numel in zip(types, sizes, strict=True)]
    kept = max((n for n, times in zip(chunks, reads, strict=True) if times == 1), default=1)
    slots = room.slot_bytes * (kept + SLOTS - 1)
    held = fixed + slots + OUTPUTS * max(room.elements.values()) * out_bytes
    each = zip(part.tensors, types, reads, strict=True)
    stream = sum(times * _bytes_of(dtypes, tensor.numel) for tensor, dtypes, times in each)
    times_of = {id(tensor): times for tensor, times in zip(part.tensors, reads, strict=True)}
    files = stream + sum(times_of[id(tensor)] * _beyond(tensor) for tensor in computed)
    return Needs(room, pieces, stream, files, held)


def _bytes_of(dtypes: Sequence[str], numel: int) -> int:
    """Of the stream."""
    return numel * sum(BITS[dtype] for dtype in dtypes) // 8


def _beyond(tensor: Shared) -> int:
    """Bytes read of files for a tensor some of whose rows are computed, beyond the stream's."""
    return sum(stored.read_bytes - stored.record.nbytes for stored in tensor.stored)


def _numel(part: Part, tensor: Shared) -> int:
    """Of what has factors of its own: a tensor, or a row of one."""
    shape = tensor.made[0].shape
    return shape[-1] if part.rowwise and shape else tensor.numel
