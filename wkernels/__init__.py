"""Kernels for arithmetic on the weights of neural networks: tensors in, tensors out."""

from __future__ import annotations

import importlib

__all__ = [
    "RowStatistics",
    "gram",
    "pairwise_distances",
    "row_statistics",
    "weighted_sum",
    "weighted_sum_tensors",
]


def __getattr__(name: str):
    # on first use: the CPU path below the public operations works without importing torch
    if name in __all__:
        return getattr(importlib.import_module("wkernels.ops"), name)
    raise AttributeError(f"module 'wkernels' has no attribute {name!r}")
