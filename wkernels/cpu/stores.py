"""Writing float32 vectors as the types of checkpoints: rounded once, in whole cache lines."""

from __future__ import annotations

from llvmlite import ir

from wkernels.cpu.parts import intrinsic, types
from wkernels.cpu.vectors import BYTES, FLOAT, INT16, INT32, LANES, STORED, Loop, lanes, lines

_ROUNDS_TO_INF = {"float32": 0x7F800000, "bfloat16": 0x7F7F8000, "float16": 0x477FF000}
"""Bits of the least float32 magnitude that is stored as Inf; those of Inf and NaN are above it."""


def _constant(number: int):
    return ir.Constant(lanes(INT32), [number] * LANES)


def _rounded_to_bfloat16(builder, bits):
    """Of finite float32 values: the upper halves of what comes back are the bits to store."""
    last = builder.and_(builder.lshr(bits, _constant(16)), _constant(1))
    # to nearest, ties to even: half a unit less one, and the last bit that is kept
    return builder.add(bits, builder.add(_constant(0x7FFF), last))


def _joined(builder, low, high):
    """Two vectors as one of twice the lanes."""
    both = ir.Constant(ir.VectorType(INT32, 2 * LANES), list(range(2 * LANES)))
    return builder.shuffle_vector(low, high, both)


def _packed(builder, values, name: str, paired: bool):
    """The cache line to store, of values below ``_ROUNDS_TO_INF``."""
    if name == "float32":
        return values[0]
    if name == "float16":
        halves = [builder.fptrunc(value, lanes(ir.HalfType())) for value in values]
        return _joined(builder, *halves)
    rounded = [
        _rounded_to_bfloat16(builder, builder.bitcast(value, lanes(INT32))) for value in values
    ]
    if paired:
        even = builder.lshr(rounded[0], _constant(16))
        return builder.or_(even, builder.and_(rounded[1], _constant(0xFFFF0000)))
    halves = [builder.trunc(builder.lshr(value, _constant(16)), lanes(INT16)) for value in rounded]
    return _joined(builder, *halves)


class Output:
    """Where the float32 vectors of a loop go: rounded once to the type ``name`` and stored.

    ``bypass``: past the caches, as nothing will read it soon; the place must begin at a cache line,
    and other threads see what is stored only after :func:`fence`. ``paired``: bfloat16 comes as
    ``Loop.load_line`` gives it.
    """

    FIRST = ir.Constant(lanes(INT32), [0] * LANES)
    """What the loop carries from turn to turn: the largest magnitudes so far."""

    def __init__(self, loop: Loop, largest, start, name: str, *, bypass: bool, paired: bool):
        self.largest = largest
        self._loop, self._start, self._name = loop, start, name
        self._bypass, self._paired = bypass, paired

    def put(self, values, line: int) -> None:
        """The vectors that make up a cache line of this turn."""
        builder, name = self._loop.builder, self._name
        for value in values:
            above = builder.and_(builder.bitcast(value, lanes(INT32)), _constant(0x7FFFFFFF))
            larger = builder.icmp_unsigned(">", above, self.largest)
            self.largest = builder.select(larger, above, self.largest)
        packed = _packed(builder, values, name, self._paired)
        k = line * len(values)
        self._loop.store(packed, self._start, STORED[name], BYTES[name], k, bypass=self._bypass)


def all_finite(builder, largest, name: str):
    """Whether nothing of what :class:`Output` stored came out NaN or Inf, as a boolean."""
    finite = builder.icmp_unsigned("<", largest, _constant(_ROUNDS_TO_INF[name]))
    mask = builder.bitcast(finite, ir.IntType(LANES))
    return builder.icmp_unsigned("==", mask, ir.Constant(ir.IntType(LANES), -1))


def _store(name: str, bypass: bool):
    @intrinsic
    def store(context, values, n, out):
        """Rounds ``n`` float32 (a multiple of ``TURN``) once; returns whether all are finite.

        Where they are not, what was stored counts for nothing.
        """

        def generate(context, builder, signature, args):
            values, n, start = args
            loop = Loop(builder, n, [Output.FIRST])
            out = Output(loop, *loop.totals, start, name, bypass=bypass, paired=False)
            for line, vectors in lines(name):
                out.put([loop.load(values, FLOAT, 4, k) for k in vectors], line)
            return all_finite(builder, *loop.end([out.largest]), name)

        return types.boolean(types.int64, types.int64, types.int64), generate

    return store


STORES = {(name, bypass): _store(name, bypass) for name in STORED for bypass in (False, True)}


@intrinsic
def fence(context):
    """What was stored past the caches is seen by all from here on.

    Once for all stores: it waits for them, and until then nothing is loaded.
    """

    def generate(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate
