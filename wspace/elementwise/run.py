"""The pass of an elementwise method: statistics of each tensor, then its elements, written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from wkernels import cpu
from wspace.devices import Device, processors
from wspace.elementwise.choices import Choice, ColumnSums, Drawn, FisherMean, Largest, Pull, Ranked
from wspace.elementwise.columns import held_bytes, write_columns
from wspace.elementwise.scores import unit_of
from wspace.elementwise.sources import Layout, View, lay_out, view_of
from wspace.elementwise.statistics import Tables, draw_key
from wspace.errors import CheckpointError, DeviceError, NonFiniteError
from wspace.jobs import FileSink, finish
from wspace.passes import describe_non_finite
from wspace.storage.headers import BITS, KERNEL_NAMES
from wspace.stream import (
    CUT,
    OUTPUTS,
    SLOTS,
    Chunk,
    ChunkPlan,
    Stream,
    chunk_elements,
    derived_workspace,
)
from wspace.zoo import Zoo, ZooTensor

MOST = 512
"""Tensors in a chunk: each has counts of its digits."""


@dataclass(frozen=True)
class Work:
    """Tensors of one set of models, the base last, that are written in one type.

    Of a FisherMean: first the models, then the diagonals of each, the last in the base's place.
    """

    zoo: Zoo  # with a base
    choices: tuple[Choice, ...]  # of each tensor; tensors that share one share the object
    models: tuple[int, ...]  # the members' numbers, for the draws
    dtype: str  # safetensors name
    seed: int = 0

    @property
    def rows(self) -> range:
        return range(len(self.zoo.checkpoints))


Count = Callable[[int], None]
"""Called with the bytes of each chunk that was read."""


class Cost(NamedTuple):
    read_bytes: int  # from files
    held_bytes: int


def cost_of(work: Work, worker: Device, budget: int) -> Cost:
    """What a work costs. Raises BudgetError."""
    layout = layout_of(work, worker, budget)
    zoo = work.zoo
    read = {k: sum(s.read_bytes for s in tensor.stored) for k, tensor in enumerate(zoo.tensors)}
    for plans in layout.cut:
        tensor = plans[0].pieces[0].tensor
        read[tensor] *= passes_of(work.choices[tensor])
    plans = [*layout.whole, *(plan for plans in layout.cut for plan in plans)]
    width = BITS[work.dtype] // 8
    held = max((SLOTS * _nbytes(plan) + OUTPUTS * width * plan.n for plan in plans), default=0)
    scores = _score_bytes(work)
    scores *= max((plan.n for plan in plans), default=0)
    return Cost(sum(read.values()), held + scores)


class Whole(NamedTuple):
    """What is known of whole models: the bits of each one's threshold, and the sign of most."""

    thresholds: np.ndarray
    undecided: float


