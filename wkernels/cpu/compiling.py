"""Compiles kernels by numba, for the types of their arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import carray, types
from numba.core.compiler import Flags, compile_extra
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.extending import typeof_impl

from wkernels.cpu.jit import Kind
from wkernels.cpu.machine_code import MachineCode
from wkernels.cpu.parts import Part, compiled_into, intrinsic


@typeof_impl.register(Part)
def _type_of_part(part, context):
    real = part.real
    cpu_target.typing_context.refresh()  # it learns of new intrinsics
    return cpu_target.typing_context.resolve_value_type(real)


@intrinsic
def _pointer(context, address):
    """``int64 -> void*``, for ``carray``."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


def compiled(function: Callable, kinds: Sequence[Kind], *, bare: bool) -> MachineCode:
    """``function`` for arguments of these kinds, which it takes out of a row of words (see
    ``jit.Kernel``). Raises TypeError if it returns something else than an int or None."""
    entry = _entry(kinds, compiled_into(function, _nrt=not bare))
    flags = Flags()
    flags.nrt = True
    flags.error_model = "numpy"
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    with global_compiler_lock:
        cpu_target.typing_context.refresh()
        cpu_target.target_context.refresh()
        result = compile_extra(
            cpu_target.typing_context, cpu_target.target_context, entry, (types.int64,),
            None, flags, {},
        )  # fmt: skip
        result.library.finalize()
        _, _, (binary, _) = result.library.serialize_using_object_code()
    returned = result.signature.return_type
    if returned not in (types.none, types.int64):
        raise TypeError(f"kernel {function.__name__} returns {returned}; expected int64 or None")
    return MachineCode(result.fndesc.llvm_func_name, returned is not types.none, binary)


def _entry(kinds: Sequence[Kind], kernel: Part) -> Callable:
    """The function that calls the kernel with what it finds at an address."""
    names: dict[str, Any] = {"kernel": kernel, "carray": carray, "pointer": _pointer, "np": np}
    n_words = 0

    def word(row: str = "ints") -> str:
        nonlocal n_words
        n_words += 1
        return f"{row}[{n_words - 1}]"

    def named(thing: object) -> str:
        name = f"of_{len(names)}"
        names[name] = thing
        return name

    def argument(kind: Kind) -> str:
        match kind:
            case str(dtype), int(n_axes):
                address = word()
                shape = "".join(f"{word()}," for _ in range(n_axes))
                return f"carray(pointer({address}), ({shape}), {named(np.dtype(dtype))})"
            case type() as tuples, items:
                return f"{named(tuples)}({', '.join(map(argument, items))})"
            case "int":
                return word()
            case "uint":
                return f"np.uint64({word()})"
            case "bool":
                return f"{word()} != 0"
            case "float":
                return word("floats")
        return "None"

    arguments = ", ".join(map(argument, kinds))
    source = f"""
def entry(words):
    ints = carray(pointer(words), ({n_words},), np.int64)
    floats = carray(pointer(words), ({n_words},), np.float64)
    return kernel({arguments})
"""
    exec(source, names)
    return names["entry"]
