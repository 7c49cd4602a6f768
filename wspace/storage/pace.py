"""How many requests a disk has at a time, and how large they are: what gave the best rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

WINDOW_BYTES = 64 << 20
"""Read at one setting, at least, before it is judged."""

WINDOW_SECONDS = 0.25
"""The same, in time: disks and their caches come in bursts."""

BETTER = 1.05
"""Times as fast as the best setting, from which another is preferred: rates vary."""

REST = 8
"""Windows before the first round of trials: short reads are not tried with. After a round in which
no neighbour was better, twice as many."""

REQUESTS = (256 << 10, 512 << 10, 1 << 20, 2 << 20)
"""Bytes of a request; multiples of a page."""


class Setting(NamedTuple):
    readers: int
    request: int  # bytes


FIRST = Setting(4, 1 << 20)
"""What is begun with, where there may be as many."""


class Pace:
    """Lets at most so many requests run at a time, and varies that and their size, step by step.

    The rate is that of the time in which any request ran: waiting for whoever uses the bytes does
    not count, and a window in which fewer ran than might have is not judged. What is read does not
    depend on any of it.
    """

    def __init__(self, readers: int, largest: int = REQUESTS[-1]) -> None:
        """``readers``: how many there may be at most. ``largest``: bytes of a request at most."""
        self._most = readers
        self._sizes = [size for size in REQUESTS if size <= largest] or [largest]
        first = min(FIRST.request, self._sizes[-1])
        self.setting = self._best = Setting(min(FIRST.readers, readers), first)
        self._best_rate = 0.0
        self._trials: list[Setting] = []
        self._rest = self._resting = REST
        self._turn = threading.Condition()
        self._running = 0
        self._since = self._full_since = 0.0
        self._clear()

    @contextmanager
    def request(self, nbytes: int) -> Iterator[None]:
        """Wait for a turn, and count what is read inside."""
        with self._turn:
            while self._running >= self.setting.readers:
                self._turn.wait()
            now = time.perf_counter()
            if self._running == 0:
                self._since = now
            self._running += 1
            if self._running == self.setting.readers:
                self._full_since = now
        try:
            yield
        finally:
            with self._turn:
                readers = self.setting.readers
                self._count(nbytes, time.perf_counter())
                self._running -= 1
                self._turn.notify(max(1, self.setting.readers - readers + 1))

    def _clear(self) -> None:
        self._bytes, self._busy, self._full = 0, 0.0, 0.0

    def _count(self, nbytes: int, now: float) -> None:
        self._bytes += nbytes
        if self._running >= self.setting.readers:
            self._full += now - self._full_since
            self._full_since = now
        self._busy += now - self._since
        self._since = now
        if self._bytes < WINDOW_BYTES or self._busy < WINDOW_SECONDS:
            return
        if self._full >= self._busy / 2:
            self._judge(self._bytes / self._busy)
        self._clear()

    def _judge(self, rate: float) -> None:
        """A window has ended at this rate: keep to its setting or not, and choose the next."""
        if self.setting == self._best:
            self._best_rate = rate  # as it is now: a disk may become faster or slower
        elif rate > BETTER * self._best_rate:
            self._best, self._best_rate = self.setting, rate
            self._trials, self._rest = self._neighbours(), REST
        if self.setting != self._best:
            self.setting = self._best  # and measured again, before another is tried
        elif self._trials:
            self.setting = self._trials.pop(0)
        elif self._resting:
            self._resting -= 1
        else:
            self._trials = self._neighbours()
            self._resting = self._rest = 2 * self._rest

    def _neighbours(self) -> list[Setting]:
        readers, request = self._best
        place = self._sizes.index(request)
        near = [
            (2 * readers, place), (readers, place + 1), (readers // 2, place), (readers, place - 1),
        ]  # fmt: skip
        return [
            Setting(n, self._sizes[k])
            for n, k in near
            if 1 <= n <= self._most and 0 <= k < len(self._sizes)
        ]
