"""Counts of the digits of magnitudes, from which thresholds follow: see ``wkernels.selection``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

from wkernels.gpu import addresses
from wkernels.gpu.elements import NONE, base_pointer, decode, load, row_pointer
from wkernels.gpu.runs import Runs

LENGTH = 32768
"""Elements of a row in one program: adding its counts of digits is then a small part."""


@triton.jit
def bits_of(x):
    """The bits of a magnitude, without the sign."""
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return bits


@triton.jit
def difference(row, base, here, inside, CODE: tl.constexpr, BASE_CODE: tl.constexpr,
               COMPUTE: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    """Of a row and the base, if there is one; zero where not ``inside``."""
    x = decode(load(row + here, inside, MASKED), CODE, COMPUTE)
    if BASE_CODE != NONE:
        x = x - decode(load(base + here, inside, MASKED), BASE_CODE, COMPUTE)
    return x


@triton.jit
def _count(counts, row, base, here, length, prefix, shift, above, CODE: tl.constexpr,
           BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, WIDTH: tl.constexpr,
           MASKED: tl.constexpr):  # fmt: skip
    inside = here < length
    bits = bits_of(difference(row, base, here, inside, CODE, BASE_CODE, COMPUTE, MASKED))
    counted = (bits >> above) == prefix.to(bits.dtype)
    if MASKED:
        counted = counted & inside
    digit = ((bits >> shift) & ((1 << WIDTH) - 1)).to(tl.int32)
    return counts + tl.histogram(digit, 1 << WIDTH, mask=counted)


@triton.jit(do_not_specialize=["base", "n_rows", "n_runs", "shift"])
def count_digits(
    rows, base, runs, n_rows, n_runs, prefixes, counts, shift,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    WIDTH: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: a run of one row. Whole numbers are added up in any order."""
    run, i = tl.program_id(0) // n_rows, tl.program_id(0) % n_rows
    start = tl.load(runs + run)
    length = tl.load(runs + n_runs + run).to(tl.int32)
    entry = tl.load(runs + 2 * n_runs + run) * n_rows + i
    row = row_pointer(tl.load(rows + i), start, CODE, ALIGNED)
    origin = base_pointer(base, start, BASE_CODE, ALIGNED)
    prefix = tl.load(prefixes + entry)
    offsets = tl.arange(0, STEP)
    found = tl.zeros((1 << WIDTH,), tl.int32)
    full = length // STEP * STEP
    for step in range(0, full, STEP):
        found = _count(
            found, row, origin, step + offsets, length, prefix, shift, shift + WIDTH,
            CODE, BASE_CODE, COMPUTE, WIDTH, False,
        )  # fmt: skip
    for step in range(full, length, STEP):
        found = _count(
            found, row, origin, step + offsets, length, prefix, shift, shift + WIDTH,
            CODE, BASE_CODE, COMPUTE, WIDTH, True,
        )  # fmt: skip
    target = counts + entry * (1 << WIDTH) + tl.arange(0, 1 << WIDTH)
    tl.atomic_add(target, found.to(tl.int64), mask=found > 0)


def digit_counts(
    rows: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    segments: np.ndarray,
    prefix: np.ndarray,
    shift: int,
    width: int,
    counts: torch.Tensor,
) -> None:
    """Adds to ``counts[s, i, digit]``, int64 ``[S, N, 2**width]``, the elements with that digit.

    The digit is ``(bits >> shift) % 2**width`` of the magnitude of ``row - base``, in float32
    (float64 if a row or the base is); only elements whose bits above it are ``prefix[s, i]`` count.
    Counts are whole numbers, which atomic additions sum to the same in any order.
    Bytes: each row once, and the base once a row, from the cache but for the first.
    """
    runs = Runs.of(rows, base, segments, kernel="digits", length=LENGTH)
    if not runs.n:
        return
    with addresses.on_device_of(counts):
        count_digits[(runs.n * len(rows),)](
            *runs.arguments, runs.upload(np.asarray(prefix, np.int64).ravel()), counts, shift,
            WIDTH=width, **runs.fixed,
        )  # fmt: skip


