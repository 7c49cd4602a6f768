"""Blocks of a fixed size, counted from a segment's start, and the ordered sum of their results.

Each block's partial result is computed on its own, and partial results are added to what is already
there one after another, in order, without atomics. So the bits depend neither on how many blocks
run at once, nor on where a stream was cut, if it was cut at multiples of ``BLOCK``.
"""

# Triton compiles neither starred tuples nor, in every version, a choice between loads
# ruff: noqa: RUF005

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl

from wkernels.gpu import addresses, configs

BLOCK = 16384
"""Elements of each row in a block; part of the result's meaning, so not a launch configuration."""
WORKSPACE_BYTES = 64 * 2**20
"""Partial results of one launch, of which there are two; one block's, if they are more."""
GROUP_BLOCKS = 4096
"""Blocks in one launch: enough to fill a GPU, and few enough that adding them is mostly hidden."""


@dataclass(frozen=True)
class Group:
    """Blocks that run in one launch."""

    starts: np.ndarray  # int64 [n_blocks], the first element of each
    lengths: np.ndarray  # int64 [n_blocks], at most BLOCK
    spans: np.ndarray  # int64 [n_spans, 3]: segment, its first block here, and one past its last


def cut(
    segments: np.ndarray, length: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks of all segments, in order: the first element, the length and the segment of each.

    ``length``: of all blocks, or ``[S]``, of each segment's.
    """
    n_blocks = -(-(segments[:, 1] - segments[:, 0]) // length)
    owners = np.repeat(np.arange(len(segments)), n_blocks)
    place = np.arange(len(owners)) - np.repeat(np.cumsum(n_blocks) - n_blocks, n_blocks)
    lengths = np.broadcast_to(length, len(segments))[owners]
    starts = segments[owners, 0] + place * lengths
    return starts, np.minimum(segments[owners, 1] - starts, lengths), owners


def groups(segments: np.ndarray, bytes_a_block: int) -> Iterator[Group]:
    """The blocks of all segments, as many at a time as one launch takes."""
    starts, lengths, owners = cut(segments, BLOCK)
    at_once = min(max(1, WORKSPACE_BYTES // bytes_a_block), GROUP_BLOCKS)
    for first in range(0, len(starts), at_once):
        here = slice(first, first + at_once)
        touched, begin, count = np.unique(owners[here], return_index=True, return_counts=True)
        spans = np.stack([touched, begin, begin + count], axis=1)
        yield Group(starts[here], lengths[here], spans.astype(np.int64))


@dataclass(frozen=True)
class Launch:
    """A group as its two kernels need it, on the device."""

    n_blocks: int
    starts: torch.Tensor
    lengths: torch.Tensor
    n_spans: int
    spans: torch.Tensor
    added_at_once: int
    partials: torch.Tensor


def run(
    segments: np.ndarray,
    values_a_block: int,
    out: torch.Tensor,
    compute: Callable[[Launch], None],
    add: Callable[[Launch], None],
) -> None:
    """``compute`` writes each group's partial results, ``add`` adds them to ``out`` in order.

    On a GPU one group's are added, by a few threads that wait for each other, while the next
    group's are computed: on a second stream, which the current one waits for at the end.
    """
    waiting = list(groups(segments, values_a_block * 8))
    if not waiting:
        return
    with addresses.on_device_of(out):
        main = torch.cuda.current_stream() if out.is_cuda else None
        side = torch.cuda.Stream() if main is not None and len(waiting) > 1 else None
        size = max(len(group.starts) for group in waiting) * values_a_block
        workspaces = [out.new_empty(size) for _ in waiting[:2]]
        launches, added = [], []
        for turn, group in enumerate(waiting):
            table = np.concatenate([group.starts, group.lengths, group.spans.ravel()])
            n_blocks, on_device = len(group.starts), addresses.to_device(table, out.device)
            launch = Launch(
                n_blocks, on_device, on_device[n_blocks:],
                len(group.spans), on_device[2 * n_blocks :],
                configs.added_at_once(int((group.spans[:, 2] - group.spans[:, 1]).max())),
                workspaces[turn % 2],
            )  # fmt: skip
            launches.append(launch)  # the second stream reads the tables until the end
            if side is None or main is None:
                compute(launch)
                add(launch)
                continue
            if turn >= 2:
                main.wait_event(added[turn - 2])
            compute(launch)
            side.wait_stream(main)
            with torch.cuda.stream(side):
                add(launch)
            added.append(side.record_event())
        if side is not None and main is not None:
            main.wait_stream(side)


def alignment(rows: Sequence[torch.Tensor], segments: np.ndarray) -> int:
    """Bytes that every row starts each segment, and so each block, at a multiple of."""
    itemsize = min(row.element_size() for row in rows)
    starts = np.append(addresses.addresses_of(rows), segments[:, 0] * itemsize)
    return addresses.alignment(starts)


@triton.jit
def add_in_order(total, partials, stride, first, last, wanted, largest, AT_ONCE: tl.constexpr):
    """``((total + p[first]) + p[first + 1]) ...``; where ``largest``, the maximum instead of sums.

    ``partials`` are pointers to block 0's values, and block ``b``'s lie ``b * stride`` further on.
    ``AT_ONCE`` of them are loaded before the first is added: only the additions wait. Past the last
    they are zeros, which change neither a sum nor the largest absolute value.
    """
    stop = tl.where(wanted, last, first)  # values that are not wanted have no blocks
    for block in range(first, last, AT_ONCE):
        loaded = ()
        for k in tl.static_range(AT_ONCE):
            pointers = partials + (block + k) * stride
            loaded = loaded + (tl.load(pointers, mask=block + k < stop, other=0.0),)
        for k in tl.static_range(AT_ONCE):
            total = tl.where(largest, tl.maximum(total, loaded[k]), total + loaded[k])
    return total
