"""The pass of an elementwise method: statistics of each tensor, then its elements, written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import groupby
from typing import NamedTuple

import numpy as np

from wspace.devices import Device
from wspace.elementwise.choices import ColumnSums, FisherMean, Pull
from wspace.elementwise.kernels import Out, kernels_of, worker_for
from wspace.elementwise.scores import unit_of
from wspace.elementwise.sources import Blocks, Source, View, in_memory, view_of
from wspace.elementwise.statistics import Tables, draw_key
from wspace.elementwise.work import Work, layout_of, times_read
from wspace.errors import CheckpointError, NonFiniteError
from wspace.jobs import finish
from wspace.passes import describe_non_finite
from wspace.profiling import PASS, stage
from wspace.sinks import FileSink
from wspace.storage.headers import BITS, KERNEL_NAMES
from wspace.storage.residence import PAGE
from wspace.stream import (
    CUT,
    OUTPUTS,
    Buffers,
    Chunk,
    ChunkPlan,
    Piece,
    Stream,
    output_starts,
    row_starts,
)

Count = Callable[[int], None]
"""Called with the bytes of each chunk that was read."""


class Whole(NamedTuple):
    """What is known of whole models: the bits of each one's threshold, and the sign of most."""

    thresholds: np.ndarray
    undecided: float


