"""Shares of a job: what each of several processes does of it."""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Share:
    """One of ``n`` shares, as equal as they can be; the first has index 0."""

    index: int = 0
    n: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.n}"


WHOLE = Share()


def parse_share(text: str) -> Share:
    """``2/8``: the third of eight. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    share = Share(*map(int, match.groups())) if match else None
    if share is None or share.index >= share.n:
        raise ValueError(f"range {text!r}: expected i/n with i from 0 to n - 1, such as 0/4")
    return share


def dealt(sizes: Sequence[int], n: int) -> list[int]:
    """Which of ``n`` shares each item belongs to, so that none has much more than the others.

    Neighbours stay together where that costs no share more than a tenth of the mean; else the
    largest goes first, to the share that has least. No share has more than the mean and the
    largest item.
    """
    mean = sum(sizes) / n
    middles = [stop - size / 2 for stop, size in zip(accumulate(sizes), sizes, strict=True)]
    runs = [min(n - 1, int(middle / mean)) if mean else 0 for middle in middles]
    loads = [0.0] * n
    for owner, size in zip(runs, sizes, strict=True):
        loads[owner] += size
    return runs if max(loads) <= 1.1 * mean else _largest_first(sizes, n)


def _largest_first(sizes: Sequence[int], n: int) -> list[int]:
    loads = [(0, share) for share in range(n)]
    owners = [0] * len(sizes)
    for item in sorted(range(len(sizes)), key=lambda k: -sizes[k]):
        load, owner = loads[0]
        owners[item] = owner
        heapq.heapreplace(loads, (load + sizes[item], owner))
    return owners
