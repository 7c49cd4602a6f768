"""The CPU path: the kernels of ``wkernels.ops`` on rows of memory, without torch."""

from wkernels.cpu.pointers import Pointers
from wkernels.cpu.products import products
from wkernels.cpu.statistics import row_moments
from wkernels.cpu.weighted_sum import weighted_sum

__all__ = ["Pointers", "products", "row_moments", "weighted_sum"]
