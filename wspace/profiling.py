"""Where the time of a merge goes: reading, computing, writing, and waiting for one of them."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

READ, WRITE, CHECKSUM = "read", "write", "checksum"  # in threads of their own, several at a time
TAKEN = "checksums of kernels"  # bytes whose checksums were taken while computing
DIRECT = "past the page cache"  # a part of READ
PASS, READS, WRITES, FLUSH = "pass", "wait for reads", "wait for writes", "flush"  # in the main one
KERNELS = "load kernels"  # in the main one: a part of PASS


class Profile:
    """Seconds and bytes of each stage. Those of threads that ran at once are added up."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.nbytes: defaultdict[str, int] = defaultdict(int)
        self.elapsed = 0.0
        self._lock = threading.Lock()

    def add(self, stage: str, seconds: float, nbytes: int) -> None:
        with self._lock:
            self.seconds[stage] += seconds
            self.nbytes[stage] += nbytes

    @property
    def compute(self) -> float:
        """What the passes took besides waiting, and loading the kernels."""
        others = self.seconds[READS] + self.seconds[WRITES] + self.seconds[KERNELS]
        return max(0.0, self.seconds[PASS] - others)

    @property
    def parts(self) -> dict[str, float]:
        """Seconds on the clock, one after the other: together, all of ``elapsed``."""
        found = {
            "compute": self.compute,
            READS: self.seconds[READS],
            WRITES: self.seconds[WRITES],
            FLUSH: self.seconds[FLUSH],
        }
        return found | {"start and the rest": max(0.0, self.elapsed - sum(found.values()))}

    @property
    def bottleneck(self) -> str:
        """What took most of the time: ``compute``, ``reading``, ``writing``, ``starting``."""
        reading, writing = self.seconds[READS], self.seconds[WRITES] + self.seconds[FLUSH]
        shares = {
            "compute": self.compute, "reading": reading, "writing": writing,
            "starting": self.elapsed - self.compute - reading - writing,
        }  # fmt: skip
        return max(shares, key=lambda name: shares[name])


_active: Profile | None = None
_part = ContextVar("part", default=1.0)


@contextmanager
def profiled() -> Iterator[Profile]:
    """Measure everything that is done inside; one at a time in a process."""
    global _active
    before, profile = _active, Profile()
    _active = profile
    started = time.perf_counter()
    try:
        yield profile
    finally:
        profile.elapsed = time.perf_counter() - started
        _active = before


@contextmanager
def stage(name: str, nbytes: int = 0) -> Iterator[None]:
    """Count what is done inside towards a stage, if anyone measures."""
    profile = _active
    if profile is None:
        yield
        return
    started = time.perf_counter()
    try:
        yield
    finally:
        profile.add(name, (time.perf_counter() - started) * _part.get(), nbytes)


def count(name: str, nbytes: int) -> None:
    """Count bytes towards a stage that takes no time of its own, if anyone measures."""
    if _active is not None:
        _active.add(name, 0.0, nbytes)


@contextmanager
def part(share: float) -> Iterator[None]:
    """The time of this thread counts as much: several do what else the main one does."""
    token = _part.set(share)
    try:
        yield
    finally:
        _part.reset(token)
