"""xxhash's function of memory, for kernels that take checksums of what they write."""

from __future__ import annotations

import ctypes
import platform
from importlib.util import find_spec

_IN_REGISTERS = ("x86_64", "aarch64", "arm64")
"""Machines that return a checksum as kernels expect it (see ``wkernels.cpu.digests``)."""


def _address() -> int:
    if platform.machine() not in _IN_REGISTERS:
        return 0
    module = find_spec("xxhash._xxhash")
    if module is None or module.origin is None:
        return 0
    library = ctypes.CDLL(module.origin)
    for name in ("XXH3_128bits_dispatch", "XXH3_128bits"):
        function = getattr(library, name, None)
        if function is not None:
            function(None, 0)  # the first call chooses instructions, in one thread
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    return 0


DIGEST_FUNCTION = _address()
"""Its address; 0 where it is not to be had."""
