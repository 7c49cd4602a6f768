"""The loops over differences from a base, as LLVM vectors: masks, elections, 64 a turn.

What they compute element by element is what the plain loops of ``masks``, ``selection`` and
``consensus`` compute, to the bit; those do what is left over, and the types that are not here.
Arguments named after memory are int64 addresses, aligned to their elements.
"""

from __future__ import annotations

from llvmlite import ir

from wkernels.cpu.parts import cgutils, intrinsic, types
from wkernels.cpu.vectors import DOUBLE, FLOAT, INT, INT16, INT32, LANES, STORED, TURN, Loop, lanes

_MAGNITUDE = 0x7FFFFFFF
_INFINITY = 0x7F800000


def constant(element, number):
    return ir.Constant(lanes(element), [number] * LANES)


def spread(builder, scalar):
    """A vector that holds one number in all lanes."""
    nothing = ir.Constant(lanes(scalar.type), ir.Undefined)
    first = builder.insert_element(nothing, scalar, INT32(0))
    return builder.shuffle_vector(first, nothing, constant(INT32, 0))


def called(builder, name: str, result, arguments):
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}")
    return builder.call(function, arguments)


def mask_bits(builder, mask):
    """A vector of booleans as an integer, the first one lowest."""
    return builder.zext(builder.bitcast(mask, ir.IntType(LANES)), INT)


def _fma(builder, a, b, c):
    kind = "f32" if a.type.element == FLOAT else "f64"
    return called(builder, f"fma.v{a.type.count}{kind}", a.type, [a, b, c])


def difference(builder, loop, row, name: str, base, k: int):
    """Vector ``k`` of this turn's differences, and the bits of their magnitudes."""
    value = builder.fsub(loop.load_row(row, name, k), loop.load(base, FLOAT, 4, k))
    bits = builder.bitcast(value, lanes(INT32))
    return value, builder.and_(bits, constant(INT32, _MAGNITUDE))


def loaded(builder, address, element, i):
    """Element ``i`` of an array of numbers."""
    return builder.load(pointer_at(builder, address, element, i))


def pointer_at(builder, address, element, i):
    size = 8 if element in (INT, DOUBLE) else 4
    place = builder.add(address, builder.mul(INT(size), i))
    return builder.inttoptr(place, element.as_pointer())


