"""Checksums of what a kernel has just written, while a cache has it.

They are those of a C function of another library, which gets a block's address and its bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from llvmlite import ir

from wkernels.cpu.jit import kernel
from wkernels.cpu.parts import inner, intrinsic, types


class Digests(NamedTuple):
    """Blocks of memory whose checksums are wanted, and those."""

    function: int
    """Where the function is: ``struct {uint64_t low, high;} f(const void *, size_t)``; for machines
    that return such a struct in two registers, as x86-64 and AArch64 do."""
    starts: np.ndarray  # int64 [n], elements of a row: where each begins
    ends: np.ndarray  # int64 [n], sorted: the elements after which each is there
    addresses: np.ndarray  # int64 [n]
    lengths: np.ndarray  # int64 [n], bytes
    found: np.ndarray  # uint64 [n, 2]: the higher half, and the lower one
    taken: np.ndarray  # uint8 [n]: 1 where it is found

    @classmethod
    def of(
        cls, function: int, starts: np.ndarray, ends: np.ndarray, addresses: np.ndarray,
        lengths: np.ndarray,
    ) -> Digests:  # fmt: skip
        """With none of them taken; int64 ``[n]`` each."""
        columns = [*map(np.ascontiguousarray, (starts, ends, addresses, lengths))]
        n = len(starts)
        return cls(function, *columns, np.zeros((n, 2), np.uint64), np.zeros(n, np.uint8))

    @property
    def borders(self) -> list[int]:
        """Where a block begins and no other is unfinished, sorted. A thread that begins at one
        writes the whole of each block that ends in its share."""
        order = np.argsort(self.starts, kind="stable")
        starts, reached = self.starts[order], np.maximum.accumulate(self.ends[order])
        free = np.ones(len(starts), bool)
        free[1:] = reached[:-1] <= starts[1:]
        return starts[free].tolist()

    def as_bytes(self) -> np.ndarray:
        """``found`` as the bytes of two big-endian numbers, uint8 ``[n, 16]``."""
        return self.found.astype(">u8").view(np.uint8)


NO_DIGESTS = Digests.of(0, *[np.empty(0, np.int64)] * 4)


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
def first_after(digests, start):
    """The first block that ends after element ``start``."""
    k = 0
    while k < digests.ends.size and digests.ends[k] <= start:
        k += 1
    return k


@inner
def take_digests(digests, k, stop):
    """Of the blocks from ``k`` on that end by element ``stop``; returns the next."""
    while k < digests.ends.size and digests.ends[k] <= stop:
        low, high = _called(digests.function, digests.addresses[k], digests.lengths[k])
        digests.found[k, 0] = high
        digests.found[k, 1] = low
        digests.taken[k] = 1
        k += 1
    return k


@kernel
def digest_ended(digests, start, stop):
    """Of the blocks that end after element ``start``, and by ``stop``."""
    take_digests(digests, first_after(digests, start), stop)
