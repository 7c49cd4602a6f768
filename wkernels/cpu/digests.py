"""Checksums of what a kernel has just written, while a cache has it.

They are those of a C function of another library, which gets a block's address and its bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from llvmlite import ir

from wkernels.cpu.jit import array_at, kernel
from wkernels.cpu.parts import inner, intrinsic, types

DIGEST = 16
"""Bytes of a checksum."""

NEVER = 1 << 62
"""An element that no row has."""


class Run(NamedTuple):
    """Blocks beside each other in a row, and where their tables are. Addresses, and numbers."""

    row: int  # of the row's first element
    shift: int  # what makes an address of where a block starts and stops
    n: int  # blocks
    starts: int  # int64 [n], bytes
    stops: int  # int64 [n]
    found: int  # uint8 [n, DIGEST]: the checksums, as two big-endian numbers
    taken: int  # bool [n]: whether a checksum is known


_ROW, _SHIFT, _N, _STARTS, _STOPS, _FOUND, _TAKEN = range(len(Run._fields))


class Digests(NamedTuple):
    """Blocks of results whose checksums are wanted, and of which those are taken that lie within
    what one thread writes. Whoever makes it keeps the tables alive."""

    function: int
    """Where the function is: ``struct {uint64_t low, high;} f(const void *, size_t)``; for machines
    that return such a struct in two registers, as x86-64 and AArch64 do."""
    width: int  # bytes of an element
    runs: np.ndarray  # int64 [n_runs, 7], see Run; a row's in the order in which they lie there
    borders: np.ndarray  # int64, sorted: elements at which threads should begin

    @classmethod
    def of(cls, function: int, width: int, runs: Sequence[Run], borders: np.ndarray) -> Digests:
        table = np.array(runs, np.int64).reshape(-1, len(Run._fields))
        return cls(function, width, table, borders)


NO_DIGESTS = Digests.of(0, 1, [], np.empty(0, np.int64))


@intrinsic
def _called(context, function, address, nbytes):
    returned = types.UniTuple(types.uint64, 2)

    def generate(context, builder, signature, args):
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.LiteralStructType([word, word]), [word, word])
        pair = builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        halves = [builder.extract_value(pair, k) for k in range(2)]
        return context.make_tuple(builder, returned, halves)

    return returned(types.int64, types.int64, types.int64), generate


@inner
def _take(function, address, nbytes, found):
    low, high = _called(function, address, nbytes)
    for k in range(8):
        found[k] = (high >> np.uint64(56 - 8 * k)) & np.uint64(255)
        found[8 + k] = (low >> np.uint64(56 - 8 * k)) & np.uint64(255)


@inner
def take_digests(digests, start, stop, after):
    """Of the blocks between elements ``start`` and ``stop`` those that end at ``after`` or later.

    Returns where the next ends.
    """
    due = NEVER
    for r in range(digests.runs.shape[0]):
        run = digests.runs[r]
        n, shift = run[_N], run[_SHIFT] - run[_ROW]
        starts, stops = array_at(run[_STARTS], n, np.int64), array_at(run[_STOPS], n, np.int64)
        k = _first_from(stops, after * digests.width - shift)
        while k < n and stops[k] + shift <= stop * digests.width:
            taken = array_at(run[_TAKEN] + k, 1, np.uint8)
            if not taken[0] and starts[k] + shift >= start * digests.width:
                found = array_at(run[_FOUND] + DIGEST * k, DIGEST, np.uint8)
                _take(digests.function, starts[k] + run[_SHIFT], stops[k] - starts[k], found)
                taken[0] = 1
            k += 1
        if k < n:
            due = min(due, (stops[k] + shift) // digests.width)
    return due


@inner
def _first_from(numbers, limit):
    """Of sorted numbers the first that is not less, by halves."""
    low, high = 0, numbers.size
    while low < high:
        middle = (low + high) // 2
        if numbers[middle] >= limit:
            high = middle
        else:
            low = middle + 1
    return low


@kernel
def digest_written(digests, start, stop):
    """Of the blocks between two elements, those that are not taken yet."""
    take_digests(digests, start, stop, start)
