"""The second pass: any number of mixes of a zoo, written as checkpoints, from one read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from wkernels import mixes
from wspace.devices import Device, device_named
from wspace.errors import MisalignedZooError, NonFiniteError, OutputError
from wspace.passes import describe_non_finite
from wspace.sizes import parse_bytes
from wspace.storage.headers import BITS, CODES, KERNEL_NAMES
from wspace.storage.reading import Reader, append_range
from wspace.storage.writing import CheckpointWriter, OutputTensor, check_output
from wspace.stream import (
    OUTPUTS,
    Chunk,
    ChunkPlan,
    Progress,
    Stream,
    chunk_elements,
    derived_workspace,
    plan_chunks,
    row_starts,
)
from wspace.version import VERSION
from wspace.weights import check_weights
from wspace.zoo import Zoo, ZooTensor

COPY_BLOCK = 4 << 20
"""Bytes of a copied tensor compared and written at a time."""


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


def needed(zoo: Zoo, weights: Any) -> Mixes:
    """Check mixing weights, and leave out the members that no mix uses."""
    table = check_weights(weights, len(zoo), has_base=zoo.base is not None)
    used = np.flatnonzero(table.any(axis=0))
    based = zoo.base is not None
    rows = (*used.tolist(), *([len(zoo)] if based else []))
    return Mixes(table[:, used], rows, based)


def merge(
    zoo: Zoo,
    weights: Any,
    out: str | Path | Sequence[str | Path],
    *,
    dtype: str | None = None,
    max_shard_size: int | str = "5GB",
    device: str = "auto",
    memory: int | str = "1GiB",
    allow_non_finite: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Write ``theta_j = base + sum_i weights[j, i] * (theta_i - base)`` to ``out[j]``, for all j.

    One read of the models that have a weight; one written checkpoint for each row of ``weights``
    ``[n_mixes, n]``. Without a base each row must sum to 1, and ``theta_j = sum_i weights[j, i] *
    theta_i``.

    Dtype rule: each tensor has the base's type (the first member's without a base), or ``dtype``
    (float64, float32, float16, bfloat16) if given; 8-bit types become bfloat16. Numerics: float32
    products and sums, one rounding (see ``wkernels.ops.weighted_sum``); the bits depend neither on
    ``memory`` nor on the shard layout. Integer tensors are copied, and refused where they differ;
    what the zoo leaves out is not written. Every output holds Hub-named shards of at most
    ``max_shard_size``, the donor's config and tokenizer files, and ``wspace.json``: inputs,
    weights, dtype, version, and what was copied or left out. It appears under its name when it is
    complete and flushed, and not before.

    ``memory`` bounds the buffers; ``progress(done, total)`` counts bytes read. Returns the paths.
    Raises WeightsError, OutputError, NonFiniteError (NaN or Inf in an input, unless allowed, or a
    result beyond the output type's range), MisalignedZooError, BudgetError.
    """
    outs = [Path(out)] if isinstance(out, str | Path) else [Path(path) for path in out]
    table = check_weights(weights, len(zoo), has_base=zoo.base is not None)
    chosen = needed(zoo, table)
    if len(outs) != len(table):
        raise OutputError(f"{len(outs)} outputs for {len(table)} rows of weights")
    if len({path.resolve() for path in outs}) < len(outs):
        raise OutputError("two outputs have the same path")
    for path in outs:
        if any(other.resolve() in path.resolve().parents for other in outs):
            raise OutputError(f"{path}: lies inside another output")
    max_shard_bytes, budget = parse_bytes(max_shard_size), parse_bytes(memory)
    worker = device_named(device)
    tensors = [OutputTensor(t.name, output_dtype(zoo, t, dtype), t.shape) for t in zoo.tensors]
    tensors += [OutputTensor(t.name, t.dtypes[0], t.shape) for t in zoo.copied]
    nbytes = sum(tensor.nbytes for tensor in tensors)
    for path in outs:
        check_output(path, zoo.checkpoints, nbytes * len(outs))
    plans = plan_mixes(zoo, chosen, worker, budget, dtype)
    records = [_record(zoo, row, dtype) for row in table]
    writers: list[CheckpointWriter] = []
    pool = ThreadPoolExecutor(4, thread_name_prefix="wspace-write")
    try:
        for path, record in zip(outs, records, strict=True):
            metadata = {"format": "pt", "wspace": json.dumps(record["made"])}
            writers.append(
                CheckpointWriter(
                    path, tensors, metadata=metadata, max_shard_bytes=max_shard_bytes, pool=pool
                )
            )
        copy_equal(zoo, writers)
        sink = FileSink([(tensor.name, 0) for tensor in zoo.tensors], writers)
        run_mixes(zoo, chosen, plans, worker, dtype, sink, progress, allow_non_finite)
        for writer, record in zip(writers, records, strict=True):
            writer.publish(zoo.donor, record, dtype)
    finally:
        pool.shutdown(cancel_futures=True)
        for writer in reversed(writers):
            writer.abandon()
    return outs


