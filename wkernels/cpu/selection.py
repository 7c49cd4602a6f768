"""Exact order statistics of magnitudes without sorting: digits counted, highest first.

A magnitude's bits, without the sign, are an integer in the order of the magnitudes. Counting its
highest digit tells in which bin the k-th largest lies; counting the next digit of what is in that
bin narrows it down; after the last digit the value is exact.
"""

from __future__ import annotations

import numpy as np

from wkernels.cpu.blocks import blocks_of
from wkernels.cpu.elements import read
from wkernels.cpu.jit import kernel
from wkernels.cpu.masks import BITS, magnitudes, subtract
from wkernels.cpu.parallel import over_ranges
from wkernels.cpu.parts import inner
from wkernels.cpu.pointers import Pointers

COLUMNS = 2048

LANES = 4
"""Counts of each digit, added at the end: neighbours that are equal need not wait for each other"""


def compute_type(*parts: Pointers) -> type[np.floating]:
    return np.float64 if any(part.compute is np.float64 for part in parts) else np.float32


def digit_counts(
    rows: Pointers,
    base: Pointers,
    segments: np.ndarray,
    prefix: np.ndarray,
    shift: int,
    width: int,
    counts: np.ndarray,
    *,
    threads: int,
) -> None:
    """Adds to ``counts[s, i, digit]`` the elements of row ``i`` in segment ``s`` with that digit.

    The digit is ``(bits >> shift) % 2**width`` of the magnitude of ``row - base``; only elements
    with ``bits >> (shift + width) == prefix[s, i]`` count. ``counts``: int64 ``[S, N, 2**width]``.
    """
    compute = compute_type(rows, base)
    like, bits = np.empty(0, compute), np.empty(0, BITS[compute])
    blocks = blocks_of(segments)

    def work(start: int, stop: int) -> list[tuple[int, np.ndarray]]:
        edges = np.zeros((2, *counts.shape[1:]), np.int64)
        _count_digits(
            *rows, *base, blocks.ranges, blocks.segments, start, stop, prefix, shift, width, like,
            bits, counts, edges,
        )  # fmt: skip
        first, last = blocks.segments[start], blocks.segments[stop - 1]
        return [(first, edges[0]), (last, edges[1])]

    # a segment may be shared by two threads: what each adds to its first and last comes here
    for pairs in over_ranges(work, len(blocks.ranges), step=1, threads=threads, least=4):
        for segment, edge in pairs:
            counts[segment] += edge


@inner
def _digits(bits, prefix, shift, width, digits):
    """Each element's digit, or ``2**width`` for those that do not count."""
    upper = shift + width
    mask = (1 << width) - 1
    for k in range(bits.size):
        inside = (bits[k] >> upper) == prefix
        digit = (bits[k] >> shift) & mask
        digits[k] = np.uint16(digit if inside else mask + 1)


@inner
def _tally(digits, lanes):
    n = digits.size
    whole = n - n % 4
    a, b, c, d = lanes[0], lanes[1], lanes[2], lanes[3]
    for k in range(0, whole, 4):
        a[digits[k]] += np.uint32(1)
        b[digits[k + 1]] += np.uint32(1)
        c[digits[k + 2]] += np.uint32(1)
        d[digits[k + 3]] += np.uint32(1)
    for k in range(whole, n):
        a[digits[k]] += np.uint32(1)


@kernel
def _count_digits(
    addresses, codes, base_address, base_code, ranges, owners, first, last, prefix, shift, width,
    like, bits_like, counts, edges,
):  # fmt: skip
    n_rows = addresses.size
    n_bins = 1 << width
    values = np.empty(COLUMNS, like.dtype)
    base = np.zeros(COLUMNS, like.dtype)
    bits = np.empty(COLUMNS, bits_like.dtype)
    sizes = bits.view(like.dtype)
    digits = np.empty(COLUMNS, np.uint16)
    lanes = np.zeros((n_rows, LANES, n_bins + 1), np.uint32)
    for block in range(first, last):
        segment = owners[block]
        for start in range(ranges[block, 0], ranges[block, 1], COLUMNS):
            n = min(COLUMNS, ranges[block, 1] - start)
            if base_address.size == 1:
                read(base_code[0], base_address[0], start, base[:n], COLUMNS)
            for i in range(n_rows):
                read(codes[i], addresses[i], start, values[:n], COLUMNS)
                subtract(values[:n], base[:n])
                magnitudes(values[:n], sizes[:n])
                _digits(bits[:n], prefix[segment, i], shift, width, digits[:n])
                _tally(digits[:n], lanes[i])
        if block + 1 == last or owners[block + 1] != segment:
            at_edge = segment == owners[first] or segment == owners[last - 1]
            target = counts[segment]
            if at_edge:
                target = edges[0 if segment == owners[first] else 1]
            for i in range(n_rows):
                for b in range(n_bins):
                    total = np.int64(0)
                    for lane in range(LANES):
                        total += np.int64(lanes[i, lane, b])
                    target[i, b] += total
            lanes[:] = 0


