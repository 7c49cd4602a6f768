"""Bands of rows in which columns of a matrix are summed on a GPU. Imports no torch."""

from __future__ import annotations

BAND = 1 << 18
"""Elements of a band, about; part of the result's meaning, so not a launch configuration."""
FEWEST = 16
"""Rows of a band, at least: what is written of one is then little beside what is read."""
WIDE = 1 << 16
"""Columns that keep a GPU busy by themselves: all of their matrix is one band."""


def rows_of_a_band(width: int) -> int:
    """Of a matrix with so many columns; 0: all of it, row by row.

    A matrix may be cut at multiples of it, without another order of the additions.
    """
    if width >= WIDE:
        return 0
    return max(FEWEST, 1 << (BAND // max(int(width), 1)).bit_length() - 1)
