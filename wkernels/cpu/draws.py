"""Random draws as LLVM vectors: SplitMix64, of which only the upper bits of a draw are looked at.

The bits are those of ``wkernels.masks``. Arguments named after memory are int64 addresses.
"""

from __future__ import annotations

from llvmlite import ir

from wkernels import masks
from wkernels.cpu.differences import (
    called,
    constant,
    difference,
    magnitude,
    mask_bits,
    pointer_at,
    spread,
)
from wkernels.cpu.parts import intrinsic, types
from wkernels.cpu.vectors import BYTE, DOUBLE, FLOAT, INT, INT32, LANES, STORED, TURN, Loop, lanes

_HALF = LANES // 2
_LONGS = ir.VectorType(INT, _HALF)

_PLACES = [[k for k in range(LANES) if k // 2 % 2 == part] for part in (0, 1)]
"""Elements whose draws are in the first and the second vector: so that the upper halves of both are
one vector by a shuffle within each 128 bits."""

_UPPER = [
    first + part * LANES
    for lane in range(0, LANES, 4)
    for part in (0, 1)
    for first in (lane + 1, lane + 3)
]


def _constants(numbers):
    return ir.Constant(_LONGS, [number & ((1 << 64) - 1) for number in numbers])


def _mixed(builder, z):
    """SplitMix64's mix, but for the last step, which leaves the upper 32 bits as they are."""
    for shift, factor in ((30, masks.MIX_1), (27, masks.MIX_2)):
        moved = builder.lshr(z, _constants([shift] * _HALF))
        z = builder.mul(builder.xor(z, moved), _constants([factor] * _HALF))
    return builder.bitcast(z, lanes(INT32))


def _over_draws(builder, n, position, key, keep):
    """``keep(loop, k, drawn)`` for each vector: the upper ``CHANCE_BITS`` of its elements' draws.

    A draw is made of ``key`` (uint64) and the element's place, the first one's ``position``.
    """
    gamma = INT(masks.GAMMA)
    first = builder.add(key, builder.mul(builder.add(position, INT(1)), gamma))
    loop = Loop(builder, n)
    turn = builder.add(first, builder.mul(loop.index, gamma))
    for k in range(TURN // LANES):
        start = builder.add(turn, INT(LANES * k * masks.GAMMA & ((1 << 64) - 1)))
        start = _spread_long(builder, start)
        halves = [
            _mixed(builder, builder.add(start, _constants([p * masks.GAMMA for p in part])))
            for part in _PLACES
        ]
        upper = builder.shuffle_vector(*halves, ir.Constant(lanes(INT32), _UPPER))
        keep(loop, k, builder.lshr(upper, constant(INT32, 32 - masks.CHANCE_BITS)))
    loop.end()


@intrinsic
def draw_bits(context, n, position, key, out):
    """``out`` (int32): the upper ``CHANCE_BITS`` of ``n`` draws, a multiple of ``TURN``."""

    def generate(context, builder, signature, args):
        n, position, key, out = args

        def keep(loop, k, drawn):
            loop.store(drawn, out, INT32, 4, k)

        _over_draws(builder, n, position, key, keep)
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(int64, int64, types.uint64, int64), generate


@intrinsic
def decide(context, drawn, n, lowest, highest, kept, undecided):
    """``kept`` (uint8): whether each of ``n`` int32 is below ``lowest``, a multiple of ``TURN``.

    Stores the places of those from there to below ``highest`` at ``undecided`` (uint32), and
    returns how many they are.
    """

    def generate(context, builder, signature, args):
        drawn, n, lowest, highest, kept, undecided = args
        lowest, highest = spread(builder, lowest), spread(builder, highest)
        loop = Loop(builder, n, [INT(0)])
        (count,) = loop.totals
        which = INT(0)
        for k in range(TURN // LANES):
            value = loop.load(drawn, INT32, 4, k)
            below = builder.icmp_signed("<", value, lowest)
            loop.store(builder.zext(below, lanes(BYTE)), kept, BYTE, 1, k)
            between = builder.and_(builder.icmp_signed("<", value, highest), builder.not_(below))
            bits = mask_bits(builder, between)
            which = builder.or_(which, builder.shl(bits, INT(LANES * k)))
        count = _store_places(builder, which, loop.index, undecided, count)
        (count,) = loop.end([count])
        return count

    int64, int32 = types.int64, types.int32
    return int64(int64, int64, int32, int32, int64, int64), generate


def _store_places(builder, which, start, out, count):
    """Stores ``start + k`` (uint32) for every bit ``k`` of ``which``, after the first ``count``."""
    before = builder.block
    some, done = builder.append_basic_block("some"), builder.append_basic_block("none")
    builder.cbranch(builder.icmp_unsigned("!=", which, INT(0)), some, done)
    builder.position_at_end(some)
    left, at = builder.phi(INT), builder.phi(INT)
    first = called(builder, "cttz.i64", INT, [left, ir.Constant(ir.IntType(1), 1)])
    place = builder.trunc(builder.add(start, first), INT32)
    builder.store(place, pointer_at(builder, out, INT32, at))
    following = builder.add(at, INT(1))
    rest = builder.and_(left, builder.sub(left, INT(1)))
    for phi, now, later in ((left, which, rest), (at, count, following)):
        phi.add_incoming(now, before)
        phi.add_incoming(later, some)
    builder.cbranch(builder.icmp_unsigned("!=", rest, INT(0)), some, done)
    builder.position_at_end(done)
    found = builder.phi(INT)
    found.add_incoming(count, before)
    found.add_incoming(following, some)
    return found


@intrinsic
def keep_drawn(context, values, n, position, key, limit, out):
    """``n`` float32 ``values``, zeros where a draw's upper bits are not below ``limit``.

    ``out`` is no part of ``values``: in place, LLVM would store with a mask, which takes some
    processors ten times as long. ``n``: a multiple of ``TURN``; ``limit``: int32, below
    ``2**CHANCE_BITS``.
    """

    def generate(context, builder, signature, args):
        values, n, position, key, limit, out = args
        limit, zero = spread(builder, limit), constant(FLOAT, 0.0)

        def keep(loop, k, drawn):
            kept = builder.icmp_signed("<", drawn, limit)
            value = loop.load(values, FLOAT, 4, k)
            loop.store(builder.select(kept, value, zero), out, FLOAT, 4, k)

        _over_draws(builder, n, position, key, keep)
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(int64, int64, int64, types.uint64, types.int32, int64), generate


def _keep_each(unbiased: bool):
    @intrinsic
    def keep_each(context, values, n, position, key, chances, out):
        """:func:`keep_drawn` with a chance (float32) of each element's own, divided by it if
        ``unbiased``."""

        def generate(context, builder, signature, args):
            values, n, position, key, chances, out = args
            unit, zero = constant(FLOAT, 2.0**-masks.CHANCE_BITS), constant(FLOAT, 0.0)

            def keep(loop, k, drawn):
                value, chance = (loop.load(row, FLOAT, 4, k) for row in (values, chances))
                below = builder.fmul(builder.sitofp(drawn, lanes(FLOAT)), unit)
                kept = builder.fcmp_ordered("<", below, chance)
                value = builder.fdiv(value, chance) if unbiased else value
                loop.store(builder.select(kept, value, zero), out, FLOAT, 4, k)

            _over_draws(builder, n, position, key, keep)
            return context.get_dummy_value()

        int64 = types.int64
        return types.void(int64, int64, int64, types.uint64, int64, int64), generate

    return keep_each


keep_each, keep_each_unbiased = _keep_each(False), _keep_each(True)


def _add_drawn(name: str):
    @intrinsic
    def add_drawn(context, row, n, base, position, key, limit, sizes, kept, ahead):
        """Adds the magnitudes of ``n`` differences to ``sizes`` and, of those that
        :func:`keep_drawn` keeps, to ``kept`` (both float64)."""

        def generate(context, builder, signature, args):
            row, n, base, position, key, limit, sizes, kept, ahead = args
            limit, zero = spread(builder, limit), ir.Constant(lanes(DOUBLE), [0.0] * LANES)

            def keep(loop, k, drawn):
                if k == 0:
                    loop.fetch(row, name, ahead)
                value, _ = difference(builder, loop, row, name, base, k)
                size = magnitude(builder, value)
                chosen = builder.select(builder.icmp_signed("<", drawn, limit), size, zero)
                for columns, term in ((sizes, size), (kept, chosen)):
                    total = builder.fadd(loop.load(columns, DOUBLE, 8, k), term)
                    loop.store(total, columns, DOUBLE, 8, k)

            _over_draws(builder, n, position, key, keep)
            return context.get_dummy_value()

        int64 = types.int64
        given = (int64, int64, int64, int64, types.uint64, types.int32, int64, int64, int64)
        return types.void(*given), generate

    return add_drawn


ADD_DRAWN = {name: _add_drawn(name) for name in STORED}


def _spread_long(builder, scalar):
    nothing = ir.Constant(_LONGS, ir.Undefined)
    first = builder.insert_element(nothing, scalar, INT32(0))
    return builder.shuffle_vector(
        first, nothing, ir.Constant(ir.VectorType(INT32, _HALF), [0] * _HALF)
    )