def nth_equal(
    rows: Pointers,
    base: Pointers,
    segments: np.ndarray,
    values: np.ndarray,
    remaining: np.ndarray,
    *,
    threads: int,
) -> np.ndarray:
    """Where the ``remaining[s, i]``-th element with bits ``values[s, i]`` is, in each segment.

    Returns int64 ``[S, N]``: the place after it, counted from the segment's start; -1 where the
    segment has fewer, and then ``remaining`` is reduced by how many it has. Where ``remaining`` is
    0, the answer is -1.
    """
    compute = compute_type(rows, base)
    like, bits = np.empty(0, compute), np.empty(0, BITS[compute])
    blocks = blocks_of(segments)
    counts = np.zeros((len(blocks.ranges), len(rows)), np.int64)

    def work(start: int, stop: int) -> None:
        _count_equal(
            *rows, *base, blocks.ranges, blocks.segments, start, stop, values, remaining, like,
            bits, counts,
        )  # fmt: skip

    over_ranges(work, len(blocks.ranges), step=1, threads=threads, least=4)
    found = np.full(values.shape, -1, np.int64)
    _find_equal(
        *rows, *base, blocks.ranges, blocks.segments, segments, values, remaining, counts, like,
        bits, found,
    )  # fmt: skip
    return found


@inner
def _bits(code, address, start, base, values, sizes):
    read(code, address, start, values, COLUMNS)
    subtract(values, base)
    magnitudes(values, sizes)


@inner
def _n_equal(bits, value):
    count = np.int64(0)
    for k in range(bits.size):
        count += np.int64(bits[k] == value)
    return count


@kernel
def _count_equal(
    addresses, codes, base_address, base_code, ranges, owners, first, last, wanted, remaining,
    like, bits_like, counts,
):  # fmt: skip
    values = np.empty(COLUMNS, like.dtype)
    base = np.zeros(COLUMNS, like.dtype)
    bits = np.empty(COLUMNS, bits_like.dtype)
    value = np.empty(1, bits_like.dtype)
    sizes = bits.view(like.dtype)
    for block in range(first, last):
        for start in range(ranges[block, 0], ranges[block, 1], COLUMNS):
            n = min(COLUMNS, ranges[block, 1] - start)
            if base_address.size == 1:
                read(base_code[0], base_address[0], start, base[:n], COLUMNS)
            for i in range(addresses.size):
                if remaining[owners[block], i] <= 0:
                    continue
                value[0] = wanted[owners[block], i]
                _bits(codes[i], addresses[i], start, base[:n], values[:n], sizes[:n])
                counts[block, i] += _n_equal(bits[:n], value[0])


@kernel
def _find_equal(
    addresses, codes, base_address, base_code, ranges, owners, segments, wanted, remaining, counts,
    like, bits_like, found,
):  # fmt: skip
    values = np.empty(COLUMNS, like.dtype)
    base = np.zeros(COLUMNS, like.dtype)
    bits = np.empty(COLUMNS, bits_like.dtype)
    sizes = bits.view(like.dtype)
    for block in range(ranges.shape[0]):
        segment = owners[block]
        for i in range(addresses.size):
            left = remaining[segment, i]
            if left <= 0 or found[segment, i] >= 0:
                continue
            if counts[block, i] < left:
                remaining[segment, i] = left - counts[block, i]
                continue
            for start in range(ranges[block, 0], ranges[block, 1], COLUMNS):
                n = min(COLUMNS, ranges[block, 1] - start)
                if base_address.size == 1:
                    read(base_code[0], base_address[0], start, base[:n], 0)
                _bits(codes[i], addresses[i], start, base[:n], values[:n], sizes[:n])
                for k in range(n):
                    if bits[k] == wanted[segment, i]:
                        left -= 1
                        if left == 0:
                            found[segment, i] = start + k + 1 - segments[segment, 0]
            remaining[segment, i] = 0
