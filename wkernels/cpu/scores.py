"""What elements are ranked by, where it is not their own magnitude; and blends of two rows."""

from __future__ import annotations

import numpy as np

from wkernels.cpu.blocks import blocks_of
from wkernels.cpu.divergences import LANES, TURN, exponentials, far_divergence, near_divergence
from wkernels.cpu.elements import read, write
from wkernels.cpu.jit import kernel
from wkernels.cpu.masks import subtract
from wkernels.cpu.parallel import over_ranges
from wkernels.cpu.parts import inner
from wkernels.cpu.pointers import Pointers
from wkernels.cpu.selection import compute_type

COLUMNS = 1024


def variances(rows: Pointers, base: Pointers, n: int, out: np.ndarray, *, threads: int) -> None:
    """``out[k]`` (float32): the population variance over the rows of their differences."""
    like = np.empty(0, compute_type(rows, base))

    def work(start: int, stop: int) -> None:
        _variances(*rows, *base, start, stop, like, out)

    over_ranges(work, n, step=COLUMNS, threads=threads, least=1 << 16)


@inner
def _add_difference(values, base, mean):
    for k in range(values.size):
        mean[k] += np.float64(values[k] - base[k])


@inner
def _add_square(values, base, mean, square):
    for k in range(values.size):
        off = np.float64(values[k] - base[k]) - mean[k]
        square[k] += off * off


@kernel
def _variances(addresses, codes, base_address, base_code, start, stop, like, out):
    n_rows = addresses.size
    values = np.empty(COLUMNS, like.dtype)
    base = np.zeros(COLUMNS, like.dtype)
    mean = np.empty(COLUMNS)
    square = np.empty(COLUMNS)
    for first in range(start, stop, COLUMNS):
        n = min(COLUMNS, stop - first)
        if base_address.size == 1:
            read(base_code[0], base_address[0], first, base[:n], COLUMNS)
        mean[:n] = 0
        square[:n] = 0
        for i in range(n_rows):
            read(codes[i], addresses[i], first, values[:n], COLUMNS)
            _add_difference(values[:n], base[:n], mean[:n])
        mean[:n] /= n_rows
        for i in range(n_rows):
            read(codes[i], addresses[i], first, values[:n], 0)
            _add_square(values[:n], base[:n], mean[:n], square[:n])
        for k in range(n):
            out[first + k] = np.float32(square[k] / n_rows)


def importances(
    row: Pointers, base: Pointers, length: int, n: int, out: np.ndarray, *, threads: int
) -> None:
    """``out[k]`` (float32): ``|row - base|`` times how far its line's softmax is from the base's.

    Lines have ``length`` elements. ``p`` and ``q``: the softmax of the row's and of the base's
    line, each plus 1e-8; the factor is ``sum p ln(p / q)`` over the line, within a millionth of
    itself (see ``divergences``), and a float64.
    """
    like = np.empty(0, compute_type(row, base))

    def work(start: int, stop: int) -> None:
        _importances(*row, *base, length, start, stop, like, out)

    least = max(1, (1 << 14) // max(length, 1))
    over_ranges(work, n // length if length else 0, step=1, threads=threads, least=least)


@inner
def _importance(differences, divergence, out):
    for k in range(differences.size):
        out[k] = np.float32(abs(np.float64(differences[k])) * divergence)


@kernel
def _importances(address, code, base_address, base_code, length, first, last, like, out):
    values = np.empty(length, like.dtype)
    base = np.empty(length, like.dtype)
    room = -(-length // TURN) * TURN
    p, q = np.empty(room), np.empty(room)
    weights, growths = p.view(np.float32)[:room], q.view(np.float32)[:room]
    sums = np.zeros(LANES)
    for line in range(first, last):
        start = line * length
        read(code[0], address[0], start, values, 0)
        read(base_code[0], base_address[0], start, base, 0)
        if exponentials(values, base, weights[:length], growths[:length]):
            weights[length:] = 0
            growths[length:] = 0
            divergence = near_divergence(weights, growths, sums)
        else:
            read(code[0], address[0], start, values, 0)
            divergence = far_divergence(values, base, p[:length], q[:length])
            subtract(values, base)
        _importance(values, divergence, out[start : start + length])


def pulled(
    row: Pointers, base: Pointers, segments: np.ndarray, reach: np.ndarray, out: Pointers, *,
    threads: int,
) -> int:  # fmt: skip
    """``out = base + clip(t / max(|d|, 1e-6), 0, 1) * d`` with ``d = row - base``, ``t`` of each
    segment in ``reach`` (float64 ``[S]``). Returns how many outputs are NaN or Inf."""
    like = np.empty(0, compute_type(row, base))
    blocks = blocks_of(segments)
    tables = np.ascontiguousarray(reach, like.dtype)

    def work(start: int, stop: int) -> int:
        return _pulled(*row, *base, blocks.ranges, blocks.segments, start, stop, tables, *out, like)

    return sum(over_ranges(work, len(blocks.ranges), step=1, threads=threads, least=4))


@inner
def _pull(values, base, reach):
    kind = values.dtype.type
    zero, one, least = kind(0), kind(1), kind(1e-6)
    for k in range(values.size):
        d = values[k] - base[k]
        share = reach / max(abs(d), least)
        share = min(max(share, zero), one)
        # all of the difference is the row itself, bit for bit
        values[k] = values[k] if share == one else base[k] + share * d


@kernel
def _pulled(
    address, code, base_address, base_code, ranges, owners, first, last, reach, out_address,
    out_code, like,
):  # fmt: skip
    values = np.empty(COLUMNS, like.dtype)
    base = np.empty(COLUMNS, like.dtype)
    bad = np.int64(0)
    for block in range(first, last):
        for start in range(ranges[block, 0], ranges[block, 1], COLUMNS):
            n = min(COLUMNS, ranges[block, 1] - start)
            read(code[0], address[0], start, values[:n], COLUMNS)
            read(base_code[0], base_address[0], start, base[:n], COLUMNS)
            _pull(values[:n], base[:n], reach[owners[block]])
            bad += write(out_code[0], out_address[0], start, values[:n], False)
    return bad
