"""The innermost loops of Gram matrices and distances: 4 x 4 pairs of rows in vector registers.

Written as LLVM vectors of 8 doubles with explicit fused multiply-adds, so the order of every sum is
fixed here and not by a compiler's vectoriser: the bits are the same on every processor.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

SIDE = 4
"""Rows on each side of a tile: 16 accumulators and 8 operands fill 24 of 32 vector registers."""

LANES = 8
"""Doubles in a vector; rows are padded with zeros to a multiple of it."""

_DOUBLE = ir.DoubleType()
_VECTOR = ir.VectorType(_DOUBLE, LANES)
_INT = ir.IntType(64)


def _vector_function(builder, name: str, n_arguments: int):
    signature = ir.FunctionType(_VECTOR, [_VECTOR] * n_arguments)
    return cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.v{LANES}f64")


def _step(builder, op: str, a, b, total):
    """``total`` plus one vector of products or differences."""
    if op == "dot":
        return builder.call(_vector_function(builder, "fma", 3), [a, b, total])
    difference = builder.fsub(a, b)
    if op == "l2":
        return builder.call(_vector_function(builder, "fma", 3), [difference, difference, total])
    return builder.fadd(total, builder.call(_vector_function(builder, "fabs", 1), [difference]))


def _horizontal(builder, vector):
    """Sum of the lanes, halves onto halves."""
    parts = [builder.extract_element(vector, ir.IntType(32)(lane)) for lane in range(LANES)]
    while len(parts) > 1:
        half = len(parts) // 2
        parts = [builder.fadd(parts[k], parts[k + half]) for k in range(half)]
    return parts[0]


def _tile(op: str):
    @intrinsic
    def tile(context, a, b, row_bytes, n_bytes, out, out_row_bytes):
        """Adds to ``out[4, 4]`` the sums over ``n_bytes`` of each of 4 rows at ``a`` and at ``b``.

        All arguments are int64: addresses and sizes in bytes. Nothing is assumed about alignment
        beyond that of a double.
        """

        def generate(context, builder, signature, args):
            a, b, row_bytes, n_bytes, out, out_row_bytes = args

            def load(base, row, offset):
                address = builder.add(builder.add(base, offset), builder.mul(row_bytes, _INT(row)))
                loaded = builder.load(builder.inttoptr(address, _VECTOR.as_pointer()))
                loaded.align = 8
                return loaded

            entry = builder.block
            loop = builder.append_basic_block("columns")
            done = builder.append_basic_block("sums")
            builder.branch(loop)
            builder.position_at_end(loop)
            offset = builder.phi(_INT)
            totals = [builder.phi(_VECTOR) for _ in range(SIDE * SIDE)]
            rows = [load(a, row, offset) for row in range(SIDE)]
            columns = [load(b, column, offset) for column in range(SIDE)]
            sums = [
                _step(builder, op, rows[k // SIDE], columns[k % SIDE], total)
                for k, total in enumerate(totals)
            ]
            following = builder.add(offset, _INT(8 * LANES))
            offset.add_incoming(_INT(0), entry)
            offset.add_incoming(following, loop)
            for total, summed in zip(totals, sums, strict=True):
                total.add_incoming(ir.Constant(_VECTOR, [0.0] * LANES), entry)
                total.add_incoming(summed, loop)
            builder.cbranch(builder.icmp_signed("<", following, n_bytes), loop, done)
            builder.position_at_end(done)
            for k, summed in enumerate(sums):
                address = builder.add(out, builder.mul(out_row_bytes, _INT(k // SIDE)))
                address = builder.add(address, _INT(8 * (k % SIDE)))
                place = builder.inttoptr(address, _DOUBLE.as_pointer())
                builder.store(
                    builder.fadd(builder.load(place), _horizontal(builder, summed)), place
                )
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return tile


tile_dot, tile_l2, tile_l1 = (_tile(op) for op in ("dot", "l2", "l1"))