def layout_of(work: Work, worker: Device, budget: int) -> Layout:
    """Chunks of whole tensors where they fit into the budget. Raises BudgetError."""
    zoo, n_models = work.zoo, len(work.zoo)
    tables = 3 * 8 * 2048 * 2 * n_models  # of a tensor, while digits are counted
    most = int(max(1, min(MOST, budget // 8 // tables)))
    scores = _score_bytes(work)
    room = budget - most * tables - derived_workspace(t.stored for t in zoo.tensors)
    out_bytes = BITS[work.dtype] // 8
    choice_of = {
        id(tensor): choice for tensor, choice in zip(zoo.tensors, work.choices, strict=True)
    }

    def fitting(dtypes: Sequence[str]) -> int:
        # scores are held once, beside the buffers
        return chunk_elements(room, room, dtypes, out_bytes + -(-scores // OUTPUTS), "merge")

    def target(dtypes: Sequence[str]) -> int:
        return worker.chunk_bytes // max(1, sum(BITS[dtype] for dtype in dtypes) // 8)

    def unit(tensor: ZooTensor) -> int:
        return unit_of(choice_of[id(tensor)], tensor.shape) or CUT

    return lay_out(zoo, work.rows, fitting, target, unit, most)


def _score_bytes(work: Work) -> int:
    """Held for each element beside the buffers, at most."""
    tensors = zip(work.choices, work.zoo.tensors, strict=True)
    pairs = {(choice, tensor.shape) for choice, tensor in tensors if tensor.numel}
    return max((_score_bytes_of(*pair, len(work.zoo)) for pair in pairs), default=0)


def _score_bytes_of(choice: Choice, shape: tuple[int, ...], n_models: int) -> int:
    if isinstance(choice.join, ColumnSums):
        return held_bytes(shape)
    if isinstance(choice.keep, Ranked):
        return 4 * n_models
    return 0 if isinstance(choice.keep, Largest | Drawn) else 4


def passes_of(choice: Choice, bits: int = 16) -> int:
    """Times that a tensor which does not fit into a chunk is read, the writing one included."""
    digits = 6 if bits == 64 else 3
    keep, join = choice.keep, choice.join
    if isinstance(join, Pull | FisherMean):
        return 1
    if isinstance(join, ColumnSums):
        return 2
    count = 1
    name = type(keep).__name__
    count += {"Largest": digits + 1, "Varied": digits + 2, "Important": digits}.get(name, 0)
    if join.rescale == "sums" or join.by_square is not None or join.alone:
        count += 1
    return count


class Run:
    """Writes one work's tensors; see :meth:`write`."""

    def __init__(
        self, work: Work, worker: Device, budget: int, allow_non_finite: bool = False
    ) -> None:
        if worker.name != "cpu":
            raise DeviceError(
                f"device {worker.name!r}: methods that choose elements run on the CPU; leave "
                "--device out"
            )
        self.work, self._worker = work, worker
        self._allow = allow_non_finite
        self._layout = layout_of(work, worker, budget)
        self.threads = processors()

    @property
    def nbytes(self) -> int:
        """Read in all."""
        return sum(map(_nbytes, self._layout.whole)) + sum(
            sum(map(_nbytes, plans)) * passes_of(self.work.choices[plans[0].pieces[0].tensor])
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
        plans = [*self._layout.whole, *(plan for plans in self._layout.cut for plan in plans)]
        return sum(map(_nbytes, plans))

    def views(self, progress: Count) -> Iterator[View]:
        """All elements once, of several tensors at a time."""
        plans = [*self._layout.whole, *(plan for plans in self._layout.cut for plan in plans)]
        for chunk in self._stream(plans, progress):
            yield view_of(chunk, range(len(chunk.plan.pieces)))

    def prepared(self, whole: Whole | None, progress: Count) -> Iterator[tuple[View, Tables]]:
        """All elements once, with the tables that say what becomes of them."""
        for _, prepared in self._prepared(whole, progress):
            yield from prepared

    def write(self, sink: FileSink, progress: Count, whole: Whole | None = None) -> None:
        """Compute and hand on every tensor; chunks are read ahead, and written behind."""
        plans = [*self._layout.whole, *(plan for plans in self._layout.cut for plan in plans)]
        width = BITS[self.work.dtype] // 8
        longest = max((plan.n * width for plan in plans), default=0)
        buffers = [self._worker.host_buffer(longest) for _ in range(min(OUTPUTS, len(plans)))]
        waiting: list[list[Future[None]]] = [[] for _ in range(OUTPUTS)]
        for k, (chunk, prepared) in enumerate(self._prepared(whole, progress)):
            finish(waiting[k % OUTPUTS])
            buffer = buffers[k % OUTPUTS][: chunk.plan.n * width]
            bad = sum(self._join(view, tables, buffer) for view, tables in prepared)
            if bad and not self._allow:
                raise NonFiniteError(self._describe(chunk))
            waiting[k % OUTPUTS] = sink(chunk, buffer, (0,), self.work.dtype)
        for futures in waiting:
            finish(futures)

    def _prepared(
        self, whole: Whole | None, progress: Count
    ) -> Iterator[tuple[Chunk, list[tuple[View, Tables]]]]:
        """Chunks with the tables of what they hold."""
        for chunk in self._stream(self._layout.whole, progress):
            prepared = []
            for view in self._views(chunk):
                tables = self._tables(view.tensors, whole)
                tables.prepare(lambda view=view: iter([view]), keep_scores=True)
                prepared.append((view, tables))
            yield chunk, prepared
        for plans in self._layout.cut:
            tables = self._tables((plans[0].pieces[0].tensor,), whole)

            def source(plans=plans) -> Iterator[View]:
                return (view_of(chunk, [0]) for chunk in self._stream(plans, progress))

            tables.prepare(source, keep_scores=False)
            for chunk in self._stream(plans, progress):
                yield chunk, [(view_of(chunk, [0]), tables)]

    def _stream(self, plans: Sequence[ChunkPlan], progress: Count) -> Iterator[Chunk]:
        if not plans:
            return
        work = self.work
        with Stream(work.zoo, work.rows, plans, self._worker) as stream:
            for chunk in stream:
                yield chunk
                progress(_nbytes(chunk.plan))

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
            yield view_of(part, range(len(pieces)))._replace(at=at)

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
            threads=self.threads, thresholds=whole and whole.thresholds,
            undecided=whole.undecided if whole else 1.0,
        )  # fmt: skip

    def _join(self, view: View, tables: Tables, buffer: np.ndarray) -> int:
        """Writes a view's elements to their place; returns how many are NaN or Inf."""
        name = KERNEL_NAMES[self.work.dtype]
        address = buffer.ctypes.data + view.at * BITS[self.work.dtype] // 8
        out = cpu.Pointers.of([address], [name])
        join = tables.choice.join
        if isinstance(join, Pull):
            reach = np.full(len(view.slots), join.reach)
            return cpu.pulled(view.rows, view.base, view.segments, reach, out, threads=self.threads)
        if isinstance(join, FisherMean):
            return self._mean(view, join, out)
        if isinstance(join, ColumnSums):
            return write_columns(view, tables.columns, out, threads=self.threads)
        assert tables.joint is not None
        return cpu.joined(
            view.rows, view.base, view.segments, view.firsts, tables.mask.of(view.slots),
            tables.joint.of(view.slots), out, unbiased=join.rescale == "chances",
            threads=self.threads, **tables.extra(view),
        )  # fmt: skip

    def _mean(self, view: View, join: FisherMean, out: cpu.Pointers) -> int:
        """Raises CheckpointError where a diagonal is none."""
        n, n_segments = len(join.weights), len(view.slots)
        addresses = np.concatenate([view.rows.addresses, view.base.addresses])
        codes = np.concatenate([view.rows.codes, view.base.codes])
        rows = cpu.Pointers(addresses[:n], codes[:n])
        diagonals = cpu.Pointers(addresses[n:], codes[n:])
        wrong = np.zeros((n_segments, n), np.int64)
        bad = cpu.precision_mean(
            rows, diagonals, view.segments, np.tile(np.array(join.weights), (n_segments, 1)),
            np.full(n_segments, join.floor), out, wrong, threads=self.threads,
        )  # fmt: skip
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


def _nbytes(plan: ChunkPlan) -> int:
    return plan.n * sum(BITS[dtype] for dtype in plan.dtypes) // 8
