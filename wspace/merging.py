"""The second pass: any number of mixes of a zoo, written as checkpoints, from one read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wspace.budgets import enough, recorded
from wspace.devices import device_named
from wspace.dividing import Columns, own_columns, within
from wspace.errors import MisalignedZooError, OutputError, WspaceError
from wspace.jobs import Mixes, finish, output_dtype, plan_mixes, run_mixes, unfinished
from wspace.placement import choose, mixes_job
from wspace.shares import Share
from wspace.sinks import FileSink
from wspace.sizes import parse_bytes
from wspace.storage.checksums import checksum
from wspace.storage.fingerprints import fingerprint
from wspace.storage.headers import BITS
from wspace.storage.naming import public_name
from wspace.storage.opening import real_path
from wspace.storage.outputs import OutputTensor, check_output, check_space
from wspace.storage.partial import is_published
from wspace.storage.reading import Reader, append_range
from wspace.storage.writers import all_finished, checkpoint_writers
from wspace.storage.writing import CheckpointWriter, NewCheckpoint, Note
from wspace.stream import Progress
from wspace.team import ADAPTERS_ALONE, ALONE, Team
from wspace.version import VERSION
from wspace.weights import check_weights
from wspace.zoo import Zoo

COPY_BLOCK = 4 << 20
"""Bytes of a copied tensor compared and written at a time."""


def needed(zoo: Zoo, weights: Any) -> Mixes:
    """Check mixing weights, and leave out the members that no mix uses."""
    if zoo.adapters:
        raise MisalignedZooError(
            "adapters alone have no weights to put anywhere; open the zoo with the base that they "
            "belong to"
        )
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
    restart: bool = False,
    progress: Progress | None = None,
    note: Note | None = None,
    team: Team = ALONE,
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
    weights, dtype, version, what was copied or left out, and checksums (:func:`wspace.verify`). It
    appears under its name when it is complete and flushed, and not before.

    A merge that was cut short goes on when it is called again: what it finished is checked and
    kept. If anything changed that the bytes follow from, OutputError says what; ``restart`` starts
    over. ``note`` is called with a line that says how much was kept.

    Of LoRA adapters alone, the mix of what they add is written, as one adapter of the summed rank.

    A ``team`` of processes divides the parameters by bytes (see ``wspace.ranks``): each writes its
    own byte ranges of the outputs, with a journal of its own, and one of them publishes. Of shares
    that know nothing of each other, what is not finished yet is not there on return.

    ``memory`` bounds the buffers; ``progress(done, total)`` counts bytes read. Returns the paths.
    Raises WeightsError, OutputError, NonFiniteError (NaN or Inf in an input, unless allowed, or a
    result beyond the output type's range), MisalignedZooError, BudgetError, and CheckpointError for
    an input that cannot be read or changed meanwhile.
    """
    outs = [Path(out)] if isinstance(out, str | Path) else [Path(path) for path in out]
    table = check_weights(weights, len(zoo), has_base=zoo.has_origin)
    if len(outs) != len(table):
        raise OutputError(f"{len(outs)} outputs for {len(table)} rows of weights")
    if len({real_path(path) for path in outs}) < len(outs):
        raise OutputError("two outputs have the same path")
    for path in outs:
        if any(real_path(other) in real_path(path).parents for other in outs):
            raise OutputError(f"{path}: lies inside another output")
    max_shard_bytes, budget = parse_bytes(max_shard_size), parse_bytes(memory)
    records = [_record(zoo, row, dtype) for row in table]
    jobs = [
        fingerprint(
            record["made"], zoo.checkpoints, tensors=_names(zoo), max_shard_bytes=max_shard_bytes
        )
        for record in records
    ]
    there = [is_published(out, job) for out, job in zip(outs, jobs, strict=True)]
    if all(there) and not team.meets:
        return outs  # by the other shares and an earlier run of this one
    if any(there) and not all(there):  # the last run was cut short between two of them
        left = [j for j, published in enumerate(there) if not published]
        table, records, jobs = table[left], [records[j] for j in left], [jobs[j] for j in left]
    else:
        left = list(range(len(outs)))
    asked, outs = outs, [outs[j] for j in left]
    if zoo.adapters:
        if team.share.n > 1:
            raise WspaceError(ADAPTERS_ALONE)
        from wspace.lora import merge_adapters  # torch: not for every merge

        merge_adapters(
            zoo, table, outs, records, jobs, dtype, allow_non_finite=allow_non_finite,
            restart=restart, note=note,
        )  # fmt: skip
        return asked
    chosen = needed(zoo, table)
    worker = device_named(choose(device, mixes_job(zoo, len(chosen.rows), chosen.n_mixes)).name)
    tensors = [OutputTensor(t.name, output_dtype(zoo, t, dtype), t.shape) for t in zoo.tensors]
    tensors += [OutputTensor(t.name, t.dtypes[0], t.shape) for t in zoo.copied]
    nbytes = sum(tensor.nbytes for tensor in tensors)
    for path in outs:
        check_output(path, zoo.checkpoints)
    if team.share.index == 0:
        check_space(outs, nbytes * len(outs))
    plans = enough(
        lambda budget: plan_mixes(zoo, chosen, worker, budget, dtype), budget, "merge",
        recorded(zoo.checkpoints, [tensor.nbytes for tensor in tensors] * len(outs)),
    )  # fmt: skip
    columns = own_columns(zoo, chosen.rows, team.share)
    own = None if team.share.n == 1 else _bytes_of(columns, zoo, tensors, team.share)
    outputs = [
        NewCheckpoint(path, tensors, job, max_shard_bytes, own=own)
        for path, job in zip(outs, jobs, strict=True)
    ]
    with checkpoint_writers(outputs, restart=restart, note=note, team=team) as writers:
        if team.share.index == 0:
            copy_equal(zoo, writers)
        places = [(tensor.name, 0) for tensor in zoo.tensors]
        sink = FileSink([(places, writer) for writer in writers])
        plans = unfinished(zoo, within(plans, columns), [(sink, dtype)])
        run_mixes(zoo, chosen, plans, worker, dtype, sink, progress, allow_non_finite)
        if all_finished(writers, team):
            for writer, record in zip(writers, records, strict=True):
                writer.publish(zoo.donor, record, dtype)
        team.wait()
    return asked