@triton.jit
def _equal(row, base, here, length, wanted, CODE: tl.constexpr, BASE_CODE: tl.constexpr,
           COMPUTE: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    inside = here < length
    bits = bits_of(difference(row, base, here, inside, CODE, BASE_CODE, COMPUTE, MASKED))
    equal = bits == wanted.to(bits.dtype)
    if MASKED:
        equal = equal & inside
    return equal.to(tl.int32)


@triton.jit(do_not_specialize=["base", "n_rows", "n_runs"])
def count_equal(
    rows, base, runs, n_rows, n_runs, wanted, counts,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """One program: a run of one row, which is not read where no bits are wanted."""
    run, i = tl.program_id(0) // n_rows, tl.program_id(0) % n_rows
    start = tl.load(runs + run)
    bits = tl.load(wanted + tl.load(runs + 2 * n_runs + run) * n_rows + i)
    length = tl.where(bits < 0, 0, tl.load(runs + n_runs + run)).to(tl.int32)
    row = row_pointer(tl.load(rows + i), start, CODE, ALIGNED)
    origin = base_pointer(base, start, BASE_CODE, ALIGNED)
    offsets = tl.arange(0, STEP)
    found = tl.zeros((STEP,), tl.int32)
    full = length // STEP * STEP
    for step in range(0, full, STEP):
        found += _equal(row, origin, step + offsets, length, bits, CODE, BASE_CODE, COMPUTE, False)
    for step in range(full, length, STEP):
        found += _equal(row, origin, step + offsets, length, bits, CODE, BASE_CODE, COMPUTE, True)
    tl.store(counts + tl.program_id(0), tl.sum(found, axis=0))


@triton.jit(do_not_specialize=["base", "n_rows", "n_runs"])
def find_equal(
    rows, base, runs, n_rows, n_runs, asked, places,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """One program: a run in which the ``nth`` element with the bits is; ``asked`` int64 ``[n, 4]``:
    run, row, bits and ``nth``."""
    asked += 4 * tl.program_id(0)
    run, i = tl.load(asked), tl.load(asked + 1)
    bits, nth = tl.load(asked + 2), tl.load(asked + 3)
    start = tl.load(runs + run)
    length = tl.load(runs + n_runs + run).to(tl.int32)
    row = row_pointer(tl.load(rows + i), start, CODE, ALIGNED)
    origin = base_pointer(base, start, BASE_CODE, ALIGNED)
    offsets = tl.arange(0, STEP)
    before, place = tl.zeros((1,), tl.int32), tl.zeros((1,), tl.int32)
    for step in range(0, length, STEP):
        equal = _equal(row, origin, step + offsets, length, bits, CODE, BASE_CODE, COMPUTE, True)
        order = tl.cumsum(equal, axis=0) + before
        found = tl.where((equal != 0) & (order == nth), step + offsets + 1, 0)
        place = tl.maximum(place, tl.max(found, axis=0))
        before += tl.sum(equal, axis=0)
    tl.store(places + tl.program_id(0) + tl.arange(0, 1), place)


def nth_equal(
    rows: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    segments: np.ndarray,
    bits: np.ndarray,
    remaining: np.ndarray,
) -> np.ndarray:
    """Where the ``remaining[s, i]``-th element with ``bits[s, i]`` is, in each segment.

    Returns int64 ``[S, N]``: the place after it, counted from the segment's start; -1 where the
    segment has fewer, and then ``remaining`` is reduced by how many it has. Where ``remaining`` is
    0, the answer is -1. Bytes: rows of which a place is asked once, in their segments.
    """
    found = np.full(remaining.shape, -1, np.int64)
    runs = Runs.of(rows, base, segments, kernel="places", length=LENGTH)
    if not runs.n or not remaining.any():
        return found
    n_rows = len(rows)
    counts = rows[0].new_empty((runs.n, n_rows), dtype=torch.int32)
    wanted = np.where(remaining > 0, bits, -1)
    with addresses.on_device_of(counts):
        count_equal[(runs.n * n_rows,)](
            *runs.arguments, runs.upload(wanted.ravel()), counts, **runs.fixed
        )
    # how many there are before each run, and after the last
    total = np.zeros((runs.n + 1, n_rows), np.int64)
    np.cumsum(counts.cpu().numpy(), axis=0, out=total[1:])
    every = np.arange(len(segments))
    first = np.searchsorted(runs.owners, every)
    stop = np.searchsorted(runs.owners, every, side="right")
    asked = []
    for i in range(n_rows):
        goal = total[first, i] + remaining[:, i]
        run = np.searchsorted(total[:, i], goal) - 1
        here = (remaining[:, i] > 0) & (run < stop)
        for s in np.flatnonzero(here):
            asked.append((run[s], i, bits[s, i], goal[s] - total[run[s], i], s))
        fewer = (remaining[:, i] > 0) & ~here
        remaining[:, i] -= np.where(fewer, total[stop, i] - total[first, i], remaining[:, i])
    if asked:
        table = np.array(asked, np.int64)
        places = counts.new_empty(len(table))
        with addresses.on_device_of(counts):
            find_equal[(len(table),)](
                *runs.arguments, runs.upload(table[:, :4]), places, **runs.fixed
            )
        run, i, s = table[:, 0], table[:, 1], table[:, 4]
        found[s, i] = runs.starts[run] - segments[s, 0] + places.cpu().numpy()
    return found
