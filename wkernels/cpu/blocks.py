"""Segments cut into blocks of a fixed size, whose sums are added one after another.

A sum over a segment is ``((out + block 0) + block 1) + ...`` whatever the number of threads, and
whatever the chunks in which a stream brings the segment, as long as they start at block borders.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wkernels.cpu.jit import kernel

BLOCK = 16384
"""Elements in a block. Part of the numerics: another value gives other last bits."""


class Blocks(NamedTuple):
    """Element ranges and the segment that each belongs to, in order."""

    ranges: np.ndarray  # int64 [n_blocks, 2]: start, stop
    segments: np.ndarray  # int64 [n_blocks]


def blocks_of(segments: np.ndarray) -> Blocks:
    """``segments``: int64 ``[n_segments, 2]``, start and stop of each."""
    counts = -(-(segments[:, 1] - segments[:, 0]) // BLOCK)
    owner = np.repeat(np.arange(len(segments)), counts)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = segments[owner, 0] + place * BLOCK
    stops = np.minimum(starts + BLOCK, segments[owner, 1])
    return Blocks(np.stack([starts, stops], axis=1), owner)


@kernel
def add_in_order(partial, owner, out):
    """``out[owner[b]] += partial[b]`` for each block ``b``, first to last; each is ``[n, m]``."""
    for b in range(partial.shape[0]):
        target = out[owner[b]]
        for i in range(partial.shape[1]):
            for j in range(partial.shape[2]):
                target[i, j] += partial[b, i, j]
