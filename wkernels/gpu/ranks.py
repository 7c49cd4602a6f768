"""Chances by rank: the place of each magnitude in its line, by sorting what fits into a program.

A key is a magnitude's bits above its place, so that no two are equal, and equal magnitudes stay in
the order of their places. A tile of whole lines is sorted at once, with the number of the line
above all; a longer line is sorted in tiles, which are then merged, two by two.
"""

# Triton compiles no choice between values that are of different types
# ruff: noqa: SIM108

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from wkernels import dtypes
from wkernels.gpu import addresses, blocks, elements
from wkernels.gpu.elements import base_pointer, row_pointer
from wkernels.gpu.selection import bits_of, difference

TILE = 4096
"""Keys that are sorted at once, 8 bytes each, in the registers of ``WARPS``."""
WARPS = 16
MERGED = 1024
"""Keys that find their place at once."""
MERGING_WARPS = 4
BITS = tl.constexpr(31)
"""Of a magnitude; and of a place in a line that is longer than a tile."""
AFTER_ALL = tl.constexpr((1 << 62) - 1)
"""No key is above it, so that the sum of two is below 2**63."""


@triton.jit
def _exchanged(keys, SORTED: tl.constexpr, APART: tl.constexpr, N: tl.constexpr):
    """One step of a bitonic sort: pairs ``APART`` in order, runs of ``SORTED`` up and down."""
    pairs = tl.reshape(keys, (N // (2 * APART), 2, APART))
    other = tl.sum(pairs, axis=1, keep_dims=True) - pairs
    second = tl.arange(0, 2)[None, :, None]
    down = (tl.arange(0, N // (2 * APART)) // (SORTED // (2 * APART)) % 2)[:, None, None]
    return tl.reshape(tl.where((pairs > other) != (second != down), other, pairs), (N,))


@triton.jit
def _sorted(keys, N: tl.constexpr, LOG_N: tl.constexpr):
    """Ascending. Unlike ``tl.sort`` it is quick in the interpreter, whose sums are."""
    for log in tl.static_range(1, LOG_N + 1):
        for step in tl.static_range(log):
            keys = _exchanged(keys, 1 << log, 1 << (log - 1 - step), N)
    return keys


@triton.jit
def _keys(row, base, start, offset, inside, line, place, PLACES: tl.constexpr,
          CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr,
          ALIGNED: tl.constexpr):  # fmt: skip
    """Of the elements ``offset`` past a place in the row; what is not ``inside`` comes last."""
    row = row_pointer(row, start, CODE, ALIGNED)
    base = base_pointer(base, start, BASE_CODE, ALIGNED)
    x = difference(row, base, offset, inside, CODE, BASE_CODE, COMPUTE, True)
    bits = bits_of(x.to(tl.float32)).to(tl.int64)
    return tl.where(inside, line | (bits << PLACES) | place, AFTER_ALL)


@triton.jit
def _offset(place, abreast, depth, FLAT: tl.constexpr):
    """Where an element of a tile is: ``abreast`` lines lie side by side, of ``depth``."""
    if FLAT:
        offset = place
    else:
        offset = place // abreast * depth + place % abreast
    return offset


@triton.jit(do_not_specialize=["row", "base", "n_tiles", "out"])
def rank_lines(
    row, base, tiles, n_tiles, chances, out,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    EVEN: tl.constexpr, FLAT: tl.constexpr, TILE: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """One program: a tile of whole lines, sorted line by line."""
    tiles += tl.program_id(0)
    start, depth = tl.load(tiles), tl.load(tiles + 4 * n_tiles)
    count = tl.multiple_of(tl.load(tiles + n_tiles).to(tl.int32), EVEN)
    length = tl.load(tiles + 2 * n_tiles).to(tl.int32)
    abreast = tl.load(tiles + 3 * n_tiles).to(tl.int32)
    place = tl.arange(0, TILE)
    inside = place < count
    line = place // (length * abreast) * abreast + place % abreast
    keys = _keys(
        row, base, start, _offset(place, abreast, depth, FLAT), inside,
        line.to(tl.int64) << (BITS + LOG), place, LOG, CODE, BASE_CODE, COMPUTE, ALIGNED,
    )  # fmt: skip
    found = (_sorted(keys, TILE, LOG) & (TILE - 1)).to(tl.int32)
    chances += tl.load(tiles + 5 * n_tiles)
    chance = tl.load(chances + place % length, mask=inside, other=0.0)
    target = out.to(tl.pointer_type(tl.float32)) + start
    tl.store(target + _offset(found, abreast, depth, FLAT), chance, mask=inside)


@triton.jit(do_not_specialize=["row", "base", "n_tiles"])
def sort_parts(
    row, base, tiles, n_tiles, keys,
    CODE: tl.constexpr, BASE_CODE: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr,
    EVEN: tl.constexpr, FLAT: tl.constexpr, TILE: tl.constexpr, LOG: tl.constexpr,
):  # fmt: skip
    """One program: a tile of one line, whose ``keys`` it sorts."""
    tiles += tl.program_id(0)
    depth, first = tl.load(tiles + 4 * n_tiles), tl.load(tiles + 6 * n_tiles)
    count = tl.multiple_of(tl.load(tiles + n_tiles).to(tl.int32), EVEN)
    place = tl.arange(0, TILE)
    inside = place < count
    found = _keys(
        row, base, tl.load(tiles), _offset(place, 1, depth, FLAT), inside, 0, first + place,
        BITS, CODE, BASE_CODE, COMPUTE, ALIGNED,
    )  # fmt: skip
    keys += tl.load(tiles + 7 * n_tiles) + first
    tl.store(keys + place, _sorted(found, TILE, LOG), mask=inside)


@triton.jit(do_not_specialize=["n_tiles", "run", "n_steps", "out"])
def merge_parts(
    tiles, n_tiles, keys, merged, run, n_steps, chances, out, LAST: tl.constexpr,
    TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """One program: a part of a tile of one line's ``keys``, which are sorted in runs of ``run``.

    Of two runs that are merged, a key goes behind as many of the other as are smaller. The last
    time what is written are the chances, where the keys come from."""
    tiles += tl.program_id(0) // (TILE // STEP)
    count = tl.load(tiles + n_tiles).to(tl.int32)
    length, first = tl.load(tiles + 2 * n_tiles), tl.load(tiles + 6 * n_tiles)
    keys += tl.load(tiles + 7 * n_tiles)
    place = tl.program_id(0) % (TILE // STEP) * STEP + tl.arange(0, STEP)
    inside = place < count
    key = tl.load(keys + first + place, mask=inside, other=0)
    mine = first // run
    pair = mine // 2 * 2 * run
    other = pair + tl.where(mine % 2 == 0, run, 0)
    low = tl.zeros((STEP,), tl.int64)
    high = low + tl.minimum(tl.maximum(length - other, 0), run)
    for _ in range(n_steps):
        middle = (low + high) // 2
        open = inside & (low < high)
        smaller = tl.load(keys + other + middle, mask=open, other=0) < key
        low = tl.where(open & smaller, middle + 1, low)
        high = tl.where(open & (smaller == 0), middle, high)
    rank = pair + first - mine * run + place + low
    if LAST:
        depth = tl.load(tiles + 4 * n_tiles)
        target = out.to(tl.pointer_type(tl.float32)) + tl.load(tiles) - first * depth
        chances += tl.load(tiles + 5 * n_tiles)
        chance = tl.load(chances + rank, mask=inside, other=0.0)
        tl.store(target + (key & 0x7FFFFFFF) * depth, chance, mask=inside)
    else:
        merged += tl.load(tiles + 7 * n_tiles)
        tl.store(merged + rank, key, mask=inside)


class _Tiles(NamedTuple):
    """Tiles of one kind. ``table``, of each: its first element, how many it has, the length of its
    lines, how many lie side by side and of how many, where their chances are; and of a part of a
    line where it begins in the line, and where the line's keys do."""

    table: np.ndarray  # int64 [8, n]
    flat: bool  # elements follow each other
    there: torch.Tensor  # on the device

    @property
    def n(self) -> int:
        return self.table.shape[1]

    def of(self, row: torch.Tensor, base: torch.Tensor | None) -> tuple[tuple, dict[str, Any]]:
        """What the kernels take for a row: arguments, and what they are compiled for."""
        tensors = [row] if base is None else [row, base]
        codes = addresses.codes_of(tensors)
        width = min(tensor.element_size() for tensor in tensors)
        places = np.append(self.table[0] * width, addresses.addresses_of(tensors))
        compute = dtypes.compute_type(*map(addresses.type_name, tensors))
        given = row.data_ptr(), 0 if base is None else base.data_ptr(), self.there, self.n
        return given, {
            "CODE": codes[0], "BASE_CODE": elements.NONE.value if base is None else codes[1],
            "COMPUTE": elements.FLOAT_TYPES[compute], "ALIGNED": addresses.alignment(places),
            "EVEN": addresses.alignment(self.table[1]), "FLAT": self.flat, "TILE": TILE,
            "LOG": TILE.bit_length() - 1, "num_warps": WARPS, "enable_fp_fusion": False,
        }  # fmt: skip


def _whole(start: int, stop: int, length: int, depth: int) -> tuple[tuple, bool]:
    """The table of a segment's tiles, but for the chances, and whether they are flat."""
    block = length * depth
    segment = np.array([[start, stop]])
    if block <= TILE:
        starts, counts, _ = blocks.cut(segment, TILE // block * block)
        return (starts, counts, length, depth, depth, 0, 0), True
    starts, _, _ = blocks.cut(segment, block)
    across, abreast, _ = blocks.cut(np.array([[0, depth]]), TILE // length)
    abreast = np.tile(abreast, len(starts))
    starts = (starts[:, None] + across).ravel()
    return (starts, abreast * length, length, abreast, depth, 0, 0), False


def _parts(start: int, stop: int, length: int, depth: int, n_keys: int) -> tuple[tuple, bool]:
    """The same of lines that are longer than a tile; ``n_keys`` are before theirs."""
    starts, _, _ = blocks.cut(np.array([[start, stop]]), length * depth)
    lines = (starts[:, None] + np.arange(depth)).ravel()
    firsts, counts, _ = blocks.cut(np.array([[0, length]]), TILE)
    starts = (lines[:, None] + firsts * depth).ravel()
    keys = np.repeat(n_keys + np.arange(len(lines)) * length, len(firsts))
    firsts, counts = np.tile(firsts, len(lines)), np.tile(counts, len(lines))
    return (starts, counts, length, 1, depth, firsts, keys), depth == 1


def _tiles_of(
    segments: np.ndarray, shapes: Sequence[tuple[int, int, int]], places: dict[int, int],
    device: torch.device,
) -> tuple[list[_Tiles], list[_Tiles], int]:  # fmt: skip
    """Tiles of whole lines, tiles of parts of lines, and how many keys those have in all.

    ``places``: where the chances of lines of a length are.
    """
    found: dict[tuple[bool, bool], list[np.ndarray]] = {}
    n_keys = 0
    for (start, stop), (_, length, depth) in zip(segments.tolist(), shapes, strict=True):
        if length <= TILE:
            columns, flat = _whole(start, stop, length, depth)
        else:
            columns, flat = _parts(start, stop, length, depth, n_keys)
            n_keys += stop - start
        columns = (*columns[:5], places[length], *columns[5:])
        table = np.stack(np.broadcast_arrays(*columns))
        found.setdefault((length <= TILE, flat), []).append(table)
    tiles: dict[bool, list[_Tiles]] = {True: [], False: []}
    for (whole, flat), tables in found.items():
        table = np.concatenate(tables, axis=1)
        there = addresses.to_device(table.ravel(), device)
        tiles[whole].append(_Tiles(table, flat, there))
    return tiles[True], tiles[False], n_keys


def _chances(lengths: Sequence[int], density: float, epsilon: float) -> np.ndarray:
    """Of each rank in lines of each length, as the CPU path has them."""
    found = []
    for length in lengths:
        scaled = np.zeros(1) if length == 1 else 2.0 * np.arange(length) / (length - 1) - 1.0
        found.append((density + epsilon * scaled).astype(np.float32))
    return np.concatenate(found)


def rank_chances(
    rows: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    segments: np.ndarray,
    shapes: Sequence[tuple[int, int, int]],
    densities: Sequence[float],
    epsilons: Sequence[float],
    out: torch.Tensor,
) -> None:
    """``out[i, k]`` (float32): the chance of an element to be kept, by its rank in its line.

    Segment ``s`` of a row is seen as ``shapes[s]`` (outer, length, inner); lines run along
    ``length``. Ranks are those of the magnitudes of ``row - base`` in float32, smallest first,
    equal ones in the order of their places, scaled to 0 ... 1 (0.5 in lines of one element):
    ``density + epsilon * (2 * rank - 1)``. With a density of 0 or 1 all elements have that. The
    bits are those of the CPU path.
    Bytes: each row, the base and the output once. Of lines of more than ``TILE`` elements 16 bytes
    for each element of one row are held: its key, which is read and written each time that sorted
    parts are merged.
    """
    lengths = sorted({length for _, length, _ in shapes})
    assert max(lengths, default=0) < 1 << BITS.value, "a line of 2**31 elements"
    places = dict(zip(lengths, np.cumsum([0, *lengths]).tolist(), strict=False))
    with addresses.on_device_of(out):
        whole, parts, n_keys = _tiles_of(segments, shapes, places, out.device)
        keys = torch.empty((2, n_keys), dtype=torch.int64, device=out.device)
        for row, density, epsilon, target in zip(rows, densities, epsilons, out, strict=True):
            if not 0 < density < 1:
                target.fill_(density)
                continue
            chances = addresses.to_device(_chances(lengths, density, epsilon), out.device)
            for tiles in whole:
                given, fixed = tiles.of(row, base)
                rank_lines[(tiles.n,)](*given, chances, target.data_ptr(), **fixed)
            for tiles in parts:
                given, fixed = tiles.of(row, base)
                sort_parts[(tiles.n,)](*given, keys[0], **fixed)
                _merge(tiles, keys, max(lengths), chances, target)


def _merge(
    tiles: _Tiles, keys: torch.Tensor, longest: int, chances: torch.Tensor, out: torch.Tensor
) -> None:
    """Merges sorted parts, from ``keys[0]`` to ``keys[1]`` and back, until lines are whole."""
    run, source, target = TILE, *keys
    while run < longest:
        merge_parts[(tiles.n * (TILE // MERGED),)](
            tiles.there, tiles.n, source, target, run, run.bit_length(), chances, out.data_ptr(),
            LAST=2 * run >= longest, TILE=TILE, STEP=MERGED, num_warps=MERGING_WARPS,
        )  # fmt: skip
        run, source, target = 2 * run, target, source
