"""Products and differences of all pairs of rows: Gram matrices and distances, in float64."""

from wkernels.gpu.products.launcher import engine_for, launch
from wkernels.gpu.products.pairs import OPS

__all__ = ["OPS", "engine_for", "launch"]
