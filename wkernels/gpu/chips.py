"""What a launch must know of the GPU."""

from __future__ import annotations

from dataclasses import dataclass

import triton

from wkernels.gpu.configs.families import family_of
from wkernels.gpu.elements import INTERPRETED

EVERYWHERE = (3, 9)
"""The Triton version from which a float64 ``tl.dot`` uses the matrix units of every chip.

Before it fails on AMD and, from compute capability 10, fails or spills. There four products in a
chain also take a place in tensor memory each, and for tiles of 128 rows there is none left.
"""


@dataclass(frozen=True)
class Chip:
    family: str  # of wkernels.gpu.configs
    lanes: int  # threads in a warp
    matrix_tiles: tuple[int, int]  # rows of the smallest and largest float64 tile; 0, 0: none
    parts_tile: int  # rows of the largest tile of differences in parts


def current() -> Chip:
    """The chip that the next kernel starts on; in the interpreter, one like an H100."""
    if INTERPRETED.value:
        return Chip("hopper", 32, (8, 64), 128)
    target = triton.runtime.driver.active.get_current_target()
    nvidia = target.backend == "cuda"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    older = version < EVERYWHERE
    # AMD's float64 units take 16 rows, NVIDIA's 8
    tiles = (0, 0) if older and not (nvidia and target.arch < 100) else (8 if nvidia else 16, 64)
    parts_tile = 64 if older and nvidia and target.arch >= 100 else 128
    return Chip(family_of(target.backend, target.arch), target.warp_size, tiles, parts_tile)
