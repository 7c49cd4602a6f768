"""What a launch must know of the GPU."""

from __future__ import annotations

from dataclasses import dataclass

import triton

from wkernels.gpu.configs.families import family_of
from wkernels.gpu.elements import INTERPRETED

EVERYWHERE = (3, 9)
"""The Triton version from which a float64 ``tl.dot`` uses the matrix units of every chip.

Before it fails on AMD and, from compute capability 10, fails or spills.
"""


@dataclass(frozen=True)
class Chip:
    family: str  # of wkernels.gpu.configs
    lanes: int  # threads in a warp
    matrix_tiles: tuple[int, int]  # rows of the smallest and largest float64 tile; 0, 0: none


def current() -> Chip:
    """The chip that the next kernel starts on; in the interpreter, one like an H100."""
    if INTERPRETED.value:
        return Chip("hopper", 32, (8, 64))
    target = triton.runtime.driver.active.get_current_target()
    nvidia = target.backend == "cuda"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    usable = version >= EVERYWHERE or (nvidia and target.arch < 100)
    # AMD's float64 units take 16 rows, NVIDIA's 8
    tiles = (8 if nvidia else 16, 64) if usable else (0, 0)
    return Chip(family_of(target.backend, target.arch), target.warp_size, tiles)
