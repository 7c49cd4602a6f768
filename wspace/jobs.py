"""The pass that writes: mixes of a zoo's rows, computed as chunks come by, and handed to sinks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count, groupby
from typing import NamedTuple

import numpy as np

from wkernels import mixes
from wspace.devices import Device
from wspace.errors import NonFiniteError, OutputError
from wspace.passes import describe_non_finite
from wspace.profiling import PASS, WRITES, stage
from wspace.sinks import FileSink, Results, Sink
from wspace.storage.headers import BITS, CODES, KERNEL_NAMES
from wspace.stream import (
    OUTPUTS,
    Chunk,
    ChunkPlan,
    Progress,
    Stream,
    chunk_elements,
    output_starts,
    plan_chunks,
    reading_workspace,
)
from wspace.visits import Visit, written_at_once
from wspace.zoo import Zoo, ZooTensor

MAX_PIECES = 4096
"""Of tensors, in a chunk."""


@dataclass(frozen=True)
class Mixes:
    """Rows of mixing weights, reduced to the checkpoints that they need."""

    weights: np.ndarray  # float64 [n_mixes, n_used]; [n_kinds, n_mixes, n_used] where they differ
    rows: tuple[int, ...]  # of zoo.checkpoints: the members used, then the base
    based: bool
    kinds: np.ndarray | None = None  # int [n_tensors]: which of the weights each tensor has

    @property
    def n_mixes(self) -> int:
        return self.weights.shape[-2]

    def of(self, chunk: Chunk) -> Iterator[tuple[Chunk, int, np.ndarray]]:
        """The chunk's runs of tensors with the same weights: ``(part, first element, weights)``."""
        if self.kinds is None:
            yield chunk, 0, self.weights
            return
        plan = chunk.plan
        kinds = self.kinds
        for kind, run in groupby(plan.pieces, key=lambda piece: kinds[piece.tensor]):
            pieces = tuple(run)
            at, last = pieces[0].at, pieces[-1]
            n = last.at + last.stop - last.start - at
            starts = tuple(
                start + at * BITS[dtype] // 8
                for start, dtype in zip(chunk.starts, plan.dtypes, strict=True)
            )
            part = Chunk(ChunkPlan(pieces, plan.dtypes, n), chunk.buffer, starts)
            yield part, at, self.weights[kind]


def output_dtype(zoo: Zoo, tensor: ZooTensor, dtype: str | None) -> str:
    """The type a mixed tensor is written in: see the rule in :func:`wspace.merge`."""
    if dtype is not None:
        if dtype not in ("float64", "float32", "float16", "bfloat16"):
            raise OutputError(f"dtype {dtype!r}: expected float64, float32, float16 or bfloat16")
        return CODES[dtype]
    return tensor.stored[len(zoo) if zoo.base else 0].written


def plan_mixes(
    zoo: Zoo, chosen: Mixes, worker: Device, budget: int, dtype: str | None
) -> list[ChunkPlan]:
    """Chunks for a pass with outputs."""
    return plan_jobs(zoo, [Job(chosen, dtype)], worker, budget)