def output_dtype(zoo: Zoo, tensor: ZooTensor, dtype: str | None) -> str:
    """The type a mixed tensor is written in: see the rule in :func:`merge`."""
    if dtype is not None:
        if dtype not in ("float64", "float32", "float16", "bfloat16"):
            raise OutputError(f"dtype {dtype!r}: expected float64, float32, float16 or bfloat16")
        return CODES[dtype]
    return tensor.stored[len(zoo) if zoo.base else 0].written


def plan_mixes(zoo: Zoo, chosen: Mixes, worker: Device, budget: int, dtype: str | None):
    """Chunks for a pass with outputs."""
    width = BITS[CODES[dtype]] // 8 if dtype else max(
        BITS[output_dtype(zoo, tensor, None)] // 8 for tensor in zoo.tensors
    )  # fmt: skip

    room = budget - derived_workspace(tensor.stored for tensor in zoo.tensors)

    def size(dtypes: Sequence[str]) -> int:
        out_bytes = width * chosen.n_mixes
        return chunk_elements(room, worker.chunk_bytes, dtypes, out_bytes, "merge")

    return list(plan_chunks(zoo, chosen.rows, size, max_pieces=4096))


Sink = Callable[[Chunk, np.ndarray, tuple[int, ...], str], list[Future[None]]]
"""Takes a chunk's results: ``(chunk, buffer, starts of the mixes' rows, dtype)``."""


def run_mixes(
    zoo: Zoo,
    chosen: Mixes,
    plans: Sequence,
    worker: Device,
    dtype: str | None,
    sink: Sink,
    progress: Progress | None,
    allow_non_finite: bool,
) -> None:
    """The pass itself: each chunk, read ahead, computed into one of a few buffers, handed on."""
    n_mixes, based = chosen.n_mixes, chosen.based
    layouts = []
    for plan in plans:
        name = output_dtype(zoo, zoo.tensors[plan.pieces[0].tensor], dtype)
        layouts.append((name, *row_starts(plan.n, [name] * n_mixes)))
    longest = max((length for _, _, length in layouts), default=0)
    buffers = [worker.host_buffer(longest) for _ in range(min(OUTPUTS, len(plans)))]
    waiting: list[list[Future[None]]] = [[] for _ in range(OUTPUTS)]
    with Stream(zoo, chosen.rows, plans, worker, progress=progress) as stream:
        for k, chunk in enumerate(stream):
            name, starts, length = layouts[k]
            _finish(waiting[k % OUTPUTS])
            buffer = buffers[k % OUTPUTS][:length]
            bad = 0
            for part, at, weights in chosen.of(chunk):
                width = BITS[name] // 8
                out, skipped = buffer, at * width
                if n_mixes == 1:  # a GPU copies all of ``out`` back, whatever the run's length
                    out, skipped = buffer[skipped : skipped + part.plan.n * width], 0
                bad += worker.weighted_sum(
                    part, weights, mixes.copied_rows(weights, has_base=based), based=based,
                    out=out, out_starts=[start + skipped for start in starts],
                    out_names=[KERNEL_NAMES[name]] * n_mixes,
                )  # fmt: skip
            if bad and not allow_non_finite:
                raise NonFiniteError(
                    describe_non_finite(zoo, chunk, chosen.rows, worker)
                    or _describe_overflow(zoo, chunk, buffer, starts, name)
                )
            waiting[k % OUTPUTS] = sink(chunk, buffer, starts, name)
    for futures in waiting:
        _finish(futures)


