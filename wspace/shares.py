"""Shares of a job: what each of several processes does of it."""

from __future__ import annotations

import heapq
import re
from collections.abc import Sequence
from dataclasses import dataclass


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
    """Which of ``n`` shares each item belongs to: the largest first, to the share with the least.

    No share has more than the mean and the largest item.
    """
    loads = [(0, share) for share in range(n)]
    owners = [0] * len(sizes)
    for item in sorted(range(len(sizes)), key=lambda k: -sizes[k]):
        load, owner = loads[0]
        owners[item] = owner
        heapq.heapreplace(loads, (load + sizes[item], owner))
    return owners
