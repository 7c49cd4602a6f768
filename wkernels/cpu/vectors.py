"""Loops over checkpoints as LLVM vectors, 64 elements a turn, and those that read rows.

Plain loops leave memory idle while they compute: the processor's own prefetcher stops at each row
and page, and a zoo's block is a short piece of every row. So each turn asks for the memory that the
same row will need later. On two Zen 4 cores (8 rows of bfloat16, weighted sum) that brought 11-17
GB/s to 26 GB/s, where copying ran at 30. It must go to the second-level cache: to the first, it
displaced the accumulators (16 GB/s). Nothing is faulted in: a prefetch past the end of a row is
ignored.

Element ``k`` is computed the same way here and in the scalar tails of ``elements``. Arguments named
after memory are int64 addresses, aligned to their elements.
"""

from __future__ import annotations

from llvmlite import ir

from wkernels.cpu.parts import cgutils, intrinsic, types

TURN = 64
"""Elements a turn; callers do what is left over."""

LANES = 16
_LINE = 64  # bytes fetched by one prefetch
INT, INT32, INT16, BYTE = (ir.IntType(bits) for bits in (64, 32, 16, 8))
FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()


def lanes(element):
    return ir.VectorType(element, LANES)


STORED = {"float32": FLOAT, "bfloat16": INT16, "float16": INT16}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def lines(name: str):
    """``(line, its vectors)`` for each cache line that a turn takes of a row of the type."""
    width = _LINE // (LANES * BYTES[name])
    for line in range(TURN * BYTES[name] // _LINE):
        yield line, range(line * width, (line + 1) * width)


def _to_float32(builder, stored, name: str):
    n = stored.type.count
    floats, integers = (ir.VectorType(element, n) for element in (FLOAT, INT32))
    if name == "bfloat16":
        wide = builder.zext(stored, integers)
        shifted = builder.shl(wide, ir.Constant(integers, [16] * n))
        return builder.bitcast(shifted, floats)
    if name == "float16":
        halves = ir.VectorType(ir.HalfType(), n)
        return builder.fpext(builder.bitcast(stored, halves), floats)
    return stored


def fetch(builder, address) -> None:
    """Ask for the cache line at an address, into the second level; never fails."""
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(ir.VoidType(), [BYTE.as_pointer(), INT32, INT32, INT32]),
        "llvm.prefetch.p0",
    )
    second_level = [INT32(0), INT32(2), INT32(1)]  # read, locality, data
    builder.call(function, [builder.inttoptr(address, BYTE.as_pointer()), *second_level])


class Loop:
    """The body of a loop over ``n`` elements, ``TURN`` at a time; ``n`` may be 0."""

    def __init__(self, builder, n, carried=()):
        self.builder = builder
        self.carried = list(carried)  # constants that totals start from
        self._entry = builder.block
        self._body = builder.append_basic_block("turn")
        self._done = builder.append_basic_block("done")
        self._n = n
        builder.cbranch(builder.icmp_signed(">", n, INT(0)), self._body, self._done)
        builder.position_at_end(self._body)
        self.index = builder.phi(INT)
        self.totals = [builder.phi(first.type) for first in self.carried]

    def place(self, start, element, size: int, k: int, vector=None):
        """Pointer to vector ``k`` of this turn in the array of ``element`` at ``start``, as one to
        ``vector`` if that is another type."""
        builder = self.builder
        address = builder.add(start, builder.mul(self.index, INT(size)))
        address = builder.add(address, INT(k * size * LANES))
        return builder.inttoptr(address, (vector or lanes(element)).as_pointer())

    def load(self, start, element, size: int, k: int):
        loaded = self.builder.load(self.place(start, element, size, k))
        loaded.align = size
        return loaded

    def load_row(self, row, name: str, k: int):
        """Vector ``k`` of a stored row, as float32."""
        return _to_float32(self.builder, self.load(row, STORED[name], BYTES[name], k), name)

    def load_part(self, row, name: str, k: int, first: int, n: int):
        """Elements ``first`` to ``first + n`` of that vector."""
        element, size = STORED[name], BYTES[name]
        start = self.builder.add(row, INT(first * size))
        loaded = self.builder.load(self.place(start, element, size, k, ir.VectorType(element, n)))
        loaded.align = size
        return _to_float32(self.builder, loaded, name)

    def load_line(self, row, name: str, line: int):
        """A cache line's worth of a stored row, as float32 vectors.

        Those of bfloat16 hold the even and the odd elements: a shift and a mask, where a load, a
        shuffle and a shift for each vector would keep the order.
        """
        builder = self.builder
        if name != "bfloat16":
            return [self.load_row(row, name, k) for k in dict(lines(name))[line]]
        pairs = builder.load(self.place(row, INT16, 2, 2 * line, lanes(INT32)))
        pairs.align = 2
        even = builder.shl(pairs, ir.Constant(lanes(INT32), [16] * LANES))
        odd = builder.and_(pairs, ir.Constant(lanes(INT32), [0xFFFF0000] * LANES))
        return [builder.bitcast(half, lanes(FLOAT)) for half in (even, odd)]

    def store(self, value, start, element, size: int, k: int, *, bypass: bool = False) -> None:
        """``bypass``: past the caches, as nothing will read it soon; the place must be aligned to
        the whole vector."""
        stored = self.builder.store(value, self.place(start, element, size, k, value.type))
        stored.align = _LINE if bypass else size
        if bypass:
            module = self.builder.module
            stored.set_metadata("nontemporal", module.add_metadata([INT32(1)]))

    def fetch(self, row, name: str, ahead) -> None:
        """Ask for what the row holds ``ahead`` elements further on than this turn."""
        builder = self.builder
        later = builder.add(self.index, ahead)
        first = builder.add(row, builder.mul(later, INT(BYTES[name])))
        for line in range(TURN * BYTES[name] // _LINE):
            fetch(builder, builder.add(first, INT(line * _LINE)))

    def end(self, totals=()):
        """Close the loop; returns the totals after it."""
        builder = self.builder
        advanced = builder.add(self.index, INT(TURN))
        last = builder.block  # of the body, which may have loops of its own
        for phi, first, later in zip(
            [self.index, *self.totals],
            [INT(0), *self.carried],
            [advanced, *totals],
            strict=True,
        ):
            phi.add_incoming(first, self._entry)
            phi.add_incoming(later, last)
        builder.cbranch(builder.icmp_signed("<", advanced, self._n), self._body, self._done)
        builder.position_at_end(self._done)
        results = [builder.phi(first.type) for first in self.carried]
        for result, first, later in zip(results, self.carried, totals, strict=True):
            result.add_incoming(first, self._entry)
            result.add_incoming(later, last)
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
            loop = Loop(builder, n)
            loop.fetch(row, name, ahead)
            for k in range(TURN // LANES):
                value = loop.load_row(row, name, k)
                if action == "centre":
                    value = builder.fsub(value, loop.load(base, FLOAT, 4, k))
                if action == "read":
                    loop.store(value, out, FLOAT, 4, k)
                else:
                    loop.store(builder.fpext(value, lanes(DOUBLE)), out, DOUBLE, 8, k)
            loop.end()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), generate

    return read


READS = {
    (name, action): _read(name, action) for name in STORED for action in ("read", "centre", "widen")
}
