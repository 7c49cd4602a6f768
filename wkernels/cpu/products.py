"""Gram matrices and direct distances on the CPU, in float64, from one read of the rows."""

from __future__ import annotations

import numpy as np

from wkernels.cpu.alike import stand_in
from wkernels.cpu.blocks import Blocks, add_in_order, blocks_of
from wkernels.cpu.elements import BFLOAT16, FLOAT16, FLOAT32, WIDTHS, read, read_widened
from wkernels.cpu.jit import START, STOP, kernel
from wkernels.cpu.parallel import over_ranges
from wkernels.cpu.parts import inner
from wkernels.cpu.pointers import Pointers
from wkernels.cpu.tiles import (
    LANES,
    SIDE,
    WIDENS,
    dot_alike,
    tile_dot,
    tile_dot_upper,
    tile_l1,
    tile_l2,
)
from wkernels.cpu.vectors import TURN

GROUP = 64
"""Rows whose centred values are held in cache together, on each side of a product."""

COLUMNS = 512
"""Columns of a group at a time: ``64 * 512`` doubles are 256 KiB; those of both sides and the sums
lie within second-level cache. Half as many where rows are widened four in a call: those of 16 rows
lie within first-level cache."""

STRIDE = COLUMNS + LANES
"""Doubles from one row to the next: rows a page apart would fall on the same lines of the cache."""

FEW = SIDE
"""Rows whose products are summed in registers, straight from how they are stored."""

AHEAD = 512
"""Elements ahead of their use at which these are fetched."""

WORKSPACE = 32 << 20
"""Bytes for the sums of blocks that wait to be added (at least one block's, however large)."""

_OPS = {"dot": 0, "l2": 1, "l1": 2}


