"""Kernels for the CPU, and the few machine operations that numba does not name.

The first use of a kernel with arguments of some types compiles it (a second or two); the machine
code is kept on disk, and later processes load it without numba.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterable
from operator import index
from threading import Lock
from typing import Any

import numpy as np
from llvmlite import ir

from wkernels.cpu import machine_code
from wkernels.cpu.parts import Part, arrayobj, intrinsic, types

Kind = str | tuple[str, int] | tuple[type, tuple["Kind", ...]]
"""Of an argument: a type's name; an array's dtype and number of axes; a named tuple's class and the
kinds of its items."""

START, STOP = object(), object()
"""See :meth:`Kernel.over`."""

_compiling = Lock()


class Kernel:
    """A function in numba's Python that is compiled, and runs without Python's lock.

    Arguments: contiguous arrays, ints (``np.uint64`` stays what it is), floats, bools, None, and
    named tuples of these. Returns an int or None.
    """

    def __init__(self, function: Callable, *, bare: bool = False) -> None:
        self._function, self._bare = function, bare
        self._name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        self._loaded: dict[tuple[Kind, ...], machine_code.Function] = {}
        self.__doc__ = function.__doc__

    def __call__(self, *arguments: Any) -> Any:
        words: list[int] = []
        kinds = self._packed(arguments, words)
        function = self._loaded.get(kinds) or self._load(kinds)
        return function((ctypes.c_int64 * len(words))(*words))

    def over(self, *arguments: Any) -> Callable[[int, int], Any]:
        """The call as a function of two of its arguments, that are ``START`` and ``STOP`` here; the
        others are packed once. For several threads."""
        words: list[int] = []
        kinds: list[Kind] = []
        places = {START: 0, STOP: 0}
        for argument in arguments:
            if argument is START or argument is STOP:
                places[argument], argument = len(words), 0
            kinds += self._packed((argument,), words)
        function = self._loaded.get(tuple(kinds)) or self._load(tuple(kinds))
        packed = (ctypes.c_int64 * len(words))(*words)
        first, last = places[START], places[STOP]

        def call(start: int, stop: int, _held: Any = arguments) -> Any:
            own = type(packed).from_buffer_copy(packed)
            own[first], own[last] = start, stop
            return function(own)

        return call

    def _packed(self, arguments: Iterable[Any], words: list[int]) -> tuple[Kind, ...]:
        """Adds to ``words`` an array's address and shape, a tuple's items, another's value."""
        kinds: list[Kind] = []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                if not argument.flags.c_contiguous:
                    raise TypeError(f"{self._name}: an array is not contiguous")
                kinds.append((argument.dtype.str, argument.ndim))
                words += (argument.__array_interface__["data"][0], *argument.shape)
            elif isinstance(argument, tuple):
                kinds.append((type(argument), self._packed(argument, words)))
            elif argument is None:
                kinds.append("None")
            elif isinstance(argument, (bool, np.bool_)):
                kinds.append("bool")
                words.append(int(argument))
            elif isinstance(argument, float):
                kinds.append("float")
                words.append(struct.unpack("q", struct.pack("d", argument))[0])
            else:
                kinds.append("uint" if isinstance(argument, np.uint64) else "int")
                words.append(index(argument))
        return tuple(kinds)

    def _load(self, kinds: tuple[Kind, ...]) -> machine_code.Function:
        with _compiling:
            if kinds not in self._loaded:
                code = machine_code.load(self._name, kinds)
                if code is None:
                    from wkernels.cpu.compiling import compiled  # numba: where it must be

                    code = compiled(self._function, kinds, bare=self._bare)
                    machine_code.keep(self._name, kinds, code)
                self._loaded[kinds] = machine_code.Function(code)
            return self._loaded[kinds]


def kernel(function: Callable) -> Kernel:
    """See :class:`Kernel`."""
    return Kernel(function)


def bare_kernel(function: Callable) -> Kernel:
    """A kernel that allocates nothing: its work areas are arguments. See ``parts.inner``."""
    return Kernel(function, bare=True)


@intrinsic
def array_at(context, address, n, dtype):
    """The ``n`` elements at an address (int64), as an array that somebody else holds."""
    array = types.Array(dtype.dtype, 1, "C")

    def generate(context, builder, signature, args):
        element = context.get_data_type(array.dtype)
        itemsize = context.get_constant(types.intp, context.get_abi_sizeof(element))
        result = arrayobj.make_array(array)(context, builder)
        arrayobj.populate_array(
            result,
            data=builder.inttoptr(args[0], result.data.type),
            shape=[args[1]],
            strides=[itemsize],
            itemsize=itemsize,
            meminfo=None,
        )
        return result._getvalue()

    return array(types.int64, types.int64, dtype), generate


@intrinsic
def fma(context, a, b, c):
    """``a * b + c`` with one rounding. The inputs must have one type."""

    def generate(context, builder, signature, args):
        return builder.fma(*args)

    return a(a, a, a), generate


def _bitcast(source: str, target: str) -> Part:
    @intrinsic
    def cast(context, value):
        to = getattr(types, target)

        def generate(context, builder, signature, args):
            return builder.bitcast(args[0], context.get_value_type(to))

        return to(getattr(types, source)), generate

    return cast


float32_from_bits = _bitcast("uint32", "float32")
bits_of_float32 = _bitcast("float32", "uint32")


@intrinsic
def float32_from_half(context, bits):
    """The float32 value of a float16 given by its bits: exact."""

    def generate(context, builder, signature, args):
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), generate


@intrinsic
def half_from_float32(context, value):
    """The bits of the float16 nearest to a float32, ties to even."""

    def generate(context, builder, signature, args):
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), generate
