"""The CPU path: the kernels of ``wkernels.ops`` on rows of memory, without torch."""

from wkernels.cpu.against import products_along, squared_distances
from wkernels.cpu.blocks import BLOCK
from wkernels.cpu.columns import column_products, column_sums
from wkernels.cpu.consensus import joined
from wkernels.cpu.digests import NO_DIGESTS, Digests, Run
from wkernels.cpu.kept import COUNTS, N_SUMS, SIZES, SQUARES, agreements, kept_sums
from wkernels.cpu.masks import KEPT
from wkernels.cpu.means import precision_mean
from wkernels.cpu.pointers import Pointers
from wkernels.cpu.products import products
from wkernels.cpu.ranks import AREA_BYTES, drawn_by_rank, rank_chances
from wkernels.cpu.scores import importances, pulled, variances
from wkernels.cpu.selection import digit_counts, nth_equal
from wkernels.cpu.sieve import ELEMENTS, LINES, ROOM, Sieve, sampled_blocks, sieved
from wkernels.cpu.sketch import sketch
from wkernels.cpu.statistics import row_moments
from wkernels.cpu.weighted_sum import weighted_sum

__all__ = [
    "AREA_BYTES",
    "BLOCK",
    "COUNTS",
    "ELEMENTS",
    "KEPT",
    "LINES",
    "NO_DIGESTS",
    "N_SUMS",
    "ROOM",
    "SIZES",
    "SQUARES",
    "Digests",
    "Pointers",
    "Run",
    "Sieve",
    "agreements",
    "column_products",
    "column_sums",
    "digit_counts",
    "drawn_by_rank",
    "importances",
    "joined",
    "kept_sums",
    "nth_equal",
    "precision_mean",
    "products",
    "products_along",
    "pulled",
    "rank_chances",
    "row_moments",
    "sampled_blocks",
    "sieved",
    "sketch",
    "squared_distances",
    "variances",
    "weighted_sum",
]