def products(
    op: str,
    rows: Pointers,
    columns: Pointers | None,
    base: Pointers,
    segments: np.ndarray,
    out: np.ndarray,
    *,
    threads: int,
) -> None:
    """Adds to ``out[s, i, j]`` what ``op`` gives for row ``i`` and column ``j`` in segment ``s``.

    ``op``: ``dot`` (of base-centred rows), ``l2`` (sum of squared differences), ``l1`` (sum of
    absolute differences). ``columns`` None means the rows themselves; then only one triangle is
    computed, and mirrored. ``segments``: int64 ``[n_segments, 2]``; ``out``: float64
    ``[n_segments, n_rows, n_columns]``. Differences from the base are taken in float32, or float64
    if any row is float64; everything after that in float64.
    """
    symmetric = columns is None
    if op == "dot" and symmetric and len(rows) <= FEW:
        like = stand_in([*rows.codes.tolist(), *base.codes.tolist()])
        if like is not None:
            _products_of_few(like, rows, base, blocks_of(segments), out, threads)
            return
    others = rows if columns is None else columns
    blocks = blocks_of(segments)
    wide = any(part.compute is np.float64 for part in (rows, others, base))
    like = np.empty(0, np.float64 if wide else np.float32)
    n_row_groups = -(-len(rows) // GROUP)
    n_column_groups = -(-len(others) // GROUP)
    groups = np.array(
        [
            (i, j)
            for i in range(n_row_groups)
            for j in range(i if symmetric else 0, n_column_groups)
        ],
        dtype=np.int64,
    ).reshape(-1, 2)
    batch = max(1, WORKSPACE // (8 * len(rows) * len(others)))
    n_columns_of_work = max(1, len(rows) * len(others))
    for first in range(0, len(blocks.ranges), batch):
        ranges = blocks.ranges[first : first + batch]
        partial = np.zeros((len(ranges), len(rows), len(others)))

        work = _items.over(
            _OPS[op], *rows, *others, symmetric, *base, ranges, groups, START, STOP, like, partial
        )
        # an item is one block of one pair of groups: independent of all others
        least = max(1, (1 << 20) // (int(np.diff(ranges).mean()) * n_columns_of_work + 1))
        over_ranges(work, len(ranges) * len(groups), step=1, threads=threads, least=least)
        if symmetric:
            _mirror(partial)
        add_in_order(partial, blocks.segments[first : first + batch], out)


def _products_of_few(
    like: np.ndarray, rows: Pointers, base: Pointers, blocks: Blocks, out: np.ndarray, threads: int
) -> None:
    """``dot`` of up to ``FEW`` rows of one type with themselves, in the bits of ``_items``."""
    partial = np.empty((len(blocks.ranges), len(rows), len(rows)))
    origin = base.addresses[0] if len(base) else None

    work = _few.over(like, *rows, origin, blocks.ranges, START, STOP, partial)
    over_ranges(work, len(blocks.ranges), step=1, threads=threads, least=4)
    _mirror(partial)
    add_in_order(partial, blocks.segments, out)


@kernel
def _few(like, addresses, codes, base, ranges, first, last, partial):
    n_rows, rows = addresses.size, addresses.ctypes.data
    sums = np.zeros((SIDE, SIDE, LANES))
    centred = np.empty((SIDE, TURN))
    values, origins = np.empty(TURN, np.float32), np.empty(TURN, np.float32)
    row_bytes, out_bytes = TURN * 8, SIDE * LANES * 8
    origin = base
    for block in range(first, last):
        start, stop = ranges[block]
        whole = stop - (stop - start) % TURN
        if base is not None:
            origin = base + start * like.itemsize
        _dot_alike(like, n_rows, rows, start, whole - start, origin, sums.ctypes.data, out_bytes)
        n = stop - whole
        if n:
            centred[:] = 0
            if base is not None:
                read(codes[0], base, whole, origins[:n], 0)
            for i in range(n_rows):
                read_widened(
                    codes[0], addresses[i], whole, origins[:n], base is not None, values[:n],
                    centred[i, :n], 0,
                )  # fmt: skip
            a = centred.ctypes.data
            tile_dot_upper(a, a, row_bytes, row_bytes, sums.ctypes.data, out_bytes, rows, rows)
        for i in range(n_rows):
            for j in range(i, n_rows):
                partial[block, i, j] = _total(sums[i, j])


@inner
def _dot_alike(like, n_rows, rows, first, n, base, out, out_bytes):
    if n_rows == 4:
        dot_alike(like, 4, rows, first, n, base, out, out_bytes, AHEAD)
    elif n_rows == 3:
        dot_alike(like, 3, rows, first, n, base, out, out_bytes, AHEAD)
    elif n_rows == 2:
        dot_alike(like, 2, rows, first, n, base, out, out_bytes, AHEAD)
    elif n_rows == 1:
        dot_alike(like, 1, rows, first, n, base, out, out_bytes, AHEAD)


@kernel
def _mirror(partial):
    for b in range(partial.shape[0]):
        for i in range(partial.shape[1]):
            for j in range(i):
                partial[b, i, j] = partial[b, j, i]


def _widened(based):
    bfloat16, float16, float32 = (
        WIDENS[name, based] for name in ("bfloat16", "float16", "float32")
    )

    @inner
    def run(code, rows, start, n, base, out):
        if code == BFLOAT16:
            bfloat16(rows, start, n, base, out, STRIDE * 8)
        elif code == FLOAT16:
            float16(rows, start, n, base, out, STRIDE * 8)
        elif code == FLOAT32:
            float32(rows, start, n, base, out, STRIDE * 8)
        else:
            return 0
        return n

    return run


_widen_rows, _centre_rows = _widened(False), _widened(True)


@inner
def _fill_side(addresses, codes, row, start, n, based, base, out):
    """Centred values of ``SIDE`` rows from ``row`` on: how many of ``n`` columns it did.

    0 where there are not as many, of one type that has vectors.
    """
    if row + SIDE > addresses.size:
        return 0
    for i in range(row + 1, row + SIDE):
        if codes[i] != codes[row]:
            return 0
    n -= n % TURN
    rows = addresses.ctypes.data + 8 * row
    if based:
        return _centre_rows(codes[row], rows, start, n, base.ctypes.data, out)
    return _widen_rows(codes[row], rows, start, n, 0, out)


@inner
def _fill(addresses, codes, first_row, start, n, based, base, values, centred):
    """Centred values of up to ``GROUP`` rows, zeros where a row or a vector runs out."""
    n_rows = min(GROUP, addresses.size - first_row)
    width = -(-n // LANES) * LANES
    for side in range(0, n_rows, SIDE):
        done = 0
        if values.itemsize == 4:
            out = centred.ctypes.data + side * STRIDE * 8
            done = _fill_side(addresses, codes, first_row + side, start, n, based, base, out)
        if done == width:
            continue
        for i in range(side, side + SIDE):
            if i < n_rows:
                read_widened(
                    codes[first_row + i], addresses[first_row + i], start + done, base[done:n],
                    based, values[done:n], centred[i, done:n], 0,
                )  # fmt: skip
                centred[i, n:width] = 0
            else:
                centred[i, :width] = 0


@inner
def _total(lanes):
    """Sum of the lanes, halves onto halves."""
    half = LANES // 2
    while half:
        for lane in range(half):
            lanes[lane] += lanes[lane + half]
        half //= 2
    return lanes[0]


@kernel
def _items(
    op, row_addresses, row_codes, column_addresses, column_codes, symmetric, base_address,
    base_code, ranges, groups, first_item, last_item, like, partial,
):  # fmt: skip
    based = base_address.size == 1
    values = np.empty(COLUMNS, like.dtype)
    base = np.empty(COLUMNS, like.dtype)
    left = np.empty((GROUP, STRIDE))
    right = np.empty((GROUP, STRIDE))
    sums = np.empty((GROUP, GROUP, LANES))
    step = COLUMNS // 2 if like.itemsize == 4 and row_addresses.size >= SIDE else COLUMNS
    row_bytes, out_bytes = STRIDE * 8, GROUP * LANES * 8
    for item in range(first_item, last_item):
        block = item // groups.shape[0]
        row_group, column_group = groups[item % groups.shape[0]]
        diagonal = symmetric and row_group == column_group
        columns = left if diagonal else right
        n_rows = min(GROUP, row_addresses.size - row_group * GROUP)
        n_columns = min(GROUP, column_addresses.size - column_group * GROUP)
        sums[: -(-n_rows // SIDE) * SIDE, : -(-n_columns // SIDE) * SIDE] = 0
        for start in range(ranges[block, 0], ranges[block, 1], step):
            n = min(step, ranges[block, 1] - start)
            if based:
                read(base_code[0], base_address[0], start, base[:n], step)
            _fill(row_addresses, row_codes, row_group * GROUP, start, n, based, base, values, left)
            if not diagonal:
                _fill(
                    column_addresses, column_codes, column_group * GROUP, start, n, based, base,
                    values, right,
                )  # fmt: skip
            n_bytes = -(-n // LANES) * LANES * 8
            fetched = 0
            for i in range(0, n_rows, SIDE):
                a = left.ctypes.data + i * row_bytes
                for j in range(i if diagonal else 0, n_columns, SIDE):
                    b = columns.ctypes.data + j * row_bytes
                    out = sums.ctypes.data + (i * GROUP + j) * LANES * 8
                    soon = row_addresses[row_group * GROUP + fetched % n_rows]
                    later = row_addresses[row_group * GROUP + (fetched + 1) % n_rows]
                    next_byte = (start + step) * WIDTHS[row_codes[row_group * GROUP]]
                    soon, later = soon + next_byte, later + next_byte
                    fetched += 2
                    if op == 0 and diagonal and i == j:
                        tile_dot_upper(a, b, row_bytes, n_bytes, out, out_bytes, soon, later)
                    elif op == 0:
                        tile_dot(a, b, row_bytes, n_bytes, out, out_bytes, soon, later)
                    elif op == 1:
                        tile_l2(a, b, row_bytes, n_bytes, out, out_bytes, soon, later)
                    else:
                        tile_l1(a, b, row_bytes, n_bytes, out, out_bytes, soon, later)
        target = partial[block, row_group * GROUP :, column_group * GROUP :]
        for i in range(n_rows):
            for j in range(n_columns):
                target[i, j] = _total(sums[i, j])
