"""The pass of elementwise methods: statistics of each tensor, then its elements, written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import cycle

import numpy as np

from wspace.devices import Device
from wspace.elementwise.choices import ColumnSums, FisherMean, Pull
from wspace.elementwise.kernels import Out, kernels_of
from wspace.elementwise.lanes import Count
from wspace.elementwise.preparing import Preparing, Ready, Whole
from wspace.elementwise.scores import unit_of
from wspace.elementwise.sources import Blocks, Source, View, lines_around
from wspace.elementwise.work import Use, Work, layout_of, times_read
from wspace.errors import CheckpointError, NonFiniteError
from wspace.jobs import finish
from wspace.passes import describe_non_finite
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

Lacking = Callable[[ChunkPlan], Sequence[int]]
"""Which uses a chunk is read for."""


class Run:
    """Writes one work's tensors; see :meth:`write`."""

    def __init__(
        self, work: Work, worker: Device, budget: int, allow_non_finite: bool = False
    ) -> None:
        self.work, self._worker = work, worker
        self._allow = allow_non_finite
        self._layout = layout_of(work, self._worker, budget)
        self.kernels = kernels_of(self._worker)
        self._buffers: Buffers | None = None  # while it works
        self._nothing = [None] * len(work.uses)

    @property
    def nbytes(self) -> int:
        """Read in all."""
        reads = max(map(self.work.whole_reads, self.work.uses)) * self.read_once
        return (
            reads
            + sum(plan.nbytes for plan in self._layout.whole)
            + sum(
                times_read(self.work, plans[0].pieces[0].tensor, rounds, sifted)
                * sum(plan.nbytes for plan in plans)
                for plans, rounds, sifted in self._layout.cut_tensors
            )
        )

    @property
    def read_once(self) -> int:
        """Bytes of all tensors."""
        return sum(plan.nbytes for plan in self._layout.plans)

    def has(self, sinks: Sequence[FileSink]) -> bool:
        """Whether an earlier run has written all of it; a sink for each use."""
        return not any(self._lacking(plan, sinks) for plan in self._layout.plans)

    def _lacking(self, plan: ChunkPlan, sinks: Sequence[FileSink]) -> list[int]:
        """The uses of which a chunk has something that is not written yet."""
        uses = zip(self.work.uses, sinks, strict=True)
        return [k for k, (use, sink) in enumerate(uses) if not sink.has(plan, use.dtype)]

    def views(self, uses: Sequence[int], progress: Count) -> Iterator[tuple[int, View]]:
        """All elements once, of several tensors at a time, for each of the uses."""
        preparing = Preparing(self.work, self.kernels, self._nothing)
        for chunk in self._stream(self._layout.plans, progress):
            for use in uses:
                yield use, preparing.view(chunk, use)
        self._buffers = None

    def prepared(
        self, uses: Sequence[int], wholes: Sequence[Whole | None], progress: Count
    ) -> Iterator[tuple[int, Ready]]:
        """All elements once, with their tables, for each of the uses."""
        for _, prepared in self._prepared(wholes, progress, lambda plan: uses):
            for use, content in prepared:
                for ready in content:
                    yield use, ready

    def write(
        self,
        sinks: Sequence[FileSink],
        progress: Count,
        wholes: Sequence[Whole | None] | None = None,
    ) -> None:
        """Compute and hand on every tensor; chunks are read ahead, and written behind.

        A sink for each use; ``wholes``: what is known of whole models for each.
        """
        wholes = wholes or self._nothing
        plans = self._layout.plans
        longest = max((plan.n for plan in plans), default=0) * self.work.width + PAGE
        n_buffers = min(OUTPUTS, len(plans) * len(sinks))
        buffers = [self._worker.host_buffer(longest) for _ in range(n_buffers)]
        waiting: list[list[Future[None]]] = [[] for _ in buffers]
        turns = cycle(range(n_buffers))
        chunks = self._prepared(wholes, progress, lambda plan: self._lacking(plan, sinks))
        for chunk, prepared in chunks:
            for use, content in prepared:
                turn = next(turns)
                finish(waiting[turn])
                dtype, plan = self.work.uses[use].dtype, chunk.plan
                starts, end = output_starts(plan.n, [dtype], sinks[use].positions(plan, dtype))
                buffer = buffers[turn][starts[0] : end]
                bad = sum([self._join(use, ready, wholes[use], buffer) for ready in content])
                if bad and not self._allow:
                    raise NonFiniteError(self._describe(chunk, self.work.uses[use]))
                waiting[turn] = sinks[use](chunk, buffer, (0,), dtype)
        for futures in waiting:
            finish(futures)

    def _prepared(
        self, wholes: Sequence[Whole | None], progress: Count, lacking: Lacking
    ) -> Iterator[tuple[Chunk, Iterator[tuple[int, list[Ready]]]]]:
        """Chunks, and for each use that lacks them what it needs; to be taken one by one."""
        preparing = Preparing(self.work, self.kernels, wholes)
        for chunk in self._stream(_without(self._layout.whole, lacking, progress), progress):
            yield chunk, preparing.whole(chunk, lacking(chunk.plan))
        for plans, rounds, sifted in self._layout.cut_tensors:
            tensor = plans[0].pieces[0].tensor
            uses = {use for plan in plans for use in lacking(plan)}
            left = [[use for use in of_round if use in uses] for of_round in rounds]
            source = self._from_files(plans, progress)
            content, reads = preparing.cut(tensor, left, sifted, source)
            told = times_read(self.work, tensor, rounds, sifted) - 1
            # a use that has all of it, or keeps all, needs no statistics
            progress((told - reads) * sum(plan.nbytes for plan in plans))
            for chunk in self._stream(_without(plans, lacking, progress), progress):
                yield chunk, content(chunk, lacking(chunk.plan))
        self._buffers = None

    def _from_files(self, plans: Sequence[ChunkPlan], progress: Count) -> Source:
        """One tensor, that is read again each time."""
        tensor, dtypes = plans[0].pieces[0].tensor, plans[0].dtypes
        n, shape = self.work.zoo.tensors[tensor].numel, self.work.zoo.tensors[tensor].shape
        choice = self.work.uses[0].choices[tensor]  # all have the same units
        unit = unit_of(choice, shape) or CUT  # blocks of scores: whole lines

        def at(blocks: Blocks) -> Iterator[Chunk]:
            pieces = [Piece(tensor, *lines_around(start, unit, n), 0) for _, start in blocks]
            few = [ChunkPlan((piece,), dtypes, piece.stop - piece.start) for piece in pieces]
            return self._stream(few, lambda _: None)

        return Source(lambda: self._stream(plans, progress), at)

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

    def _join(self, use: int, ready: Ready, whole: Whole | None, buffer: np.ndarray) -> int:
        """Writes a view's elements to their place; returns how many are NaN or Inf."""
        of = self.work.uses[use]
        view, tables, choice = ready
        width = BITS[of.dtype] // 8
        out = Out(buffer[view.at * width : (view.at + view.n) * width], KERNEL_NAMES[of.dtype])
        join = choice.join
        if isinstance(join, Pull):
            return self.kernels.pulled(view, join.reach, out)
        if isinstance(join, FisherMean):
            return self._mean(of, view, join, out)
        if isinstance(join, ColumnSums):
            factors = tables.columns(join)
            return self.kernels.column_sums(view, [factors[slot] for slot in view.slots], out)
        joint = tables.joint(join, whole.undecided if whole else 1.0)
        return self.kernels.joined(
            view, tables.mask.of(view.slots), joint.of(view.slots), out,
            unbiased=choice.needs_chances, **tables.extra(view),
        )  # fmt: skip

    def _mean(self, use: Use, view: View, join: FisherMean, out: Out) -> int:
        """Raises CheckpointError where a diagonal is none."""
        n = len(join.weights)
        wrong = np.zeros((len(view.slots), n), np.int64)
        bad = self.kernels.precision_mean(view, join.weights, join.floor, out, wrong)
        for segment, row in np.argwhere(wrong)[:1]:
            tensor = self.work.zoo.tensors[view.tensors[segment]]
            diagonal = use.which[n + row]
            file = self.work.zoo.checkpoints[diagonal].files[tensor.stored[diagonal].file]
            raise CheckpointError(
                f"{file}: tensor {tensor.name!r} has "
                f"Fisher diagonals that are negative, NaN or Inf ({wrong[segment, row]} here); "
                f"expected 0 or more. Leave it out with --exclude '{tensor.name}'"
            )
        return bad

    def _describe(self, chunk: Chunk, use: Use) -> str:
        zoo = self.work.zoo
        names = ", ".join(repr(use.names[piece.tensor]) for piece in chunk.plan.pieces[:3])
        own = chunk.of_rows(use.which)
        return describe_non_finite(zoo, own, use.which, self._worker) or (
            f"the result exceeds the range of {KERNEL_NAMES[use.dtype]} in tensor {names} "
            "or one near it; choose a wider dtype or smaller weights"
        )


def _without(plans: Sequence[ChunkPlan], lacking: Lacking, progress: Count) -> list[ChunkPlan]:
    """Those that some use lacks; the others count as read."""
    left = []
    for plan in plans:
        if lacking(plan):
            left.append(plan)
        else:
            progress(plan.nbytes)
    return left
