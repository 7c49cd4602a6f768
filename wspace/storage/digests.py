"""xxhash's function of memory, for kernels that take checksums of what they write."""

from __future__ import annotations

import ctypes
import platform
from importlib.util import find_spec

from wspace.storage.checksums import digest

_IN_REGISTERS = ("x86_64", "aarch64", "arm64")
"""Machines that return a checksum as kernels expect it (see ``wkernels.cpu.digests``)."""


class _Pair(ctypes.Structure):
    _fields_ = (("low", ctypes.c_uint64), ("high", ctypes.c_uint64))


def _address() -> int:
    module = find_spec("xxhash._xxhash")
    if platform.machine() not in _IN_REGISTERS or module is None or module.origin is None:
        return 0
    library = ctypes.CDLL(module.origin)
    for name in ("XXH3_128bits_dispatch", "XXH3_128bits"):
        function = getattr(library, name, None)
        if function is not None:
            function.restype = _Pair
            sample = bytes(range(256)) * 4
            # the first call chooses instructions: here, in one thread
            found = function(sample, ctypes.c_size_t(len(sample)))
            if found.high << 64 | found.low == int.from_bytes(digest(sample), "big"):
                return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


DIGEST_FUNCTION = _address()
"""Its address; 0 where it is not to be had."""
