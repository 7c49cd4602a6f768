"""Arithmetic on the weights of neural networks: zoos of checkpoints, their geometry, their mixes.

    import wspace as ws

    zoo = ws.open_zoo("runs/*", base="base")
    gram = ws.gram(zoo)
    ws.merge(zoo, ws.uniform(len(zoo)), "soup")
"""

from __future__ import annotations

import importlib

from wspace.version import VERSION as __version__

# torch is imported by the first name that needs it: a merge of files does without
_HOMES = {
    "wspace.errors": (
        "BudgetError", "CheckpointError", "DeviceError", "MisalignedZooError", "NonFiniteError",
        "OutputError", "WeightsError", "WspaceError",
    ),
    "wspace.geometry": (
        "cosines", "distances", "distances_to_centroid", "geometric_median", "kmeans", "medoid",
        "norms", "spectral_clustering", "squared_distances",
    ),
    "wspace.grams": ("Gram", "Statistics", "gram", "pairwise_distances", "refine", "statistics"),
    "wspace.merging": ("merge",),
    "wspace.mixing": (
        "centroids", "leave_group_out", "lerp", "slerp", "task_arithmetic", "uniform",
    ),
    "wspace.modules": ("ResidentZoo", "mix_into"),
    "wspace.storage.checkpoints": ("Checkpoint", "open_checkpoint"),
    "wspace.zoo": ("Zoo", "open_zoo"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*sorted(_HOME_OF), "__version__"]


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'wspace' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