class Run:
    """Writes one work's tensors; see :meth:`write`."""

    def __init__(
        self, work: Work, worker: Device, budget: int, allow_non_finite: bool = False
    ) -> None:
        self.work, self._worker = work, worker_for(worker)
        self._allow = allow_non_finite
        self._layout = layout_of(work, self._worker, budget)
        self.kernels = kernels_of(self._worker)
        self._buffers: Buffers | None = None  # while it works

    @property
    def nbytes(self) -> int:
        """Read in all."""
        return sum(plan.nbytes for plan in self._layout.whole) + sum(
            sum(plan.nbytes for plan in plans)
            * times_read(self.work, plans[0].pieces[0].tensor, self._worker)
            for plans in self._layout.cut
        )

    @property
    def numel(self) -> int:
        return self.work.zoo.numel

    @property
    def wide(self) -> bool:
        """Whether any difference is in float64."""
        tensors = self.work.zoo.tensors
        return any(stored.record.dtype == "F64" for t in tensors for stored in t.stored)

    @property
    def read_once(self) -> int:
        """Bytes of all tensors."""
        return sum(plan.nbytes for plan in self._layout.plans)

    def has(self, sink: FileSink) -> bool:
        """Whether an earlier run has written all of it."""
        return all(sink.has(plan, self.work.dtype) for plan in self._layout.plans)

    def views(self, progress: Count) -> Iterator[View]:
        """All elements once, of several tensors at a time."""
        for chunk in self._stream(self._layout.plans, progress):
            yield self._view(chunk, range(len(chunk.plan.pieces)))
        self._buffers = None

    def prepared(self, whole: Whole | None, progress: Count) -> Iterator[tuple[View, Tables]]:
        """All elements once, with the tables that say what becomes of them."""
        for _, prepared in self._prepared(whole, progress, lambda plan: False):
            yield from prepared

    @stage(PASS)
    def write(self, sink: FileSink, progress: Count, whole: Whole | None = None) -> None:
        """Compute and hand on every tensor; chunks are read ahead, and written behind."""
        plans = self._layout.plans
        width = BITS[self.work.dtype] // 8
        longest = max((plan.n * width for plan in plans), default=0) + PAGE
        buffers = [self._worker.host_buffer(longest) for _ in range(min(OUTPUTS, len(plans)))]
        waiting: list[list[Future[None]]] = [[] for _ in range(OUTPUTS)]

        def has(plan: ChunkPlan) -> bool:
            return sink.has(plan, self.work.dtype)

        for k, (chunk, prepared) in enumerate(self._prepared(whole, progress, has)):
            finish(waiting[k % OUTPUTS])
            dtype, plan = self.work.dtype, chunk.plan
            starts, end = output_starts(plan.n, [dtype], sink.positions(plan, dtype))
            buffer = buffers[k % OUTPUTS][starts[0] : end]
            bad = 0
            for view, tables in prepared:
                bad += self._join(view, tables, buffer)
                tables.forget()
            if bad and not self._allow:
                raise NonFiniteError(self._describe(chunk))
            waiting[k % OUTPUTS] = sink(chunk, buffer, (0,), dtype)
        for futures in waiting:
            finish(futures)

    def _prepared(
        self, whole: Whole | None, progress: Count, skip: Callable[[ChunkPlan], bool]
    ) -> Iterator[tuple[Chunk, list[tuple[View, Tables]]]]:
        """Chunks with the tables of what they hold, but for those to skip."""
        for chunk in self._stream(_without(self._layout.whole, skip, progress), progress):
            prepared = []
            for view in self._views(chunk):
                tables = self._tables(view.tensors, whole)
                tables.prepare(in_memory(view), keep_scores=True)
                prepared.append((view, tables))
            yield chunk, prepared
        for plans in self._layout.cut:
            left = _without(plans, skip, progress)
            if not left:  # its statistics are not needed either
                times = times_read(self.work, plans[0].pieces[0].tensor, self._worker)
                progress((times - 1) * sum(plan.nbytes for plan in plans))
                continue
            tables = self._tables((plans[0].pieces[0].tensor,), whole)

            tables.prepare(self._from_files(plans, progress), keep_scores=False)
            for chunk in self._stream(left, progress):
                yield chunk, [(self._view(chunk, [0]), tables)]
        self._buffers = None

    def _from_files(self, plans: Sequence[ChunkPlan], progress: Count) -> Source:
        """One tensor, that is read again each time."""
        tensor, dtypes = plans[0].pieces[0].tensor, plans[0].dtypes
        n, shape = self.work.zoo.tensors[tensor].numel, self.work.zoo.tensors[tensor].shape
        unit = unit_of(self.work.choices[tensor], shape) or CUT  # blocks of scores: whole lines

        def at(blocks: Blocks) -> Iterator[View]:
            pieces = [
                Piece(tensor, start // unit * unit, min(-(-(start + CUT) // unit) * unit, n), 0)
                for _, start in blocks
            ]
            few = [ChunkPlan((piece,), dtypes, piece.stop - piece.start) for piece in pieces]
            return (self._view(chunk, [0]) for chunk in self._stream(few, lambda _: None))

        def views() -> Iterator[View]:
            return (self._view(chunk, [0]) for chunk in self._stream(plans, progress))

        return Source(views, at)

    def _stream(self, plans: Sequence[ChunkPlan], progress: Count) -> Iterator[Chunk]:
        if not plans:
            return
        work, worker = self.work, self._worker
        if self._buffers is None:
            lengths = [row_starts(plan.n, plan.dtypes)[1] for plan in self._layout.plans]
            self._buffers = Buffers(worker, max(lengths))
        with Stream(work.zoo, work.rows, plans, worker, buffers=self._buffers) as stream:
            for chunk in stream:
                yield chunk
                progress(chunk.plan.nbytes)

    def _views(self, chunk: Chunk) -> Iterator[View]:
        """The chunk's runs of tensors with one choice."""
        choices = self.work.choices
        for _, run in groupby(chunk.plan.pieces, key=lambda piece: id(choices[piece.tensor])):
            pieces = tuple(run)
            at = pieces[0].at
            moved = tuple([piece._replace(at=piece.at - at) for piece in pieces])
            n = pieces[-1].at + pieces[-1].stop - pieces[-1].start - at
            dtypes = chunk.plan.dtypes
            starts = tuple(
                start + at * BITS[dtype] // 8
                for start, dtype in zip(chunk.starts, dtypes, strict=True)
            )
            part = Chunk(ChunkPlan(moved, dtypes, n), chunk.buffer, starts)
            yield self._view(part, range(len(pieces)))._replace(at=at)

    def _view(self, chunk: Chunk, slots: Sequence[int]) -> View:
        return view_of(chunk, slots, *self.kernels.rows(chunk))

    def _tables(self, tensors: Sequence[int], whole: Whole | None) -> Tables:
        work = self.work
        found = [work.zoo.tensors[t] for t in tensors]
        keys = np.array(
            [[draw_key(work.seed, model, t.name) for model in work.models] for t in found],
            np.uint64,
        )
        wide = any(stored.record.dtype == "F64" for t in found for stored in t.stored)
        return Tables(
            work.choices[tensors[0]], [t.shape for t in found], keys, wide=wide,
            kernels=self.kernels, thresholds=whole and whole.thresholds,
            undecided=whole.undecided if whole else 1.0,
        )  # fmt: skip

    def _join(self, view: View, tables: Tables, buffer: np.ndarray) -> int:
        """Writes a view's elements to their place; returns how many are NaN or Inf."""
        width = BITS[self.work.dtype] // 8
        out = Out(
            buffer[view.at * width : (view.at + view.n) * width], KERNEL_NAMES[self.work.dtype]
        )
        join = tables.choice.join
        if isinstance(join, Pull):
            return self.kernels.pulled(view, join.reach, out)
        if isinstance(join, FisherMean):
            return self._mean(view, join, out)
        if isinstance(join, ColumnSums):
            factors = [tables.columns[slot] for slot in view.slots]
            return self.kernels.column_sums(view, factors, out)
        assert tables.joint is not None
        return self.kernels.joined(
            view, tables.mask.of(view.slots), tables.joint.of(view.slots), out,
            unbiased=join.rescale == "chances", **tables.extra(view),
        )  # fmt: skip

    def _mean(self, view: View, join: FisherMean, out: Out) -> int:
        """Raises CheckpointError where a diagonal is none."""
        n = len(join.weights)
        wrong = np.zeros((len(view.slots), n), np.int64)
        bad = self.kernels.precision_mean(view, join.weights, join.floor, out, wrong)
        for segment, row in np.argwhere(wrong)[:1]:
            tensor = self.work.zoo.tensors[view.tensors[segment]]
            checkpoint = self.work.zoo.checkpoints[n + row]
            raise CheckpointError(
                f"{checkpoint.files[tensor.stored[n + row].file]}: tensor {tensor.name!r} has "
                f"Fisher diagonals that are negative, NaN or Inf ({wrong[segment, row]} here); "
                f"expected 0 or more. Leave it out with --exclude '{tensor.name}'"
            )
        return bad

    def _describe(self, chunk: Chunk) -> str:
        zoo = self.work.zoo
        names = ", ".join(repr(zoo.tensors[piece.tensor].name) for piece in chunk.plan.pieces[:3])
        return describe_non_finite(zoo, chunk, self.work.rows, self._worker) or (
            f"the result exceeds the range of {KERNEL_NAMES[self.work.dtype]} in tensor {names} "
            "or one near it; choose a wider dtype or smaller weights"
        )


def _without(
    plans: Sequence[ChunkPlan], skip: Callable[[ChunkPlan], bool], progress: Count
) -> list[ChunkPlan]:
    """Those that are not to be skipped; the others count as read."""
    left = []
    for plan in plans:
        if skip(plan):
            progress(plan.nbytes)
        else:
            left.append(plan)
    return left