def _finish(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()
    futures.clear()


def _describe_overflow(zoo: Zoo, chunk: Chunk, buffer, starts, name: str) -> str:
    names = ", ".join(repr(zoo.tensors[p.tensor].name) for p in chunk.plan.pieces[:3])
    return (
        f"the mix exceeds the range of {KERNEL_NAMES[name]} in tensor {names}"
        f"{' or one near it' if len(chunk.plan.pieces) > 1 else ''}; choose a wider --dtype or "
        "smaller weights"
    )


class FileSink:
    """Writes each mix's row to its checkpoint, neighbouring tensors in one piece.

    ``places``: for each of the zoo's tensors, the output tensor that it is part of, and the element
    of it at which it starts.
    """

    def __init__(
        self, places: Sequence[tuple[str, int]], writers: Sequence[CheckpointWriter]
    ) -> None:
        self._places, self._writers = places, writers

    def __call__(self, chunk: Chunk, buffer, starts, dtype: str) -> list[Future[None]]:
        width = BITS[dtype] // 8
        futures = []
        for writer, row_start in zip(self._writers, starts, strict=True):
            runs: list[list[int]] = []  # shard, position, start in the buffer, bytes
            for piece in chunk.plan.pieces:
                name, first = self._places[piece.tensor]
                shard, position = writer.place(name, (first + piece.start) * width)
                start, nbytes = row_start + piece.at * width, (piece.stop - piece.start) * width
                if runs and runs[-1][0] == shard and runs[-1][1] + runs[-1][3] == position:
                    runs[-1][3] += nbytes
                else:
                    runs.append([shard, position, start, nbytes])
            for shard, position, start, nbytes in runs:
                futures += writer.write(shard, position, buffer[start : start + nbytes])
        return futures


def copy_equal(zoo: Zoo, writers: Sequence[CheckpointWriter]) -> None:
    """Write the tensors that cannot be averaged; refuse those that differ between checkpoints."""
    if not zoo.copied:
        return
    reader = Reader(2)
    try:
        for tensor in zoo.copied:
            nbytes = tensor.stored[0].record.nbytes
            for start in range(0, nbytes, COPY_BLOCK):
                length = min(COPY_BLOCK, nbytes - start)
                first = None
                for checkpoint, stored in zip(zoo.checkpoints, tensor.stored, strict=True):
                    block = np.empty(length, np.uint8)
                    ranges: list = []
                    append_range(ranges, checkpoint.files[stored.file], stored, start, length, 0)
                    _finish(reader.submit(ranges, block))
                    if first is None:
                        first = block
                    elif not np.array_equal(first, block):
                        raise MisalignedZooError(
                            f"tensor {tensor.name!r} ({tensor.dtypes[0]}) differs between "
                            f"{zoo.checkpoints[0].path} and {checkpoint.path} and cannot be "
                            f"averaged; leave it out with --exclude '{tensor.name}'"
                        )
                assert first is not None
                for writer in writers:
                    _finish(writer.write(*writer.place(tensor.name, start), first))
    finally:
        reader.close()


def _record(zoo: Zoo, row: np.ndarray, dtype: str | None) -> dict[str, Any]:
    """What ``wspace.json`` says."""
    made = {
        "version": VERSION,
        "method": "linear",
        "models": [str(member) for member in zoo.members],
        "base": str(zoo.base) if zoo.base else None,
        "weights": row.tolist(),
        "dtype": dtype,
    }
    aliases = {alias: name for c in zoo.checkpoints for alias, name in c.aliases.items()}
    present = {tensor.name for tensor in (*zoo.tensors, *zoo.copied)}
    mixed_dtypes = sorted({t.dtypes for t in zoo.tensors if len(set(t.dtypes)) > 1})
    return {
        "made": made,
        "tensors": {
            "mixed": len(zoo.tensors),
            "copied": {tensor.name: "not floating point, equal in all" for tensor in zoo.copied},
            "left_out": zoo.left_out,
            "tied": {alias: name for alias, name in aliases.items() if alias not in present},
        },
        "mixed_dtypes": [list(dtypes) for dtypes in mixed_dtypes],
    }
