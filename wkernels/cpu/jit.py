"""How the CPU kernels are compiled, and the few machine operations that numba does not name.

The first use of a kernel compiles it (a second or two); the machine code is kept on disk, in a
folder named after the sources of this package, so that a changed source is never run from an old
cache (numba itself looks at one file only).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np import arrayobj

_HERE = Path(__file__).parent


def _cache_folder() -> str:
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(_HERE.glob("*.py")):
        digest.update(source.read_bytes())
    name = f"wkernels-{digest.hexdigest()[:16]}"
    if numba.config.CACHE_DIR:
        return str(Path(numba.config.CACHE_DIR) / name)
    if os.access(_HERE, os.W_OK):
        return str(_HERE / "__pycache__" / name)
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    if os.access(Path(user).parent, os.W_OK):
        return str(Path(user) / "wkernels" / name)
    return str(Path(tempfile.gettempdir()) / f"wkernels-{os.getuid()}" / name)


_CACHE_FOLDER = _cache_folder()


def kernel(function):
    """Compile ``function`` without Python's lock held, and keep the machine code on disk."""
    return _kept(function, counted=True)


def bare_kernel(function):
    """A kernel that allocates nothing: its work areas are arguments. See :func:`inner`."""
    return _kept(function, counted=False)


def _kept(function, *, counted: bool):
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, _CACHE_FOLDER
    try:
        compiled = numba.njit(nogil=True, cache=True, error_model="numpy", _nrt=counted)(function)
    finally:
        numba.config.CACHE_DIR = before
    one_at_a_time(compiled._cache._cache_file)
    return compiled


def one_at_a_time(cache) -> None:
    """Let one process at a time add machine code to a kernel's cache.

    numba counts a kernel's files, so that two processes that compile it at once, for different
    types, would give theirs one name, and run each other's.
    """
    save = cache.save

    def locked(key, data) -> None:
        with open(Path(cache._cache_path) / "lock", "w") as lock:  # noqa: PTH123
            fcntl.flock(lock, fcntl.LOCK_EX)
            save(key, data)

    cache.save = locked


def inner(function):
    """Compile ``function`` into the kernels that call it.

    It allocates nothing, so that it need not count who holds an array: counting is atomic, and took
    most of the time of loops over short slices.
    """
    return numba.njit(nogil=True, error_model="numpy", _nrt=False)(function)


def inlined(function):
    """The same, never called: for what takes many arrays, whose passing takes time, a few times."""
    return numba.njit(nogil=True, error_model="numpy", _nrt=False, forceinline=True)(function)


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


def _bitcast(source, target):
    @intrinsic
    def cast(context, value):
        def generate(context, builder, signature, args):
            return builder.bitcast(args[0], context.get_value_type(target))

        return target(source), generate

    return cast


float32_from_bits = _bitcast(types.uint32, types.float32)
bits_of_float32 = _bitcast(types.float32, types.uint32)


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
