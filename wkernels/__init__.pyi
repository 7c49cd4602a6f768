from .ops import (
    RowStatistics as RowStatistics,
    close_pairs as close_pairs,
    gram as gram,
    pairwise_distances as pairwise_distances,
    row_statistics as row_statistics,
    sketch as sketch,
    squared_distances as squared_distances,
    weighted_sum as weighted_sum,
    weighted_sum_tensors as weighted_sum_tensors,
)
