"""The loop of a sieve, as LLVM vectors: magnitudes beyond two limits counted, those between kept.

Arguments named after memory are int64 addresses, aligned to their elements.
"""

from __future__ import annotations

from llvmlite import ir

from wkernels.cpu.differences import (
    called,
    constant,
    difference,
    loaded,
    mask_bits,
    pointer_at,
    spread,
)
from wkernels.cpu.parts import intrinsic, types
from wkernels.cpu.vectors import INT, INT32, LANES, STORED, TURN, Loop, lanes

FEW = 6
"""Of a turn's elements, that are stored without asking whether there are so many."""


def _counted(builder, so_far, mask):
    return builder.select(mask, builder.add(so_far, constant(INT32, 1)), so_far)


def _sum(builder, counts):
    total = called(builder, f"vector.reduce.add.v{LANES}i32", INT32, [counts])
    return builder.zext(total, INT)


def _store_chosen(builder, which, values, out):
    """Stores the ``values`` (the address of ``TURN`` int32) that ``which`` has bits for, in order.

    Where few are chosen, as mostly, without a branch: what is stored past them counts for nothing.
    """

    def put(left, k):
        first = called(builder, "cttz.i64", INT, [left, ir.Constant(ir.IntType(1), 0)])
        first = builder.and_(first, INT(TURN - 1))  # of no bits at all: 64
        value = loaded(builder, values, INT32, first)
        builder.store(value, pointer_at(builder, out, INT32, k))
        return builder.and_(left, builder.sub(left, INT(1)))

    few, more, rest, done = (
        builder.append_basic_block(name) for name in ("few", "more", "rest", "done")
    )
    builder.cbranch(builder.icmp_unsigned("!=", which, INT(0)), few, done)
    builder.position_at_end(few)
    left = which
    for k in range(FEW):
        left = put(left, INT(k))
    builder.cbranch(builder.icmp_unsigned("!=", left, INT(0)), more, done)
    builder.position_at_end(more)
    builder.branch(rest)
    builder.position_at_end(rest)
    still, k = builder.phi(INT), builder.phi(INT)
    after, following = put(still, k), builder.add(k, INT(1))
    for phi, first, later in ((still, left, after), (k, INT(FEW), following)):
        phi.add_incoming(first, more)
        phi.add_incoming(later, rest)
    builder.cbranch(builder.icmp_unsigned("!=", after, INT(0)), rest, done)
    builder.position_at_end(done)


def _sift(name: str):
    @intrinsic
    def sift(context, row, n, base, limits, values, out, tally, ahead):
        """Of the magnitudes' bits: counts, and those between two limits.

        ``limits``: int32 ``low <= high``; ``values``: room for ``TURN`` int32. Adds to ``tally``
        (int64) how many are above ``high``, equal to it, and equal to ``low`` where that is less;
        stores what is strictly between them at ``out`` (int32, with room for ``LANES`` more), in
        order, and returns how many those are.
        """

        def generate(context, builder, signature, args):
            row, n, base, limits, values, out, tally, ahead = args

            low, high = (loaded(builder, limits, INT32, INT(k)) for k in (0, 1))
            # with one more: > in place of >=
            edges = [high, builder.sub(high, INT32(1)), low, builder.sub(low, INT32(1))]
            above_high, from_high, above_low, from_low = (spread(builder, edge) for edge in edges)
            nothing = constant(INT32, 0)
            loop = Loop(builder, n, [nothing, nothing, nothing, INT(0)])
            *counts, position = loop.totals
            loop.fetch(row, name, ahead)
            which = INT(0)
            for k in range(TURN // LANES):
                _, bits = difference(builder, loop, row, name, base, k)
                place = pointer_at(builder, values, INT32, INT(LANES * k))
                place = builder.bitcast(place, lanes(INT32).as_pointer())
                builder.store(bits, place).align = 4
                upper = builder.icmp_signed(">", bits, from_high)
                masks = builder.icmp_signed(">", bits, above_high), upper
                masks = *masks, builder.icmp_signed(">", bits, from_low)
                counts = [_counted(builder, *pair) for pair in zip(counts, masks, strict=True)]
                lower = builder.icmp_signed(">", bits, above_low)
                inside = builder.and_(lower, builder.not_(upper))
                shifted = builder.shl(mask_bits(builder, inside), INT(LANES * k))
                which = builder.or_(which, shifted)
            chosen_at = builder.add(out, builder.mul(INT(4), position))
            _store_chosen(builder, which, values, chosen_at)
            chosen = called(builder, "ctpop.i64", INT, [which])
            *counts, position = loop.end([*counts, builder.add(position, chosen)])
            above, at_high, at_low = (_sum(builder, count) for count in counts)
            # at or above each limit, so far
            at_low = builder.sub(builder.sub(at_low, at_high), position)
            at_high = builder.sub(at_high, above)
            for k, count in enumerate((above, at_high, at_low)):
                place = pointer_at(builder, tally, INT, INT(k))
                builder.store(builder.add(builder.load(place), count), place)
            return position

        return types.int64(*[types.int64] * 8), generate

    return sift


SIFTS = {name: _sift(name) for name in STORED}
