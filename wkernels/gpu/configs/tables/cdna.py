"""Launch configurations for MI300X: printed by ``python -m bench.tune``.

Keys: bytes of an element, and models up to (0: any); bytes of an element; engine, bytes of an
element, and rows of a tile.
"""

from __future__ import annotations

from wkernels.gpu.configs.shapes import Mix, Read, Tile

ORIGIN = "derived"

WEIGHTED_SUM = {
    (1, 1): Mix(vectors=4, num_warps=4, batch=0, group=1),
    (1, 2): Mix(vectors=2, num_warps=4, batch=0, group=1),
    (1, 4): Mix(vectors=1, num_warps=4, batch=0, group=1),
    (1, 8): Mix(vectors=1, num_warps=4, batch=0, group=1),
    (1, 16): Mix(vectors=1, num_warps=4, batch=8, group=4),
    (1, 0): Mix(vectors=1, num_warps=4, batch=8, group=4),
    (2, 1): Mix(vectors=4, num_warps=4, batch=0, group=1),
    (2, 2): Mix(vectors=2, num_warps=4, batch=0, group=1),
    (2, 4): Mix(vectors=1, num_warps=4, batch=0, group=1),
    (2, 8): Mix(vectors=1, num_warps=4, batch=0, group=1),
    (2, 16): Mix(vectors=1, num_warps=4, batch=0, group=1),
    (2, 0): Mix(vectors=1, num_warps=4, batch=8, group=8),
    (4, 1): Mix(vectors=4, num_warps=4, batch=0, group=1),
    (4, 2): Mix(vectors=2, num_warps=4, batch=0, group=1),
    (4, 4): Mix(vectors=1, num_warps=4, batch=0, group=1),
    (4, 8): Mix(vectors=1, num_warps=4, batch=0, group=1),
    (4, 16): Mix(vectors=1, num_warps=4, batch=0, group=1),
    (4, 0): Mix(vectors=1, num_warps=4, batch=8, group=8),
    (8, 1): Mix(vectors=4, num_warps=4, batch=0, group=1),
    (8, 2): Mix(vectors=2, num_warps=4, batch=0, group=1),
    (8, 4): Mix(vectors=1, num_warps=4, batch=0, group=1),
    (8, 8): Mix(vectors=1, num_warps=4, batch=0, group=1),
    (8, 16): Mix(vectors=1, num_warps=4, batch=0, group=1),
    (8, 0): Mix(vectors=1, num_warps=4, batch=8, group=8),
}

STATISTICS = {
    1: Read(elements=8, n_loads=4, num_warps=4, rows_added=4),
    2: Read(elements=8, n_loads=4, num_warps=4, rows_added=4),
    4: Read(elements=4, n_loads=4, num_warps=4, rows_added=4),
    8: Read(elements=2, n_loads=4, num_warps=4, rows_added=4),
}

PRODUCTS = {
    ("float64", 1, 8): Tile(step=64, num_warps=1, stages=3),
    ("float64", 1, 16): Tile(step=64, num_warps=1, stages=3),
    ("float64", 1, 32): Tile(step=64, num_warps=2, stages=3),
    ("float64", 1, 64): Tile(step=32, num_warps=4, stages=3),
    ("float64", 2, 8): Tile(step=64, num_warps=1, stages=3),
    ("float64", 2, 16): Tile(step=64, num_warps=1, stages=3),
    ("float64", 2, 32): Tile(step=64, num_warps=2, stages=3),
    ("float64", 2, 64): Tile(step=32, num_warps=4, stages=3),
    ("float64", 4, 8): Tile(step=64, num_warps=1, stages=3),
    ("float64", 4, 16): Tile(step=64, num_warps=1, stages=3),
    ("float64", 4, 32): Tile(step=64, num_warps=2, stages=3),
    ("float64", 4, 64): Tile(step=32, num_warps=4, stages=3),
    ("float64", 8, 8): Tile(step=64, num_warps=1, stages=3),
    ("float64", 8, 16): Tile(step=64, num_warps=1, stages=3),
    ("float64", 8, 32): Tile(step=64, num_warps=2, stages=3),
    ("float64", 8, 64): Tile(step=32, num_warps=4, stages=3),
    ("whole", 1, 16): Tile(step=64, num_warps=1, stages=3),
    ("whole", 1, 32): Tile(step=64, num_warps=2, stages=3),
    ("whole", 1, 64): Tile(step=64, num_warps=4, stages=2),
    ("whole", 1, 128): Tile(step=64, num_warps=8, stages=2),
    ("whole", 2, 16): Tile(step=64, num_warps=1, stages=3),
    ("whole", 2, 32): Tile(step=64, num_warps=2, stages=3),
    ("whole", 2, 64): Tile(step=32, num_warps=4, stages=2),
    ("whole", 2, 128): Tile(step=32, num_warps=8, stages=2),
    ("bfloat16", 1, 16): Tile(step=64, num_warps=1, stages=3),
    ("bfloat16", 1, 32): Tile(step=64, num_warps=2, stages=3),
    ("bfloat16", 1, 64): Tile(step=32, num_warps=4, stages=3),
    ("bfloat16", 1, 128): Tile(step=32, num_warps=8, stages=3),
    ("bfloat16", 2, 16): Tile(step=64, num_warps=1, stages=3),
    ("bfloat16", 2, 32): Tile(step=64, num_warps=2, stages=2),
    ("bfloat16", 2, 64): Tile(step=32, num_warps=4, stages=2),
    ("bfloat16", 2, 128): Tile(step=32, num_warps=8, stages=2),
    ("tfloat32", 1, 16): Tile(step=32, num_warps=1, stages=3),
    ("tfloat32", 1, 32): Tile(step=32, num_warps=2, stages=3),
    ("tfloat32", 1, 64): Tile(step=16, num_warps=4, stages=3),
    ("tfloat32", 1, 128): Tile(step=16, num_warps=8, stages=3),
    ("tfloat32", 2, 16): Tile(step=32, num_warps=1, stages=3),
    ("tfloat32", 2, 32): Tile(step=32, num_warps=2, stages=3),
    ("tfloat32", 2, 64): Tile(step=16, num_warps=4, stages=3),
    ("tfloat32", 2, 128): Tile(step=16, num_warps=8, stages=3),
    ("tfloat32", 4, 16): Tile(step=32, num_warps=1, stages=3),
    ("tfloat32", 4, 32): Tile(step=32, num_warps=2, stages=2),
    ("tfloat32", 4, 64): Tile(step=16, num_warps=4, stages=2),
    ("tfloat32", 4, 128): Tile(step=16, num_warps=8, stages=2),
}
