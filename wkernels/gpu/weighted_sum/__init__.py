"""Weighted sums of rows: ``out[j] = sum_i w[j, i] x[i]``, or the same around a base."""

from wkernels.gpu.weighted_sum.launcher import launch, launch_tensors

__all__ = ["launch", "launch_tensors"]
