"""Finding the input with NaN or Inf, once a pass has met one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wspace.devices import Device
from wspace.stream import Chunk
from wspace.zoo import Zoo


def describe_non_finite(
    zoo: Zoo, chunk: Chunk, rows: Sequence[int], worker: Device
) -> str | None:
    """Which input has NaN or Inf in this chunk, in words; None if none has.

    ``rows``: of ``zoo.checkpoints``, those that the chunk holds.
    """
    pieces = chunk.plan.pieces
    segments = np.array([(p.at, p.at + p.stop - p.start) for p in pieces], dtype=np.int64)
    counts = worker.non_finite(chunk, segments)
    found = np.argwhere(counts)
    if not len(found):
        return None
    piece, row = found[0]
    tensor = zoo.tensors[pieces[piece].tensor]
    checkpoint = zoo.checkpoints[rows[row]]
    file = checkpoint.files[tensor.stored[rows[row]].file]
    return (
        f"{file}: tensor {tensor.name!r} has {counts[piece, row]} NaN or Inf; allow them with "
        f"--allow-non-finite, or leave it out with --exclude '{tensor.name}'"
    )
