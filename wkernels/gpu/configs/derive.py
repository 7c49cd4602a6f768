"""Defaults for chips that nothing was measured on, and the reasons for them.

**Bytes in flight.** To keep memory busy a multiprocessor must have ``bandwidth * latency /
multiprocessors`` bytes asked for. Kernels are planned to fill three quarters of the places for
threads, and to ask for four times that: under load a latency is about twice what it is at rest, and
a program waits for its loads for about half of its life. That gives the bytes each thread loads
before it uses the first.

**Registers.** What a thread keeps must fit: of 255, the inputs of one block may take 128 when all
are kept (16 bytes of a row are 4 registers as they lie in memory, and 4 to 16 once decoded), and
running sums 64 when inputs pass by.

**float64.** Up to half of a tile is padding, so tiles are as small as the matrix units allow, and
no larger than 64: a float64 tile of 128 rows would take all registers. The accumulators of the
other engines are half as large.
"""

from __future__ import annotations

from wkernels.gpu.configs.families import FAMILIES, Family
from wkernels.gpu.configs.shapes import MODELS, SUM_COLUMNS, WIDTHS, Choose, Mix, Read, Tile

VECTOR = 16
"""Bytes of the widest load of a thread."""
KEPT_REGISTERS = 128
SUM_REGISTERS = 64
WARPS = 4


def thread_bytes(family: Family) -> int:
    """Bytes that a thread asks for at once, a power of two."""
    wanted = 4 * family.bytes_in_flight / (0.75 * family.threads)
    power = VECTOR
    while power < wanted:
        power *= 2
    return power


def mix(family: Family, width: int, models: int) -> Mix:
    """The weighted sum of up to so many models (0: of any number) of ``width`` bytes an element."""
    elements = VECTOR // width
    words = 2 if width == 8 else 1
    kept = models * elements * words
    if models and kept <= KEPT_REGISTERS:
        vectors = 1
        while (
            vectors < 4
            and vectors * models * VECTOR < thread_bytes(family)
            and 2 * vectors * kept <= KEPT_REGISTERS
        ):
            vectors *= 2
        return Mix(vectors, WARPS, batch=0, group=1)
    group = 1
    while group < 8 and 2 * group * elements * words <= SUM_REGISTERS:
        group *= 2
    return Mix(1, WARPS, batch=8, group=group)


def read(family: Family, width: int) -> Read:
    """Statistics of one row: four float64 sums of each of at most 8 elements fit registers."""
    elements = min(VECTOR // width, 8)
    loads = max(2, thread_bytes(family) // (elements * width))
    return Read(elements, n_loads=min(loads, 4), num_warps=WARPS, rows_added=4)


CHOOSING = {
    "agreements": 16, "digits": 16, "importances": 8, "join": 16, "mean": 16, "places": 16,
    "pull": 16, "sums": 8, "variances": 4,
}  # fmt: skip
"""Kernels of methods that choose elements, and how many of a row's a thread has registers for:
four float64 sums of each of 8, a float64 division of each of 4."""


def choose(family: Family, kernel: str, width: int) -> Choose:
    """16 bytes of a row, if there are registers for as many elements."""
    elements = min(VECTOR // width, CHOOSING[kernel])
    if kernel == "sums":
        num_warps = min(8, SUM_COLUMNS // elements // family.lanes)
        return Choose(SUM_COLUMNS // family.lanes // num_warps, num_warps)
    if kernel == "importances":  # with 4 of float32 the compiler spills a register
        elements = CHOOSING[kernel]
    return Choose(elements, WARPS)


PARTS = {"whole": 2, "bfloat16": 4, "tfloat32": 8}
"""Bytes of an element as it is multiplied: all its parts."""
HELD = {"whole": 2, "bfloat16": 8, "tfloat32": 12}
"""Bytes of registers that an element passes through: widened, and in parts."""


def tile(family: Family, engine: str, width: int, rows: int) -> Tile:
    """Tiles of ``rows`` rows by the matrix units, with up to three steps on their way.

    Both sides, as loaded and as multiplied, must fit shared memory: twice over, that a second
    program runs while the first waits, but for tiles of 128, which take all registers too.
    """
    if engine == "float64":
        return Tile(32 if rows == 64 else 64, max(1, rows // 16), stages=3)
    room = family.shared // (1 if rows == 128 else 2)
    step, stages = 64, 3
    # a thread's share of a side; larger tiles leave less, unless they stay in shared memory
    in_shared = rows >= 64 and family.shared_operands
    registers = 128 if rows == 16 or in_shared else 96 if rows == 32 else 64
    while step * HELD[engine] // 4 > registers:
        step //= 2
    while 2 * rows * step * (stages * width + PARTS[engine]) > room:
        if stages > 2:
            stages -= 1
        else:
            step //= 2
    return Tile(step, max(1, rows // 16), stages)


ENGINES = {  # engine -> rows of its tiles, widths of the elements that it takes
    "float64": ((8, 16, 32, 64), WIDTHS),
    "whole": ((16, 32, 64, 128), (1, 2)),
    "bfloat16": ((16, 32, 64, 128), (1, 2)),
    "tfloat32": ((16, 32, 64, 128), (1, 2, 4)),
}


def table(name: str) -> dict[str, dict]:
    """All defaults of a family: by operation and key."""
    family = FAMILIES[name]
    return {
        "WEIGHTED_SUM": {
            (width, models): mix(family, width, models) for width in WIDTHS for models in MODELS
        },
        "STATISTICS": {width: read(family, width) for width in WIDTHS},
        "CHOICES": {
            (kernel, width): choose(family, kernel, width)
            for kernel in CHOOSING
            for width in WIDTHS
        },
        "PRODUCTS": {
            (engine, width, rows): tile(family, engine, width, rows)
            for engine, (sizes, widths) in ENGINES.items()
            for width in widths
            for rows in sizes
        },
    }
