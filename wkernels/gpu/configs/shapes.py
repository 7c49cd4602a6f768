"""What the table of launch configurations holds, and the keys it is looked up by."""

from __future__ import annotations

from typing import NamedTuple

WIDTHS = (1, 2, 4, 8)
"""Bytes of an element of the narrowest row."""
MODELS = (1, 2, 4, 8, 16, 0)
"""Models up to which an entry holds; 0: any number."""
SUM_COLUMNS = 1024
"""Running sums that ``sums`` adds a row to, whatever its warps: part of the result's meaning."""


class Mix(NamedTuple):
    """One program of the weighted sum."""

    vectors: int  # 16-byte loads of each row that a thread makes before it uses the first
    num_warps: int
    batch: int  # models loaded together; 0: all, and kept for all mixes
    group: int  # mixes summed at once, at most, when the models pass by in batches


class Read(NamedTuple):
    """One program of the row statistics."""

    elements: int  # of a thread in one load
    n_loads: int  # before the first is used
    num_warps: int
    rows_added: int  # rows whose blocks one program of the ordered addition adds


class Choose(NamedTuple):
    """One program of a kernel of methods that choose elements, or of one row's magnitudes."""

    elements: int  # of a row, that a thread loads at a time
    num_warps: int


class Tile(NamedTuple):
    """One program of the products by matrix units."""

    step: int  # elements of each row at a time
    num_warps: int
    stages: int  # steps that are loaded or multiplied at the same time
