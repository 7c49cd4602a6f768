from .ops import (
    RowStatistics as RowStatistics,
    gram as gram,
    pairwise_distances as pairwise_distances,
    row_statistics as row_statistics,
    weighted_sum as weighted_sum,
    weighted_sum_tensors as weighted_sum_tensors,
)