def plan_jobs(zoo: Zoo, jobs: Sequence[Job], worker: Device, budget: int) -> list[ChunkPlan]:
    """Chunks for a pass that does all the jobs."""

    def width(job: Job) -> int:
        if job.dtype:
            return BITS[CODES[job.dtype]] // 8
        return max(BITS[output_dtype(zoo, tensor, None)] // 8 for tensor in zoo.tensors)

    out_bytes = sum(width(job) * job.mixes.n_mixes for job in jobs)
    room = budget - reading_workspace(zoo.checkpoints, (t.stored for t in zoo.tensors))

    def size(dtypes: Sequence[str]) -> int:
        return chunk_elements(room, worker.chunk_bytes, dtypes, out_bytes)

    return list(plan_chunks(zoo, rows_of(jobs), size, MAX_PIECES))


class Job(NamedTuple):
    """Mixes of some of a zoo's rows, and where they go."""

    mixes: Mixes
    dtype: str | None  # None: see output_dtype
    sink: Sink = FileSink(())


def rows_of(jobs: Sequence[Job]) -> tuple[int, ...]:
    """What the jobs read, of ``zoo.checkpoints``."""
    if len(jobs) == 1:
        return jobs[0].mixes.rows
    return tuple(sorted({row for job in jobs for row in job.mixes.rows}))


def run_mixes(
    zoo: Zoo,
    chosen: Mixes,
    plans: Sequence[ChunkPlan],
    worker: Device,
    dtype: str | None,
    sink: Sink,
    progress: Progress | None,
    allow_non_finite: bool,
) -> None:
    """The pass itself: each chunk, read ahead, computed into one of a few buffers, handed on."""
    visits = written_at_once(plans)
    run_jobs(zoo, [Job(chosen, dtype, sink)], visits, worker, progress, allow_non_finite)


@stage(PASS)
def run_jobs(
    zoo: Zoo,
    jobs: Sequence[Job],
    visits: Sequence[Visit],
    worker: Device,
    progress: Progress | None,
    allow_non_finite: bool,
    measure: Callable[[Chunk], None] = lambda chunk: None,
) -> None:
    """:func:`run_mixes` for several mixes of different rows, in one read of all of them.

    ``measure`` is called with the chunks that are to be measured, which have all of the rows. It
    may set the weights of mixes, until their chunks are written.
    """
    rows = rows_of(jobs)
    place = {row: k for k, row in enumerate(rows)}
    which = [[place[row] for row in job.mixes.rows] for job in jobs]
    layouts = []
    for visit in visits:
        tensor = zoo.tensors[visit.plan.pieces[0].tensor]
        names = [output_dtype(zoo, tensor, job.dtype) for job in jobs]
        each: list[str] = []
        positions: list[int] = []
        for name, job in zip(names, jobs, strict=True):
            each += [name] * job.mixes.n_mixes
            positions += job.sink.positions(visit.plan, name)
        layouts.append((names, *output_starts(visit.plan.n, each, positions)))
    longest = max((length for _, _, length in layouts), default=0)
    buffers = [worker.host_buffer(longest) for _ in range(min(OUTPUTS, len(visits)))]
    waiting: list[list[Future[None]]] = [[] for _ in range(OUTPUTS)]

    def write(chunk: Chunk, k: int) -> None:
        names, starts, length = layouts[k]
        turn = next(turns) % OUTPUTS
        finish(waiting[turn])
        buffer = buffers[turn][:length]
        first = 0
        for job, of_chunk, name in zip(jobs, which, names, strict=True):
            own = starts[first : first + job.mixes.n_mixes]
            first += job.mixes.n_mixes
            results = job.sink.results(chunk.plan, buffer, own, name)
            bad = _compute(job.mixes, chunk.of_rows(of_chunk), worker, buffer, own, name, results)
            if bad and not allow_non_finite:
                raise NonFiniteError(
                    describe_non_finite(zoo, chunk, rows, worker)
                    or _describe_overflow(zoo, chunk, name)
                )
            waiting[turn] += results.write()

    turns = count()
    until = list(range(len(visits)))
    for k, visit in enumerate(visits):
        for j in visit.written:
            until[j] = k
    kept: dict[int, Chunk] = {}
    plans = [visit.plan for visit in visits]
    with Stream(zoo, rows, plans, worker, until=until, progress=progress) as stream:
        for k, chunk in enumerate(stream):
            kept[k] = chunk
            if visits[k].measured:
                measure(chunk)
            for j in visits[k].written:
                write(kept.pop(j), j)
            if until[k] == k:
                kept.pop(k, None)
    for futures in waiting:
        finish(futures)


def _compute(
    chosen: Mixes, chunk: Chunk, worker: Device, buffer: np.ndarray, starts: tuple[int, ...],
    name: str, results: Results,
) -> int:  # fmt: skip
    """Mixes of a chunk into rows of the buffer; returns how many results are NaN or Inf."""
    bad, width = 0, BITS[name] // 8
    for part, at, weights in chosen.of(chunk):
        bad += worker.weighted_sum(
            part, weights, mixes.copied_rows(weights, has_base=chosen.based), based=chosen.based,
            out=buffer, out_starts=[start + at * width for start in starts],
            out_names=[KERNEL_NAMES[name]] * chosen.n_mixes,
            digests=results.digests(at, part.plan.n),
        )  # fmt: skip
    return bad


def finish(futures: list[Future[None]]) -> None:
    """Wait for all of them; raises what one raised."""
    with stage(WRITES):
        for future in futures:
            future.result()
    futures.clear()


def _describe_overflow(zoo: Zoo, chunk: Chunk, name: str) -> str:
    names = ", ".join(repr(zoo.tensors[p.tensor].name) for p in chunk.plan.pieces[:3])
    return (
        f"the mix exceeds the range of {KERNEL_NAMES[name]} in tensor {names}"
        f"{' or one near it' if len(chunk.plan.pieces) > 1 else ''}; choose a wider --dtype or "
        "smaller weights"
    )


def unfinished(
    zoo: Zoo, plans: Sequence[ChunkPlan], sinks: Sequence[tuple[FileSink, str | None]]
) -> list[ChunkPlan]:
    """The chunks of which a sink lacks something; each with its job's dtype."""
    first = [zoo.tensors[plan.pieces[0].tensor] for plan in plans]
    return [
        plan
        for plan, tensor in zip(plans, first, strict=True)
        if not all(sink.has(plan, output_dtype(zoo, tensor, dtype)) for sink, dtype in sinks)
    ]
