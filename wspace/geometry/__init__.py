"""What follows from the Gram matrix: distances, angles, clusters, medians. Reads no bytes.

Every function takes a :class:`~wspace.grams.Gram`, or a plain symmetric float64 tensor ``[n, n]``
of inner products, and works in float64 on the CPU. Errors are ``ValueError``, and ``TypeError`` for
another dtype.
"""

from wspace.geometry.clusters import Clusters, kmeans, spectral_clustering
from wspace.geometry.medians import geometric_median, medoid
from wspace.geometry.metrics import (
    cosines,
    directions,
    distances,
    distances_to_centroid,
    gram_matrix,
    mixed_gram,
    norms,
    squared_distances,
)

__all__ = [
    "Clusters",
    "cosines",
    "directions",
    "distances",
    "distances_to_centroid",
    "geometric_median",
    "gram_matrix",
    "kmeans",
    "medoid",
    "mixed_gram",
    "norms",
    "spectral_clustering",
    "squared_distances",
]
