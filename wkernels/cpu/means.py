"""Means whose weights differ from element to element."""

from __future__ import annotations

import numpy as np

from wkernels.cpu.blocks import blocks_of
from wkernels.cpu.elements import read, write
from wkernels.cpu.jit import kernel
from wkernels.cpu.parallel import over_ranges
from wkernels.cpu.parts import inner
from wkernels.cpu.pointers import Pointers

COLUMNS = 1024


def precision_mean(
    rows: Pointers,
    precisions: Pointers,
    segments: np.ndarray,
    weights: np.ndarray,
    floors: np.ndarray,
    out: Pointers,
    wrong: np.ndarray,
    *,
    threads: int,
) -> int:
    """``out = sum_i w_i f_i x_i / sum_i w_i f_i``, ``f_i`` the precision or the floor, if larger.

    Where the divisor is 0, ``sum_i w_i x_i / sum_i w_i``. ``weights``: float64 ``[S, n]``, none
    negative, not all 0; ``floors``: float64 ``[S]``. Adds to ``wrong`` (int64 ``[S, n]``) how many
    precisions are negative, NaN or Inf. Returns how many outputs are NaN or Inf.

    Numerics: float64, rows in order, and one rounding, at the store.
    """
    blocks = blocks_of(segments)
    found = np.zeros((len(blocks.ranges), len(rows)), np.int64)
    plain = weights / weights.sum(axis=1, keepdims=True)

    def work(start: int, stop: int) -> int:
        return _precision_mean(
            *rows, *precisions, blocks.ranges, blocks.segments, start, stop, plain, floors, *out,
            found,
        )  # fmt: skip

    bad = sum(over_ranges(work, len(blocks.ranges), step=1, threads=threads, least=4))
    np.add.at(wrong, blocks.segments, found)
    return bad


@inner
def _add(values, precision, weight, floor, top, bottom, plain):
    wrong = 0
    for k in range(values.size):
        wrong += not 0 <= precision[k] < np.inf
        share = weight * max(precision[k], floor)
        top[k] += share * values[k]
        bottom[k] += share
        plain[k] += weight * values[k]
    return wrong


@kernel
def _precision_mean(
    address, code, precision_address, precision_code, ranges, owners, first, last, weights, floors,
    out_address, out_code, found,
):  # fmt: skip
    values = np.empty(COLUMNS, np.float64)
    precision = np.empty(COLUMNS, np.float64)
    top = np.empty(COLUMNS, np.float64)
    bottom = np.empty(COLUMNS, np.float64)
    plain = np.empty(COLUMNS, np.float64)
    bad = np.int64(0)
    for block in range(first, last):
        owner = owners[block]
        for start in range(ranges[block, 0], ranges[block, 1], COLUMNS):
            n = min(COLUMNS, ranges[block, 1] - start)
            top[:n] = 0
            bottom[:n] = 0
            plain[:n] = 0
            for i in range(address.size):
                read(code[i], address[i], start, values[:n], COLUMNS)
                read(precision_code[i], precision_address[i], start, precision[:n], COLUMNS)
                found[block, i] += _add(
                    values[:n], precision[:n], weights[owner, i], floors[owner], top[:n],
                    bottom[:n], plain[:n],
                )  # fmt: skip
            for k in range(n):
                values[k] = top[k] / bottom[k] if bottom[k] > 0 else plain[k]
            bad += write(out_code[0], out_address[0], start, values[:n], False)
    return bad
