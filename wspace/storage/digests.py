"""xxhash's function of memory, for kernels that take checksums of what they write."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from importlib.util import find_spec

from wspace.storage.checksums import digest

_IN_REGISTERS = ("x86_64", "aarch64", "arm64")
"""Machines that return a checksum as kernels expect it (see ``wkernels.cpu.digests``)."""


class _Pair(ctypes.Structure):
    _fields_ = (("low", ctypes.c_uint64), ("high", ctypes.c_uint64))


@cache
def digest_function() -> int:
    """Its address; 0 where it is not to be had, or does not give what xxhash gives."""
    module = find_spec("xxhash._xxhash")
    if platform.machine() not in _IN_REGISTERS or module is None or module.origin is None:
        return 0
    library = ctypes.PyDLL(module.origin)  # its first call chooses instructions: one at a time
    for name in ("XXH3_128bits_dispatch", "XXH3_128bits"):
        function = getattr(library, name, None)
        if function is not None:
            function.restype = _Pair
            sample = bytes(range(256)) * 4
            found = function(sample, ctypes.c_size_t(len(sample)))
            if found.high << 64 | found.low == int.from_bytes(digest(sample), "big"):
                return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0
