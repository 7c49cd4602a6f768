"""Runs a kernel over pieces of its work in several threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any

import numpy as np

PIECES = 4
"""Pieces of work for each thread: a thread that the machine slows down then holds nobody up."""


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="wkernels")


def over_ranges(
    work: Callable[[int, int], Any],
    n: int,
    *,
    step: int,
    threads: int,
    least: int,
    near: np.ndarray | None = None,
) -> list[Any]:
    """``[work(start, stop), ...]`` over consecutive ranges that cover ``0..n``.

    The calling thread works too, and each takes the next range when it is done with one: waking a
    thread costs as much as tens of thousands of elements, so each is woken once. Ranges start at
    multiples of ``step`` and hold at least ``least``; the results come in order.
    ``near``: sorted; each range starts at the last of these before where it would, if there is one.
    """
    if n == 0:
        return []
    pieces = max(1, min(threads * PIECES, n // max(least, 1)))
    if threads == 1 or pieces == 1:
        return [work(0, n)]
    size = -(-n // pieces)
    size = -(-size // step) * step
    starts = list(range(0, n, size))
    if near is not None and len(near):
        last = np.searchsorted(near, starts, "right") - 1
        starts = sorted({0, *np.where(last >= 0, near[last], starts).tolist()})
    stops = [*starts[1:], n]
    results: list[Any] = [None] * len(starts)
    turns = iter(range(len(starts)))

    def take() -> None:
        try:
            for k in turns:
                results[k] = work(starts[k], stops[k])
        except BaseException:
            for _ in turns:  # nobody begins another
                pass
            raise

    helpers = [_pool(threads).submit(take) for _ in range(min(threads, len(starts)) - 1)]
    try:
        take()
    finally:
        began = [helper for helper in helpers if not helper.cancel()]
        wait(began)
    for helper in began:
        helper.result()
    return results
