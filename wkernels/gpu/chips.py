"""What a launch configuration must know of the GPU."""

from __future__ import annotations

from dataclasses import dataclass

import triton

from wkernels.gpu.elements import INTERPRETED

EVERYWHERE = (3, 9)
"""The Triton version from which a float64 ``tl.dot`` uses the matrix units of every chip.

Before it fails on AMD and, from compute capability 10, fails or spills.
"""


@dataclass(frozen=True)
class Chip:
    lanes: int  # threads in a warp
    matrix_tile: int  # rows of the largest tile for a float64 tl.dot; 0: none


def current() -> Chip:
    """The chip that the next kernel starts on; in the interpreter, one like an H100."""
    if INTERPRETED.value:
        return Chip(32, 64)
    target = triton.runtime.driver.active.get_current_target()
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    usable = version >= EVERYWHERE or (target.backend == "cuda" and target.arch < 100)
    return Chip(target.warp_size, 64 if usable else 0)
