"""Machine code of kernels: kept on disk, loaded by llvmlite alone, called with a row of words.

A file holds one kernel for one set of argument types. It is in a folder named after everything that
the code depends on: the sources of this package, the compiler and the processor.
"""

from __future__ import annotations

import builtins
import ctypes
import hashlib
import os
import sys
import tempfile
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any, NamedTuple

from llvmlite import binding

_HERE = Path(__file__).parent

_ENTRY = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
"""Of a function ``int64 -> int64 or None`` that numba compiled: where the result goes, where what
was raised goes, the argument. Returns a status. Python's lock is not held meanwhile."""

_DONE = (0, -2)  # with a result, and with None

_RUNTIME = {"core.runtime._nrt_python": "NRT_", "_helperlib": "numba_"}
"""Extension modules of numba's that hold what compiled code calls, and what the names there begin
with; none needs the rest of numba."""


class MachineCode(NamedTuple):
    """Of one kernel: an object file, the name of the function in it, and whether that returns an
    int or None."""

    name: str
    returns: bool
    binary: bytes


class Function:
    """A kernel that can be called."""

    def __init__(self, code: MachineCode) -> None:
        engine = _engine()
        engine.add_object_file(binding.ObjectFileRef.from_data(code.binary))
        engine.finalize_object()
        self._call = _ENTRY(engine.get_function_address(code.name))
        self._returns = code.returns

    def __call__(self, words: ctypes.Array) -> int | None:
        """Raises MemoryError where there is none for scratch arrays."""
        result, raised = ctypes.c_int64(), ctypes.c_void_p()
        status = self._call(
            ctypes.addressof(result), ctypes.addressof(raised), ctypes.addressof(words)
        )
        if status not in _DONE:
            raise MemoryError("a kernel could not allocate its scratch arrays")
        return result.value if self._returns else None


@cache
def _engine():
    for name, prefix in _RUNTIME.items():
        for symbol, address in _extension(name).c_helpers.items():
            binding.add_symbol(symbol if symbol.startswith("_") else prefix + symbol, address)
    for name, thing in vars(builtins).items():
        if isinstance(thing, type) and issubclass(thing, BaseException):
            binding.add_symbol(f"PyExc_{name}", id(thing))  # as numba does
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_triple(binding.get_process_triple()).create_target_machine(
        codemodel="jitdefault", jit=True
    )
    return binding.create_mcjit_compiler(binding.parse_assembly(""), machine)


def _extension(name: str) -> Any:
    """An extension module of numba's, without importing numba; which finds it, should it come."""
    whole = f"numba.{name}"
    if whole not in sys.modules:
        package = find_spec("numba")
        assert package is not None and package.submodule_search_locations
        folder = Path(package.submodule_search_locations[0], *name.split(".")[:-1])
        spec = PathFinder.find_spec(whole, [str(folder)])
        assert spec is not None and spec.loader is not None
        sys.modules[whole] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[whole])
    return sys.modules[whole]


def load(kernel: str, kinds: object) -> MachineCode | None:
    """What was kept for a kernel and kinds of arguments; None if nothing, or it is damaged."""
    try:
        digest, head, binary = _path(kernel, kinds).read_bytes().split(b"\n", 2)
    except (OSError, ValueError):
        return None
    if hashlib.sha256(head + binary).hexdigest().encode() != digest:
        return None
    name, returns = head.decode().split()
    return MachineCode(name, returns == "int", binary)


def keep(kernel: str, kinds: object, code: MachineCode) -> None:
    """Keep machine code for other processes; no harm is done where it cannot be written."""
    path = _path(kernel, kinds)
    head = f"{code.name} {'int' if code.returns else 'None'}".encode()
    digest = hashlib.sha256(head + code.binary).hexdigest().encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(b"\n".join((digest, head, code.binary)))
        Path(file.name).replace(path)  # whole, or not at all
    except OSError:
        return


def _path(kernel: str, kinds: object) -> Path:
    return _folder() / f"{kernel}-{hashlib.sha256(repr(kinds).encode()).hexdigest()[:16]}"


@cache
def _folder() -> Path:
    name = folder_name(_HERE.parent, _HERE)  # constants come from the package above
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(chosen) / name
    if os.access(_HERE, os.W_OK):
        return _HERE / "__pycache__" / name
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    if os.access(Path(user).parent, os.W_OK):
        return Path(user) / "wkernels" / name
    return Path(tempfile.gettempdir()) / f"wkernels-{os.getuid()}" / name


def folder_name(*sources: Path) -> str:
    """Another one for every state of what machine code depends on."""
    digest = hashlib.sha256()
    for folder in sources:
        for source in sorted(folder.glob("*.py")):
            digest.update(source.read_bytes())
    for package in ("numba", "llvmlite"):
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None
        digest.update(Path(spec.origin).with_name("_version.py").read_bytes())
    settings = {k: v for k, v in os.environ.items() if k.startswith("NUMBA_")}
    settings.pop("NUMBA_CACHE_DIR", None)
    processor = (binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten())
    digest.update(repr((sorted(settings.items()), processor)).encode())
    return f"wkernels-{digest.hexdigest()[:16]}"
