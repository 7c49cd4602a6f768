"""From the power sums that one read collects to the statistics of a row."""

from __future__ import annotations

import numpy as np

SUM, SUM2, SUM3, SUM4, MAX_ABS, NON_FINITE, CHANGED = range(7)
"""Columns of the sums: powers of the finite elements, the largest |x|, and two counts."""

N = 7


def statistics(sums: np.ndarray, length: int, *, has_base: bool) -> tuple[np.ndarray, ...]:
    """``sums [n_rows, N]`` -> norm, mean, max |x|, kurtosis, non-finite count, share changed.

    Kurtosis is ``E[(x - mean)**4] / E[(x - mean)**2]**2``; NaN for a constant or empty row.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        count = length - sums[:, NON_FINITE]
        m1, m2, m3, m4 = (sums[:, power] / count for power in (SUM, SUM2, SUM3, SUM4))
        variance = m2 - m1**2
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        # a variance lost in rounding is that of a constant row
        kurtosis = np.where(variance > 1e-14 * m2, fourth / variance**2, np.nan)
        changed = sums[:, CHANGED] / length if has_base else np.full(len(sums), np.nan)
    return np.sqrt(sums[:, SUM2]), m1, sums[:, MAX_ABS], kurtosis, sums[:, NON_FINITE], changed