def _bytes_of(
    columns: Columns, zoo: Zoo, tensors: Sequence[OutputTensor], share: Share
) -> dict[str, tuple[int, int]]:
    """What of each output tensor a share makes; the first one copies what cannot be mixed."""
    own = {}
    for k, tensor in enumerate(zoo.tensors):
        start, stop = columns.of(k, 0, tensor.numel)
        width = BITS[tensors[k].dtype] // 8
        own[tensor.name] = (start * width, stop * width)
    if share.index == 0:
        own |= {tensor.name: (0, tensor.nbytes) for tensor in tensors[len(zoo.tensors) :]}
    return own


def copy_equal(zoo: Zoo, writers: Sequence[CheckpointWriter]) -> None:
    """Write the tensors that cannot be averaged; refuse those that differ between checkpoints."""
    if not zoo.copied:
        return
    reader = Reader(2)
    try:
        for tensor in zoo.copied:
            if all(writer.has(tensor.name) for writer in writers):
                continue
            nbytes = tensor.stored[0].record.nbytes
            for start in range(0, nbytes, COPY_BLOCK):
                length = min(COPY_BLOCK, nbytes - start)
                first = None
                for checkpoint, stored in zip(zoo.checkpoints, tensor.stored, strict=True):
                    block = np.empty(length, np.uint8)
                    ranges: list = []
                    append_range(ranges, checkpoint.files[stored.file], stored, start, length, 0)
                    finish(reader.submit(ranges, block))
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
                    finish(writer.write(*writer.place(tensor.name, start), first))
    finally:
        reader.close()


def _names(zoo: Zoo) -> str:
    """Which tensors an output has, for its fingerprint."""
    return checksum("\n".join(t.name for t in (*zoo.tensors, *zoo.copied)).encode())


def _record(zoo: Zoo, row: np.ndarray, dtype: str | None) -> dict[str, Any]:
    """What ``wspace.json`` says."""
    made = {
        "version": VERSION,
        "method": "linear",
        "models": [public_name(str(member)) for member in zoo.members],
        "base": public_name(str(zoo.base)) if zoo.base else None,
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
