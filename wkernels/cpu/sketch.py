"""Sketches on the CPU: signed sums of a row's elements in buckets.

Threads share the buckets, not the elements: whoever has a tile of buckets goes through the rows
that ``wkernels.sketches`` cuts a tensor into, of which a run of neighbours each belongs to the
tile. So every bucket is summed in the order of the elements, and the tile stays in the first-level
cache while the elements stream by.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir

from wkernels import masks
from wkernels.cpu.elements import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, WIDTHS, read
from wkernels.cpu.jit import kernel
from wkernels.cpu.parallel import over_ranges
from wkernels.cpu.parts import inner, intrinsic, types
from wkernels.cpu.pointers import Pointers
from wkernels.cpu.vectors import DOUBLE, INT, LANES, STORED, TURN, Loop, lanes
from wkernels.sketches import OFFSETS, SIZE, WORD, Runs, SketchSums

TILE = 2048
"""Buckets that a thread works on at a time: 16 KiB of sums, and 16 more that they end in."""

_WORDS = SIZE // WORD
_BITS = [ir.Constant(INT, n) for n in (masks.GAMMA, masks.MIX_1, masks.MIX_2)]
_GAMMA, _MIX_1, _MIX_2 = (np.uint64(n) for n in (masks.GAMMA, masks.MIX_1, masks.MIX_2))
_30, _27, _31, _ONE = (np.uint64(n) for n in (30, 27, 31, 1))
_OFFSETS, _OFFSET_SHIFT = np.uint64(OFFSETS), np.uint64(64 - SIZE.bit_length() + 1)


def sketch(row: Pointers, runs: Runs, sums: SketchSums, *, threads: int) -> None:
    """Adds the runs of one row of memory (``Pointers`` of one) to ``sums``."""
    wide = row.codes[0] == FLOAT64
    like = np.empty(0, np.float64 if wide else np.float32)

    def work(start: int, stop: int) -> None:
        _tiles(*row, *runs, start, stop, like, sums.high, sums.low, sums.open)

    n = int(np.diff(runs.segments).sum())
    least = max(1, min(SIZE // TILE, (1 << 22) // (n + 64 * len(runs.keys) + 1)))
    over_ranges(work, SIZE // TILE, step=1, threads=threads, least=least)


def _adding(name: str):
    @intrinsic
    def add(context, row, n, out, key, counter, ahead):
        """``out[k] += -+ row[k]``, ``n`` a multiple of ``WORD``, signs from draw ``counter`` on."""

        def generate(context, builder, signature, args):
            row, n, out, key, counter, ahead = args
            gamma, mix_1, mix_2 = _BITS
            loop = Loop(builder, n)
            loop.fetch(row, name, ahead)
            turn = builder.add(counter, builder.lshr(loop.index, INT(WORD.bit_length() - 1)))
            word = builder.add(key, builder.mul(builder.add(turn, INT(1)), gamma))
            for shift, factor in ((30, mix_1), (27, mix_2)):
                word = builder.mul(builder.xor(word, builder.lshr(word, INT(shift))), factor)
            word = builder.xor(word, builder.lshr(word, INT(31)))
            for k in range(TURN // LANES):
                value = loop.load_row(row, name, k)
                bits = builder.trunc(builder.lshr(word, INT(k * LANES)), ir.IntType(LANES))
                minus = builder.bitcast(bits, lanes(ir.IntType(1)))
                value = builder.select(minus, builder.fneg(value), value)
                total = loop.load(out, DOUBLE, 8, k)
                total = builder.fadd(total, builder.fpext(value, lanes(DOUBLE)))
                loop.store(total, out, DOUBLE, 8, k)
            loop.end()
            return context.get_dummy_value()

        integers = (types.int64, types.int64, types.int64, types.uint64, types.uint64, types.int64)
        return types.void(*integers), generate

    return add


assert TURN == WORD
_add_bfloat16, _add_float16, _add_float32 = map(_adding, ("bfloat16", "float16", "float32"))
assert set(STORED) == {"bfloat16", "float16", "float32"}


@inner
def _draw(key, counter):
    z = key + (counter + _ONE) * _GAMMA
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return z ^ (z >> _31)


@inner
def _add_slowly(code, address, start, n, key, counter, bucket, values, sums):
    """The same for any type and any number of elements; ``counter``: of the row's first draw."""
    read(code, address, start, values[:n], 0)
    for k in range(n):
        b = bucket + k
        word = _draw(key, counter + np.uint64(b // WORD))
        minus = (word >> np.uint64(b % WORD)) & _ONE
        value = np.float64(values[k])
        sums[b] += -value if minus else value


@inner
def _add(code, address, start, n, key, counter, bucket, values, sums, ahead):
    head = min(n, -bucket % WORD)
    whole = (n - head) // WORD * WORD
    row = address + (start + head) * WIDTHS[code]
    out = sums.ctypes.data + 8 * (bucket + head)
    first = counter + np.uint64((bucket + head) // WORD)
    if code == BFLOAT16:
        _add_bfloat16(row, whole, out, key, first, ahead)
    elif code == FLOAT32:
        _add_float32(row, whole, out, key, first, ahead)
    elif code == FLOAT16:
        _add_float16(row, whole, out, key, first, ahead)
    else:
        whole = 0
    if head:
        _add_slowly(code, address, start, head, key, counter, bucket, values, sums)
    done = head + whole
    if done < n:
        _add_slowly(
            code, address, start + done, n - done, key, counter, bucket + done, values, sums
        )


@inner
def _close(first, stop, part, high, low, sums):
    """Adds what a finished tensor has in some buckets to its part (Knuth's two-sum)."""
    for b in range(first, stop):
        term, before = sums[b], high[part, b]
        summed = before + term
        back = summed - before
        low[part, b] += (before - (summed - back)) + (term - back)
        high[part, b] = summed
        sums[b] = 0


@kernel
def _tiles(
    addresses, codes, segments, firsts, sizes, parts, keys, first_tile, last_tile, like, high, low,
    sums,
):  # fmt: skip
    address, code = addresses[0], codes[0]
    values = np.empty(TILE, like.dtype)
    for tile in range(first_tile, last_tile):
        begin, end = tile * TILE, (tile + 1) * TILE
        for s in range(segments.shape[0]):
            first, size, key = firsts[s], sizes[s], keys[s]
            stop = first + segments[s, 1] - segments[s, 0]
            at = segments[s, 0] - first  # where the tensor would start in memory
            offset = np.int64(0)
            for row in range(first // SIZE, -(-stop // SIZE)):
                offset = np.int64(_draw(key, _OFFSETS + np.uint64(row)) >> _OFFSET_SHIFT)
                later = np.int64(_draw(key, _OFFSETS + np.uint64(row + 1)) >> _OFFSET_SHIFT)
                for turned in range(0, SIZE + 1, SIZE):
                    # elements of the row that are in the tile, once it is turned
                    here = row * SIZE + turned - offset
                    left = max(begin + here, row * SIZE, first)
                    right = min(end + here, (row + 1) * SIZE, stop)
                    if left < right:
                        _add(
                            code, address, at + left, right - left, key,
                            np.uint64(row * _WORDS), left - here, values, sums,
                            SIZE + offset - later,
                        )  # fmt: skip
            if stop == size and size > SIZE:
                _close(begin, end, parts[s], high, low, sums)
            elif stop == size:  # of one row: few buckets have a part of it
                for turned in range(0, SIZE + 1, SIZE):
                    left, right = max(begin, offset - turned), min(end, size + offset - turned)
                    _close(left, min(right, SIZE), parts[s], high, low, sums)