def _trim(name: str, scored: bool):
    @intrinsic
    def trim(context, row, n, base, scores, limits, out, ahead):
        """``out``: the differences whose magnitude's bits are in ``low < bits <= high``, else 0.

        ``scored``: the bits of the magnitudes of ``scores`` (float32) decide in their place.
        ``limits``: int32 ``low, high``. Returns whether all differences are finite.
        """

        def generate(context, builder, signature, args):
            row, n, base, scores, limits, out, ahead = args
            low, high = (spread(builder, loaded(builder, limits, INT32, INT(k))) for k in (0, 1))
            zero = constant(FLOAT, 0.0)
            loop = Loop(builder, n, [constant(INT32, 0)])
            (largest,) = loop.totals
            loop.fetch(row, name, ahead)
            for k in range(TURN // LANES):
                value, bits = difference(builder, loop, row, name, base, k)
                largest = builder.select(builder.icmp_signed(">", bits, largest), bits, largest)
                if scored:
                    score = loop.load(scores, INT32, 4, k)
                    bits = builder.and_(score, constant(INT32, _MAGNITUDE))
                inside = builder.and_(
                    builder.icmp_signed(">", bits, low), builder.icmp_signed("<=", bits, high)
                )
                loop.store(builder.select(inside, value, zero), out, FLOAT, 4, k)
            (largest,) = loop.end([largest])
            finite = builder.icmp_signed("<", largest, constant(INT32, _INFINITY))
            which = builder.bitcast(finite, ir.IntType(LANES))
            return builder.icmp_unsigned("==", which, ir.Constant(ir.IntType(LANES), -1))

        return types.boolean(*[types.int64] * 7), generate

    return trim


TRIMS = {(name, scored): _trim(name, scored) for name in STORED for scored in (False, True)}


def _add_up(term):
    @intrinsic
    def add_up(context, values, n, columns):
        """``columns`` (float64) plus the terms of ``n`` float32."""

        def generate(context, builder, signature, args):
            values, n, columns = args
            loop = Loop(builder, n)
            for k in range(TURN // LANES):
                added = term(builder, loop.load(values, FLOAT, 4, k))
                total = builder.fadd(loop.load(columns, DOUBLE, 8, k), added)
                loop.store(total, columns, DOUBLE, 8, k)
            loop.end()
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate

    return add_up


def magnitude(builder, value):
    """Of float32, as float64."""
    bits = builder.bitcast(value, lanes(INT32))
    size = builder.bitcast(builder.and_(bits, constant(INT32, _MAGNITUDE)), lanes(FLOAT))
    return builder.fpext(size, lanes(DOUBLE))


def _square(builder, value):
    wide = builder.fpext(value, lanes(DOUBLE))
    return builder.fmul(wide, wide)


add_sizes, add_squares = (_add_up(term) for term in (magnitude, _square))


@intrinsic
def largest_bits(context, bits, n):
    """The largest of ``n`` magnitudes' bits (int32); 0 if there are none."""

    def generate(context, builder, signature, args):
        bits, n = args
        loop = Loop(builder, n, [constant(INT32, 0)])
        (largest,) = loop.totals
        for k in range(TURN // LANES):
            value = loop.load(bits, INT32, 4, k)
            largest = builder.select(builder.icmp_signed(">", value, largest), value, largest)
        (largest,) = loop.end([largest])
        return called(builder, f"vector.reduce.smax.v{LANES}i32", INT32, [largest])

    return types.int32(types.int64, types.int64), generate


@intrinsic
def bucket_keys(context, bits, n, lowest, keys):
    """``keys`` (uint16) of ``n`` magnitudes' bits: ``8 * bucket``, and 1 more if not its first.

    A bucket is the upper half of the bits less ``lowest`` (int32), 0 if that is negative; its
    first number has a lower half of 0, and is 0 itself in bucket 0.
    """

    def generate(context, builder, signature, args):
        bits, n, lowest, keys = args
        zero, half = constant(INT32, 0), constant(INT32, 16)
        lowest = spread(builder, lowest)
        loop = Loop(builder, n)
        for k in range(TURN // LANES):
            value = loop.load(bits, INT32, 4, k)
            bucket = builder.sub(builder.lshr(value, half), lowest)
            above = builder.icmp_signed(">", bucket, zero)
            lower = builder.and_(value, constant(INT32, 0xFFFF))
            odd = builder.icmp_unsigned("!=", builder.select(above, lower, value), zero)
            eightfold = builder.shl(builder.select(above, bucket, zero), constant(INT32, 3))
            key = builder.or_(eightfold, builder.zext(odd, lanes(INT32)))
            loop.store(builder.trunc(key, lanes(INT16)), keys, INT16, 2, k)
        loop.end()
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int32, types.int64), generate


def _over_rows(builder, n_rows, first, step):
    """``totals = step(i, totals)`` for each of ``n_rows`` (at least 1), from ``first`` on."""
    entry = builder.block
    body, done = builder.append_basic_block("row"), builder.append_basic_block("rows")
    builder.branch(body)
    builder.position_at_end(body)
    i = builder.phi(INT)
    totals = [builder.phi(total.type) for total in first]
    results = step(i, totals)
    following = builder.add(i, INT(1))
    for phi, start, later in zip(
        [i, *totals], [INT(0), *first], [following, *results], strict=True
    ):
        phi.add_incoming(start, entry)
        phi.add_incoming(later, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, n_rows), body, done)
    builder.position_at_end(done)
    return results


TOGETHER = 4
"""Vectors of an election: their sums are independent, and fill the time that one's would wait."""


def _join(elect: bool, divide: bool):
    @intrinsic
    def join(context, values, row_bytes, n_rows, n, base, tables, options, out):
        """``out = base + scale * sum_i factor_i v_i / shares`` over the rows that agree.

        ``values``: float32 rows of masked differences, ``row_bytes`` apart. ``tables``: addresses
        (a tuple) of float32 ``factor, vote, share``; ``options``: float32 ``least, undecided,
        scale``. What agrees, and how it is divided, is told in ``masks.Joint``.
        """

        def generate(context, builder, signature, args):
            values, row_bytes, n_rows, n, base, tables, options, out = args
            factors, votes, shares = (builder.extract_value(tables, k) for k in range(3))
            least, undecided, scale = (loaded(builder, options, FLOAT, INT(k)) for k in range(3))
            guarded = builder.fcmp_ordered(">", least, FLOAT(0.0))
            least, undecided, scale = (spread(builder, x) for x in (least, undecided, scale))
            zero, one, minus = (constant(FLOAT, x) for x in (0.0, 1.0, -1.0))
            signs = [FLOAT(x) for x in (0.0, 1.0, -1.0)]
            nobody = ir.Constant(lanes(DOUBLE), [0.0] * LANES)
            loop = Loop(builder, n)

            def number(table, i):
                return spread(builder, loaded(builder, table, FLOAT, i))

            for first in range(0, TURN // LANES, TOGETHER):
                ks = range(first, first + TOGETHER)

                def row_of(i, ks=ks):
                    row = builder.add(values, builder.mul(row_bytes, i))
                    return [loop.load(row, FLOAT, 4, k) for k in ks]

                def poll(i, polls, row_of=row_of):
                    weight = builder.fpext(number(votes, i), lanes(DOUBLE))
                    return [
                        _fma(builder, builder.fpext(value, lanes(DOUBLE)), weight, so_far)
                        for value, so_far in zip(row_of(i), polls, strict=True)
                    ]

                def against(i, row, elected):
                    vote = loaded(builder, votes, FLOAT, i)
                    up, down = (builder.fcmp_ordered(than, vote, FLOAT(0.0)) for than in "><")
                    vote = builder.select(up, signs[1], builder.select(down, signs[2], signs[0]))
                    vote = spread(builder, vote)
                    products = [
                        builder.fmul(value, builder.fmul(vote, sign))
                        for value, sign in zip(row, elected, strict=True)
                    ]
                    return [builder.fcmp_ordered("<=", product, zero) for product in products]

                elected = []
                if elect:
                    for sum_ in _over_rows(builder, n_rows, [nobody] * TOGETHER, poll):
                        up = builder.fcmp_ordered(">", sum_, nobody)
                        down = builder.fcmp_ordered("<", sum_, nobody)
                        sign = builder.select(down, minus, undecided)
                        elected.append(builder.select(up, one, sign))

                def add(i, totals, row_of=row_of, elected=elected, against=against):
                    row = row_of(i)
                    if elect:
                        silent = against(i, row, elected)
                        row = [
                            builder.select(no, zero, value)
                            for no, value in zip(silent, row, strict=True)
                        ]
                    else:
                        silent = [builder.fcmp_ordered("==", value, zero) for value in row]
                    factor = number(factors, i)
                    sums = [
                        _fma(builder, value, factor, so_far)
                        for value, so_far in zip(row, totals[:TOGETHER], strict=True)
                    ]
                    share = number(shares, i)
                    for no, so_far in zip(silent, totals[TOGETHER:], strict=False):
                        sums.append(builder.fadd(so_far, builder.select(no, zero, share)))
                    return sums

                start = [zero] * (2 * TOGETHER if divide else TOGETHER)
                totals = _over_rows(builder, n_rows, start, add)
                for k, total in zip(ks, totals, strict=False):
                    if divide:
                        share = totals[TOGETHER + k - first]
                        small = builder.fcmp_ordered("<", share, least)
                        small = builder.and_(small, spread(builder, guarded))
                        share = builder.select(small, least, share)
                        some = builder.fcmp_unordered("!=", share, zero)
                        total = builder.fdiv(total, builder.select(some, share, one))
                    total = _fma(builder, total, scale, loop.load(base, FLOAT, 4, k))
                    loop.store(total, out, FLOAT, 4, k)
            loop.end()
            return context.get_dummy_value()

        int64 = types.int64
        three = types.UniTuple(int64, 3)
        return types.void(int64, int64, int64, int64, int64, three, int64, int64), generate

    return join


JOINS = {
    (elect, divide): _join(elect, divide) for elect in (False, True) for divide in (False, True)
}
