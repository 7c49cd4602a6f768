"""What kernels are made of, without numba: it is imported when a kernel has to be compiled.

Importing numba takes longer than reading and adding gigabytes, and kernels that were compiled once
need it no more (``machine_code``). So the modules that define kernels name what they need of it
here; ``compiling`` makes it real.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from typing import Any


class Later:
    """A module that is imported when something of it is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


numba = Later("numba")
types = Later("numba.core.types")
cgutils = Later("numba.core.cgutils")
arrayobj = Later("numba.np.arrayobj")


class Part:
    """Stands in a kernel for something of numba's that its compiler knows how to call."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    @cached_property
    def real(self) -> Any:
        return self._make()


def inner(function: Callable) -> Part:
    """Compile ``function`` into the kernels that call it.

    It allocates nothing, so that it need not count who holds an array: counting is atomic, and took
    most of the time of loops over short slices.
    """
    return compiled_into(function, _nrt=False)


def inlined(function: Callable) -> Part:
    """The same, never called: for what takes many arrays, whose passing takes time, a few times."""
    return compiled_into(function, _nrt=False, forceinline=True)


def compiled_into(function: Callable, **options: bool) -> Part:
    """numba's function, with these of its options; Python cannot call it."""
    options |= {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return Part(lambda: numba.njit(error_model="numpy", **options)(function))


def intrinsic(function: Callable | None = None, *, prefer_literal: bool = False) -> Any:
    """numba's decorator of the same name: a function that generates LLVM instructions."""
    if function is None:
        return lambda function: intrinsic(function, prefer_literal=prefer_literal)
    extending = Later("numba.extending")
    return Part(lambda: extending.intrinsic(prefer_literal=prefer_literal)(function))
