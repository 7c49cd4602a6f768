"""The loops that read and write checkpoints, as LLVM vectors: 64 elements a turn.

Reading fetches one block ahead of its use.

Plain loops leave memory idle while they compute: the processor's own prefetcher stops at each row
and page, and a zoo's block is a short piece of every row. So each turn asks for the memory that the
same row will need later. On two Zen 4 cores (8 rows of bfloat16, weighted sum) that brought 11-17
GB/s to 26 GB/s, where copying ran at 30. It must go to the second-level cache: to the first, it
displaced the accumulators (16 GB/s). Nothing is faulted in: a prefetch past the end of a row is
ignored. Rows of one type are taken up to eight at a time, with their sums in registers: on two Zen
5 cores (copying 43 GB/s) that is 35 GB/s, against 26 one row at a time, and 41 against 30 in
float32.

Element ``k`` is computed the same way here and in the scalar tails of ``elements``. Arguments named
after memory are int64 addresses, aligned to their elements.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

TURN = 64
"""Elements a turn; callers do what is left over."""

_LANES = 16
_LINE = 64  # bytes fetched by one prefetch
_INT, _INT32, _INT16, _BYTE = (ir.IntType(bits) for bits in (64, 32, 16, 8))
_FLOAT, _DOUBLE = ir.FloatType(), ir.DoubleType()


def _lanes(element):
    return ir.VectorType(element, _LANES)


_STORED = {"float32": _FLOAT, "bfloat16": _INT16, "float16": _INT16}
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def _to_float32(builder, stored, name: str):
    if name == "bfloat16":
        wide = builder.zext(stored, _lanes(_INT32))
        shifted = builder.shl(wide, ir.Constant(_lanes(_INT32), [16] * _LANES))
        return builder.bitcast(shifted, _lanes(_FLOAT))
    if name == "float16":
        return builder.fpext(builder.bitcast(stored, _lanes(ir.HalfType())), _lanes(_FLOAT))
    return stored


def fetch(builder, address) -> None:
    """Ask for the cache line at an address, into the second level; never fails."""
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _INT32, _INT32, _INT32]),
        "llvm.prefetch.p0",
    )
    second_level = [_INT32(0), _INT32(2), _INT32(1)]  # read, locality, data
    builder.call(function, [builder.inttoptr(address, _BYTE.as_pointer()), *second_level])


class _Loop:
    """The body of a loop over ``n`` elements, ``TURN`` at a time; ``n`` may be 0."""

    def __init__(self, builder, n, carried=()):
        self.builder = builder
        self.carried = list(carried)  # constants that totals start from
        self._entry = builder.block
        self._body = builder.append_basic_block("turn")
        self._done = builder.append_basic_block("done")
        self._n = n
        builder.cbranch(builder.icmp_signed(">", n, _INT(0)), self._body, self._done)
        builder.position_at_end(self._body)
        self.index = builder.phi(_INT)
        self.totals = [builder.phi(first.type) for first in self.carried]

    def place(self, start, element, size: int, k: int):
        """Pointer to vector ``k`` of this turn in the array of ``element`` at ``start``."""
        builder = self.builder
        address = builder.add(start, builder.mul(self.index, _INT(size)))
        address = builder.add(address, _INT(k * size * _LANES))
        return builder.inttoptr(address, _lanes(element).as_pointer())

    def load(self, start, element, size: int, k: int):
        loaded = self.builder.load(self.place(start, element, size, k))
        loaded.align = size
        return loaded

    def load_row(self, row, name: str, k: int):
        """Vector ``k`` of a stored row, as float32."""
        return _to_float32(self.builder, self.load(row, _STORED[name], _BYTES[name], k), name)

    def store(self, value, start, element, size: int, k: int, *, bypass: bool = False) -> None:
        """``bypass``: past the caches, as nothing will read it soon; the place must be aligned to
        the whole vector."""
        place = self.place(start, element, size, k)
        stored = self.builder.store(value, self.builder.bitcast(place, value.type.as_pointer()))
        stored.align = size * value.type.count if bypass else size
        if bypass:
            module = self.builder.module
            stored.set_metadata("nontemporal", module.add_metadata([_INT32(1)]))

    def fetch(self, row, name: str, ahead) -> None:
        """Ask for what the row holds ``ahead`` elements further on than this turn."""
        builder = self.builder
        later = builder.add(self.index, ahead)
        first = builder.add(row, builder.mul(later, _INT(_BYTES[name])))
        for line in range(TURN * _BYTES[name] // _LINE):
            fetch(builder, builder.add(first, _INT(line * _LINE)))

    def end(self, totals=()):
        """Close the loop; returns the totals after it."""
        builder = self.builder
        advanced = builder.add(self.index, _INT(TURN))
        for phi, first, later in zip(
            [self.index, *self.totals],
            [_INT(0), *self.carried],
            [advanced, *totals],
            strict=True,
        ):
            phi.add_incoming(first, self._entry)
            phi.add_incoming(later, self._body)
        builder.cbranch(builder.icmp_signed("<", advanced, self._n), self._body, self._done)
        builder.position_at_end(self._done)
        results = [builder.phi(first.type) for first in self.carried]
        for result, first, later in zip(results, self.carried, totals, strict=True):
            result.add_incoming(first, self._entry)
            result.add_incoming(later, self._body)
        return results


def _read(name: str, action: str):
    @intrinsic
    def read(context, row, n, base, out, ahead):
        """``read``: out = row. ``centre``: out = row - base. ``widen``: out = row.

        ``out`` is float32 for ``read`` and float64 for the others; ``base`` and the difference
        are float32.
        """

        def generate(context, builder, signature, args):
            row, n, base, out, ahead = args
            loop = _Loop(builder, n)
            loop.fetch(row, name, ahead)
            for k in range(TURN // _LANES):
                value = loop.load_row(row, name, k)
                if action == "centre":
                    value = builder.fsub(value, loop.load(base, _FLOAT, 4, k))
                if action == "read":
                    loop.store(value, out, _FLOAT, 4, k)
                else:
                    loop.store(builder.fpext(value, _lanes(_DOUBLE)), out, _DOUBLE, 8, k)
            loop.end()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return read


READS = {
    (name, action): _read(name, action)
    for name in _STORED
    for action in ("read", "centre", "widen")
}


def _mix(name: str, n_models: int, n_mixes: int):
    @intrinsic
    def mix(context, rows, start, n, base, factors, sums, row_bytes, ahead):
        """``sums[j] += factors[j, i] * (row i - base)``, model after model, one rounding each.

        ``rows`` points to the rows' addresses; ``factors`` is float32 ``[n_mixes, ...]`` and
        ``sums`` float32 ``[n_mixes, n]``, whose rows lie ``row_bytes`` (two int64) apart. A base
        of zeros changes nothing.
        """

        def generate(context, builder, signature, args):
            rows, start, n, base, factors, sums, row_bytes, ahead = args
            factor_bytes, sum_bytes = (builder.extract_value(row_bytes, k) for k in (0, 1))
            nothing = ir.Constant(_lanes(_FLOAT), ir.Undefined)
            zeros = ir.Constant(_lanes(_INT32), [0] * _LANES)

            def value_at(address, element):
                return builder.load(builder.inttoptr(address, element.as_pointer()))

            def spread(address):
                scalar = builder.insert_element(nothing, value_at(address, _FLOAT), _INT32(0))
                return builder.shuffle_vector(scalar, nothing, zeros)

            skipped = builder.mul(start, _INT(_BYTES[name]))
            starts = [
                builder.add(value_at(builder.add(rows, _INT(8 * i)), _INT), skipped)
                for i in range(n_models)
            ]
            outs = [builder.add(sums, builder.mul(sum_bytes, _INT(j))) for j in range(n_mixes)]
            weights = [
                [
                    spread(builder.add(builder.add(factors, builder.mul(factor_bytes, _INT(j))),
                                       _INT(4 * i)))
                    for i in range(n_models)
                ]
                for j in range(n_mixes)
            ]  # fmt: skip
            fma = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(_lanes(_FLOAT), [_lanes(_FLOAT)] * 3),
                f"llvm.fma.v{_LANES}f32",
            )
            loop = _Loop(builder, n)
            for row in starts:
                loop.fetch(row, name, ahead)
            for k in range(TURN // _LANES):
                values = [loop.load_row(row, name, k) for row in starts]
                origin = loop.load(base, _FLOAT, 4, k)
                values = [builder.fsub(value, origin) for value in values]
                for out, scales in zip(outs, weights, strict=True):
                    total = loop.load(out, _FLOAT, 4, k)
                    for value, scale in zip(values, scales, strict=True):
                        total = builder.call(fma, [value, scale, total])
                    loop.store(total, out, _FLOAT, 4, k)
            loop.end()
            return context.get_dummy_value()

        int64 = types.int64
        pair = types.UniTuple(int64, 2)
        return types.void(int64, int64, int64, int64, int64, int64, pair, int64), generate

    return mix


SIDE = 4
"""Mixes taken together: a row is read and converted once for all of them."""

GROUPS = (8, 4, 2, 1)
"""Rows taken together, the largest first: their sums stay in registers meanwhile."""

MIXES = {
    (name, n_models, n_mixes): _mix(name, n_models, n_mixes)
    for name in _STORED
    for n_models in GROUPS
    for n_mixes in (1, SIDE)
}


_ROUNDS_TO_INF = {"float32": 0x7F800000, "bfloat16": 0x7F7F8000, "float16": 0x477FF000}
"""Bits of the least float32 magnitude that is stored as Inf; those of Inf and NaN are above it."""


def _rounded(builder, value, bits, name: str):
    """The bits to store, of values below ``_ROUNDS_TO_INF``."""

    def constant(number):
        return ir.Constant(_lanes(_INT32), [number] * _LANES)

    if name == "float32":
        return value
    if name == "float16":
        return builder.bitcast(builder.fptrunc(value, _lanes(ir.HalfType())), _lanes(_INT16))
    upper = builder.lshr(bits, constant(16))
    # to nearest, ties to even: half a unit less one, and the last bit that is kept
    half = builder.add(constant(0x7FFF), builder.and_(upper, constant(1)))
    return builder.trunc(builder.lshr(builder.add(bits, half), constant(16)), _lanes(_INT16))


def _joined(builder, low, high):
    """Two vectors as one of twice the lanes."""
    both = ir.Constant(ir.VectorType(_INT32, 2 * _LANES), list(range(2 * _LANES)))
    return builder.shuffle_vector(low, high, both)


def _store(name: str, bypass: bool):
    @intrinsic
    def store(context, values, n, out):
        """Rounds ``n`` float32 (a multiple of ``TURN``) once; returns whether all are finite.

        Where they are not, what was stored counts for nothing. What goes past the caches is not
        seen by other threads before :func:`fence`.
        """

        def generate(context, builder, signature, args):
            values, n, out = args
            magnitude = ir.Constant(_lanes(_INT32), [0x7FFFFFFF] * _LANES)
            loop = _Loop(builder, n, [ir.Constant(_lanes(_INT32), [0] * _LANES)])
            (largest,) = loop.totals
            waiting = None  # half of a cache line
            for k in range(TURN // _LANES):
                value = loop.load(values, _FLOAT, 4, k)
                bits = builder.bitcast(value, _lanes(_INT32))
                above = builder.and_(bits, magnitude)
                larger = builder.icmp_unsigned(">", above, largest)
                largest = builder.select(larger, above, largest)
                stored = _rounded(builder, value, bits, name)
                if _BYTES[name] == 4:
                    loop.store(stored, out, _FLOAT, 4, k, bypass=bypass)
                elif waiting is None:
                    waiting = stored
                else:
                    line = _joined(builder, waiting, stored)
                    loop.store(line, out, _INT16, 2, k - 1, bypass=bypass)
                    waiting = None
            (largest,) = loop.end([largest])
            limit = ir.Constant(_lanes(_INT32), [_ROUNDS_TO_INF[name]] * _LANES)
            finite = builder.icmp_unsigned("<", largest, limit)
            lanes = builder.bitcast(finite, ir.IntType(_LANES))
            return builder.icmp_unsigned("==", lanes, ir.Constant(ir.IntType(_LANES), -1))

        return types.boolean(types.int64, types.int64, types.int64), generate

    return store


STORES = {(name, bypass): _store(name, bypass) for name in _STORED for bypass in (False, True)}


@intrinsic
def fence(context):
    """What was stored past the caches is seen by all from here on.

    Once for all stores: it waits for them, and until then nothing is loaded.
    """

    def generate(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate
