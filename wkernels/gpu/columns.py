"""Columns of matrices: their inner products, and sums in which each has factors of its own.

A column is what lies along axis 0: every ``width``-th element of a tensor. Rows of a matrix are
taken in bands, of as many rows for every matrix of its width: a program has a tile of a band's
columns, row by row, and the bands are added in order. So the bits depend neither on how many
programs there are, nor on where a matrix was cut, if it was cut between bands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from wkernels.bands import FEWEST, rows_of_a_band
from wkernels.gpu import addresses, chips, elements
from wkernels.gpu.blocks import add_in_order
from wkernels.gpu.elements import NONE, decode, load, row_pointer, store

N = 2
"""Models."""
PRODUCTS = 3
"""Of each column: the first with itself, with the second, the second with itself."""
WARPS = 4
ADDED = 256
"""Columns of a program that adds bands."""
ADDED_AT_ONCE = 8


class _Tiles(NamedTuple):
    """What programs work on: int64 ``[n]`` each."""

    starts: np.ndarray  # the first element
    rows: np.ndarray
    columns: np.ndarray
    widths: np.ndarray  # from one row to the next
    targets: np.ndarray  # of the first column, in what is found or given for columns

    @classmethod
    def of(cls, bands: Sequence[tuple[int, int, int, int, int]], columns: int) -> _Tiles:
        """Bands, given as the fields above, in tiles of so many columns."""
        table = np.array(bands, np.int64).reshape(-1, 5)
        n_tiles = -(-table[:, 2] // columns)
        tiles = np.repeat(table, n_tiles, axis=0).T
        skipped = np.arange(len(tiles[0])) - np.repeat(np.cumsum(n_tiles) - n_tiles, n_tiles)
        skipped *= columns
        left = np.minimum(tiles[2] - skipped, columns)
        return cls(tiles[0] + skipped, tiles[1], left, tiles[3], tiles[4] + skipped)

    def fixed(self, tensors: Sequence[torch.Tensor]) -> dict[str, int]:
        """Of what rows' addresses and numbers of columns are multiples, in bytes and elements."""
        itemsize = min(tensor.element_size() for tensor in tensors)
        places = np.concatenate([self.starts, self.widths]) * itemsize
        aligned = addresses.alignment(np.append(places, addresses.addresses_of(tensors)))
        return {"ALIGNED": aligned, "EVEN": addresses.alignment(self.columns)}


@triton.jit
def _tile(tiles, n_tiles, EVEN: tl.constexpr):
    """Start, rows, columns, width and target of a program's tile."""
    tile = tiles + tl.program_id(0)
    columns = tl.load(tile + 2 * n_tiles).to(tl.int32)
    return (
        tl.load(tile), tl.load(tile + n_tiles).to(tl.int32), tl.multiple_of(columns, EVEN),
        tl.load(tile + 3 * n_tiles), tl.load(tile + 4 * n_tiles),
    )  # fmt: skip


@triton.jit
def _loaded(a, b, base, start, column, inside, A_CODE: tl.constexpr, B_CODE: tl.constexpr,
            BASE_CODE: tl.constexpr, ALIGNED: tl.constexpr):  # fmt: skip
    """A row of a tile, of both models and of the base, as they lie in memory."""
    a = load(row_pointer(a, start, A_CODE, ALIGNED) + column, inside, True)
    b = load(row_pointer(b, start, B_CODE, ALIGNED) + column, inside, True)
    origin = a
    if BASE_CODE != NONE:
        origin = load(row_pointer(base, start, BASE_CODE, ALIGNED) + column, inside, True)
    return a, b, origin


@triton.jit
def _differences(loaded, A_CODE: tl.constexpr, B_CODE: tl.constexpr, BASE_CODE: tl.constexpr):
    """Of both models from the base, and the base, in float64; without a base it counts as zero."""
    raw_a, raw_b, raw_base = loaded
    a, b = decode(raw_a, A_CODE, tl.float64), decode(raw_b, B_CODE, tl.float64)
    origin = tl.zeros(a.shape, tl.float64)
    if BASE_CODE != NONE:
        origin = decode(raw_base, BASE_CODE, tl.float64)
        a, b = a - origin, b - origin
    return a, b, origin


@triton.jit
def _add_row(sums, loaded, A_CODE: tl.constexpr, B_CODE: tl.constexpr, BASE_CODE: tl.constexpr):
    a, b, _ = _differences(loaded, A_CODE, B_CODE, BASE_CODE)
    first, mixed, second = sums
    return first + a * a, mixed + a * b, second + b * b


@triton.jit(do_not_specialize=["base", "n_tiles"])
def multiply_columns(
    rows, base, tiles, n_tiles, out,
    A_CODE: tl.constexpr, B_CODE: tl.constexpr, BASE_CODE: tl.constexpr, ALIGNED: tl.constexpr,
    EVEN: tl.constexpr, GOES_ON: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: a tile of a band, whose products ``out`` gets; ``GOES_ON``: added to what is
    there, row by row."""
    start, n_rows, n_columns, width, target = _tile(tiles, n_tiles, EVEN)
    column = tl.arange(0, STEP)
    inside = column < n_columns
    a, b = tl.load(rows), tl.load(rows + 1)
    out += target + column
    sums = (tl.zeros((STEP,), tl.float64),) * 3
    if GOES_ON:
        sums = (
            tl.load(out, mask=inside, other=0.0), tl.load(out + width, mask=inside, other=0.0),
            tl.load(out + 2 * width, mask=inside, other=0.0),
        )  # fmt: skip
    for row in range(n_rows):
        here = start + row * width
        loaded = _loaded(a, b, base, here, column, inside, A_CODE, B_CODE, BASE_CODE, ALIGNED)
        sums = _add_row(sums, loaded, A_CODE, B_CODE, BASE_CODE)
    first, mixed, second = sums
    tl.store(out, first, mask=inside)
    tl.store(out + width, mixed, mask=inside)
    tl.store(out + 2 * width, second, mask=inside)


@triton.jit(do_not_specialize=["n_tiles"])
def add_bands(partials, totals, tiles, n_tiles, AT_ONCE: tl.constexpr, STEP: tl.constexpr):
    """One program: columns of one matrix, whose bands are added to their totals in order."""
    start, n_bands, n_columns, stride, target = _tile(tiles, n_tiles, 1)
    column = tl.arange(0, STEP)
    inside = column < n_columns
    total = tl.load(totals + target + column, mask=inside, other=0.0)
    total = add_in_order(
        total, partials + start + column, stride, 0, n_bands, inside, False, AT_ONCE
    )
    tl.store(totals + target + column, total, mask=inside)


def column_products(
    rows: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    segments: np.ndarray,
    firsts: np.ndarray,
    widths: np.ndarray,
    grams: Sequence[np.ndarray],
) -> None:
    """Adds to ``grams[s][c, i, j]``, float64 ``[width, 2, 2]``, the products of column ``c``.

    Of the differences of two rows from ``base``, if there is one, in segment ``s``: whole rows of
    a matrix of ``widths[s]`` columns, from its element ``firsts[s]`` on, which begins a band. In
    float64, in the order of the module's first words.
    Bytes: both rows and the base once; of each band 24 a column are written, and read again.
    """
    assert len(rows) == N
    device, offset, n_partials = rows[0].device, 0, 0
    bands: list[list[tuple]] = [[], []]
    added = []
    for (start, stop), first, width in zip(segments, firsts, widths, strict=True):
        n_rows, taken = (stop - start) // max(width, 1), rows_of_a_band(width)
        if not taken:
            bands[1].append((start, n_rows, width, width, offset))
        elif n_rows:
            assert first % (taken * width) == 0, "a run that does not begin a band"
            n_bands, size = -(-n_rows // taken), PRODUCTS * width
            bands[0] += [
                (start + k * taken * width, min(taken, n_rows - k * taken), width, width,
                 n_partials + k * size)
                for k in range(n_bands)
            ]  # fmt: skip
            added.append((n_partials, n_bands, size, size, offset))
            n_partials += n_bands * size
        offset += PRODUCTS * width
    if not offset:
        return
    found = np.concatenate([gram[:, [0, 0, 1], [0, 1, 1]].T.ravel() for gram in grams])
    totals = addresses.to_device(found, device)
    partials = rows[0].new_empty(n_partials, dtype=torch.float64)
    with addresses.on_device_of(totals):
        for out, some in zip((partials, totals), bands, strict=True):
            tiles, given, fixed = _prepared(rows, base, some, [])
            if len(tiles.starts):
                multiply_columns[(len(tiles.starts),)](*given, out, GOES_ON=out is totals, **fixed)
        tiles = _Tiles.of(added, ADDED)
        if added:
            add_bands[(len(tiles.starts),)](
                partials, totals, addresses.to_device(np.stack(tiles), device), len(tiles.starts),
                AT_ONCE=ADDED_AT_ONCE, STEP=ADDED, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
    found, offset = totals.cpu().numpy(), 0
    for gram, width in zip(grams, widths, strict=True):
        first, mixed, second = found[offset : offset + PRODUCTS * width].reshape(PRODUCTS, width)
        gram[:, 0, 0], gram[:, 0, 1], gram[:, 1, 0], gram[:, 1, 1] = first, mixed, mixed, second
        offset += PRODUCTS * width


@triton.jit(do_not_specialize=["base", "n_tiles", "factors", "n_factors", "out"])
def sum_columns(
    rows, base, tiles, n_tiles, factors, n_factors, out,
    A_CODE: tl.constexpr, B_CODE: tl.constexpr, BASE_CODE: tl.constexpr, OUT_CODE: tl.constexpr,
    ALIGNED: tl.constexpr, EVEN: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: a tile, whose columns' ``factors``, float64 ``[2, n_factors]``, it holds."""
    start, n_rows, n_columns, width, target = _tile(tiles, n_tiles, EVEN)
    column = tl.arange(0, STEP)
    inside = column < n_columns
    a, b = tl.load(rows), tl.load(rows + 1)
    factors += target + column
    first = tl.load(factors, mask=inside, other=0.0)
    second = tl.load(factors + n_factors, mask=inside, other=0.0)
    for row in range(n_rows):
        here = start + row * width
        loaded = _loaded(a, b, base, here, column, inside, A_CODE, B_CODE, BASE_CODE, ALIGNED)
        x, y, origin = _differences(loaded, A_CODE, B_CODE, BASE_CODE)
        store(out, here, column, origin + first * x + second * y, inside, OUT_CODE, ALIGNED, True)


def column_sums(
    rows: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    segments: np.ndarray,
    firsts: np.ndarray,
    factors: Sequence[np.ndarray],
    out: torch.Tensor,
) -> int:
    """``out = base + sum_i factors[s][c, i] (row_i - base)``, without a base as if it were zero.

    ``factors[s]``: float64 ``[width, 2]``, of the columns of the matrix that segment ``s`` is a
    run of, from its element ``firsts[s]`` on. In float64, with one rounding at the store: the bits
    are those of the CPU path. Returns how many outputs are NaN or Inf.
    Bytes: both rows, the base and the output once.
    """
    bands, offset = [], 0
    for (start, stop), first, table in zip(segments, firsts, factors, strict=True):
        width = len(table)
        taken = rows_of_a_band(width) or FEWEST
        column = first % max(width, 1)
        if column and start < stop:  # what is left of a row
            n = min(width - column, stop - start)
            bands.append((start, 1, n, width, offset + column))
            start += n
        n_rows = (stop - start) // max(width, 1)
        bands += [
            (start + row * width, min(taken, n_rows - row), width, width, offset)
            for row in range(0, n_rows, taken)
        ]
        start += n_rows * width
        if start < stop:
            bands.append((start, 1, stop - start, width, offset))
        offset += width
    if not bands:
        return 0
    tiles, given, fixed = _prepared(rows, base, bands, [out])
    table = np.ascontiguousarray(np.concatenate(factors).T)
    with addresses.on_device_of(out):
        sum_columns[(len(tiles.starts),)](
            *given, addresses.to_device(table.ravel(), out.device), offset, out.data_ptr(),
            OUT_CODE=addresses.codes_of([out])[0], **fixed,
        )  # fmt: skip
    return int((~torch.isfinite(out[segments.min() : segments.max()])).sum())


def _prepared(
    rows: Sequence[torch.Tensor], base: torch.Tensor | None, bands: list, others: list
) -> tuple[_Tiles, tuple, dict]:
    """Bands' tiles, a kernel's first arguments, and what it is compiled for."""
    based = [] if base is None else [base]
    itemsize = min(row.element_size() for row in [*rows, *based])
    # sums in float64 of more than 8 columns would not fit a thread's registers
    step = min(addresses.WIDTH // itemsize, 8) * chips.current().lanes * WARPS
    tiles = _Tiles.of(bands, step)
    table = np.concatenate([addresses.addresses_of(rows), *tiles])
    given = addresses.to_device(table, rows[0].device)
    a_code, b_code = addresses.codes_of(rows)
    fixed = tiles.fixed([*rows, *based, *others]) | {
        "A_CODE": a_code, "B_CODE": b_code,
        "BASE_CODE": addresses.codes_of(based)[0] if based else elements.NONE.value,
        "STEP": step, "num_warps": WARPS, "enable_fp_fusion": False,
    }  # fmt: skip
    origin = 0 if base is None else base.data_ptr()
    return tiles, (given, origin, given[N:], len(tiles.starts)), fixed
