"""The innermost loops of Gram matrices and distances: 4 rows widened, 4 x 4 pairs in registers.

Written as LLVM vectors of 8 doubles with explicit fused multiply-adds, so the order of every sum is
fixed here and not by a compiler's vectoriser: the bits are the same on every processor.
"""

from __future__ import annotations

from llvmlite import binding, ir

from wkernels.cpu.alike import NAMES
from wkernels.cpu.parts import cgutils, intrinsic, types
from wkernels.cpu.row_sums import starts_of
from wkernels.cpu.vectors import DOUBLE, FLOAT, STORED, TURN, Loop, fetch, lanes
from wkernels.cpu.vectors import LANES as FLOAT_LANES

SIDE = 4
"""Rows on each side of a tile: 16 accumulators and 8 operands fill 24 of 32 vector registers."""

LANES = 8
"""Doubles in a vector; rows are padded with zeros to a multiple of it."""

_INT = ir.IntType(64)

Pairs = list[tuple[int, int]]


def _portions(pairs: Pairs) -> list[tuple[Pairs, int, int]]:
    """What there are registers for at the same time: pairs, a vector's first double, how many.

    Every lane of every pair is a sum of its own, so that this changes no bits. Where registers hold
    4 doubles there are 16 of them, and accumulators that they cannot hold wait for memory.
    """
    if binding.get_host_cpu_features().get("avx512f"):
        return [(pairs, 0, LANES)]
    groups = [pairs]
    if len(pairs) > 10:
        groups = [[pair for pair in pairs if pair[0] // 2 == k] for k in range(SIDE // 2)]
    return [(group, first, LANES // 2) for group in groups for first in (0, LANES // 2)]


def _vector(n: int) -> ir.VectorType:
    return ir.VectorType(DOUBLE, n)


def _called(builder, name: str, *arguments):
    kind = arguments[0].type
    signature = ir.FunctionType(kind, [kind] * len(arguments))
    name = f"llvm.{name}.v{kind.count}f64"
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def _step(builder, op: str, a, b, total):
    """``total`` plus one vector of products or differences."""
    if op == "dot":
        return _called(builder, "fma", a, b, total)
    difference = builder.fsub(a, b)
    if op == "l2":
        return _called(builder, "fma", difference, difference, total)
    return builder.fadd(total, _called(builder, "fabs", difference))


def _place(builder, out, row_bytes, row: int, column: int, first: int, n: int):
    """Pointer to lanes ``first`` to ``first + n`` of a pair in ``out[rows, columns, LANES]``."""
    address = builder.add(out, builder.mul(row_bytes, _INT(row)))
    address = builder.add(address, _INT(8 * (LANES * column + first)))
    return builder.inttoptr(address, _vector(n).as_pointer())


def _sum_portion(builder, op: str, portion, args, *, fetching: bool) -> None:
    pairs, first, n = portion
    a, b, row_bytes, n_bytes, out, out_row_bytes, soon, later = args
    places = [_place(builder, out, out_row_bytes, *pair, first, n) for pair in pairs]
    so_far = [builder.load(place) for place in places]
    for total in so_far:
        total.align = 8
    entry = builder.block
    loop = builder.append_basic_block("columns")
    done = builder.append_basic_block("sums")
    builder.branch(loop)
    builder.position_at_end(loop)
    offset = builder.phi(_INT)
    totals = [builder.phi(_vector(n)) for _ in pairs]
    if fetching:
        half = builder.lshr(offset, _INT(1))
        for row in (soon, later):
            fetch(builder, builder.add(row, half))

    def load(base, row):
        start = builder.add(base, _INT(8 * first))
        address = builder.add(builder.add(start, offset), builder.mul(row_bytes, _INT(row)))
        vector = builder.load(builder.inttoptr(address, _vector(n).as_pointer()))
        vector.align = 8
        return vector

    rows = {row: load(a, row) for row in {row for row, _ in pairs}}
    columns = {column: load(b, column) for column in {column for _, column in pairs}}
    sums = [
        _step(builder, op, rows[row], columns[column], total)
        for (row, column), total in zip(pairs, totals, strict=True)
    ]
    following = builder.add(offset, _INT(8 * LANES))
    offset.add_incoming(_INT(0), entry)
    offset.add_incoming(following, loop)
    for total, start, summed in zip(totals, so_far, sums, strict=True):
        total.add_incoming(start, entry)
        total.add_incoming(summed, loop)
    builder.cbranch(builder.icmp_signed("<", following, n_bytes), loop, done)
    builder.position_at_end(done)
    for place, summed in zip(places, sums, strict=True):
        builder.store(summed, place).align = 8


def _tile(op: str, pairs: Pairs):
    @intrinsic
    def tile(context, a, b, row_bytes, n_bytes, out, out_row_bytes, soon, later):
        """Adds to ``out[4, 4, LANES]`` the sums over ``n_bytes`` of pairs of 4 rows at ``a`` and
        at ``b``, each lane's apart: adding up lanes takes longer than a short row's products.

        All arguments are int64: addresses and sizes in bytes. Nothing is assumed about alignment
        beyond that of a double. ``soon`` and ``later`` are stored rows to fetch meanwhile, half as
        many bytes of each as the tile reads of a row: the arithmetic leaves memory idle.
        """

        def generate(context, builder, signature, args):
            for number, portion in enumerate(_portions(pairs)):
                _sum_portion(builder, op, portion, args, fetching=number == 0)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return tile


_ALL = [(row, column) for row in range(SIDE) for column in range(SIDE)]

tile_dot, tile_l2, tile_l1 = (_tile(op, _ALL) for op in ("dot", "l2", "l1"))

tile_dot_upper = _tile("dot", [(row, column) for row, column in _ALL if row <= column])
"""For the rows with themselves: only the upper triangle of ``out``."""


def _widen(name: str, based: bool):
    @intrinsic
    def widen(context, rows, first, n, base, out, out_row_bytes):
        """``out[i] = row i``, less ``base`` if ``based``, for ``SIDE`` rows of one type.

        ``n`` elements (a multiple of ``TURN``) from ``first`` on; ``rows`` points to the rows'
        addresses, ``base`` and the difference are float32, ``out`` is float64.
        """

        def generate(context, builder, signature, args):
            rows, first, n, base, out, out_row_bytes = args
            starts = starts_of(builder, rows, first, name, SIDE)
            outs = [builder.add(out, builder.mul(out_row_bytes, _INT(i))) for i in range(SIDE)]
            loop = Loop(builder, n)
            for k in range(TURN // FLOAT_LANES):
                origin = loop.load(base, FLOAT, 4, k) if based else None
                for start, place in zip(starts, outs, strict=True):
                    value = loop.load_row(start, name, k)
                    if origin is not None:
                        value = builder.fsub(value, origin)
                    loop.store(builder.fpext(value, lanes(DOUBLE)), place, DOUBLE, 8, k)
            loop.end()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return widen


WIDENS = {(name, based): _widen(name, based) for name in STORED for based in (False, True)}
"""A call for four rows, not one: their slices and types would cost as much as their elements."""


@intrinsic(prefer_literal=True)
def dot_alike(context, like, n_rows, rows, first, n, base, out, out_row_bytes, ahead):
    """``out[i, j, lane]``: what ``tile_dot_upper`` would add to zeros for up to ``SIDE`` rows.

    ``like``, ``n_rows`` (a literal), ``rows``, ``first``, ``n`` (a multiple of ``TURN``), ``base``
    and ``ahead`` are those of ``alike.add_rows``. The rows are taken as they are stored, widened
    and multiplied in registers: through memory, that takes twice as long as the products.
    """

    def generate(context, builder, signature, args):
        _, _, rows, first, n, origin, out, out_row_bytes, ahead = args
        name, side = NAMES[str(like.dtype)], n_rows.literal_value
        pairs = [(i, j) for i, j in _ALL if i <= j < side]
        starts = starts_of(builder, rows, first, name, side)
        given = starts if base is types.none else [*starts, origin]
        for number, (group, lane, width) in enumerate(_portions(pairs)):
            loop = Loop(builder, n, [ir.Constant(_vector(width), [0.0] * width)] * len(group))
            totals = loop.totals
            if number == 0:
                for start in given:
                    loop.fetch(start, name, ahead)
            for k in range(TURN // FLOAT_LANES):
                for half in range(FLOAT_LANES // LANES):
                    at = half * LANES + lane
                    values = [loop.load_part(start, name, k, at, width) for start in given]
                    if base is not types.none:
                        values = [builder.fsub(value, values[-1]) for value in values[:-1]]
                    wide = [builder.fpext(value, _vector(width)) for value in values]
                    totals = [
                        _step(builder, "dot", wide[i], wide[j], total)
                        for (i, j), total in zip(group, totals, strict=True)
                    ]
            for pair, total in zip(group, loop.end(totals), strict=True):
                place = _place(builder, out, out_row_bytes, *pair, lane, width)
                builder.store(total, place).align = 8
        return context.get_dummy_value()

    three = [types.int64] * 3
    return types.void(like, n_rows, *three, base, *three), generate
