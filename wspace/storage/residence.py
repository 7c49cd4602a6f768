"""How much of a file is in the page cache, and how much room the cache has. Linux only."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np

PAGE = 4096
"""Bytes of the page cache's unit. What direct reads and writes are aligned to."""

_CACHESTAT = 451
"""The number of the system call, on every processor; since Linux 6.5."""


def pages_cached(descriptor: int, start: int, nbytes: int) -> int | None:
    """Pages of these bytes of a file that are in the page cache; None where Linux does not tell.

    Nothing is read for it. It does not tell before 6.5, and of files that the process neither
    owns nor may write.
    """
    found = (ctypes.c_uint64 * 5)()  # cached, dirty, in writeback, evicted, recently evicted
    run = (ctypes.c_uint64 * 2)(start, nbytes)
    if _system_call()(ctypes.c_long(_CACHESTAT), descriptor, run, found, 0):
        return None
    return found[0]


_TMPFS = 0x01021994
"""What ``statfs`` calls a tmpfs."""


@cache
def _system_call() -> Callable[..., int]:
    if sys.platform != "linux":
        return lambda *arguments: -1
    return ctypes.CDLL(None).syscall


def in_memory(descriptor: int) -> bool:
    """Whether the file is on a file system that has no disk: its pages are the cache's own."""
    if sys.platform != "linux":
        return False
    found = (ctypes.c_long * 32)()  # struct statfs, whose first member says what it is
    return ctypes.CDLL(None).fstatfs(descriptor, found) == 0 and found[0] == _TMPFS


def pages(nbytes: int) -> np.ndarray:
    """Memory (uint8) for direct reads and writes: from the start of a page on."""
    # not shared: limits of a process's memory count what is its own
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, dtype=np.uint8)


def drop(descriptor: int, start: int = 0, nbytes: int = 0) -> None:
    """Have these bytes of a file leave the page cache, or all; what is not on the disk stays."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, nbytes, os.POSIX_FADV_DONTNEED)


def memory_available(system: Path = Path("/")) -> int | None:
    """Bytes that programs and the page cache may still take; None where Linux does not tell.

    What the machine has left, or what the process's control groups (version 1 or 2) allow in all,
    if that is less.
    """
    meminfo = _read(system / "proc/meminfo")
    match = re.search(r"^MemAvailable:\s*(\d+) kB", meminfo, re.MULTILINE)
    if not match:
        return None
    return min([int(match[1]) * 1024, *_limits(system)])


def _limits(system: Path) -> Iterator[int]:
    root = system / "sys/fs/cgroup"
    for line in _read(system / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        top, name = root, "memory.max"
        if "memory" in controllers.split(","):
            top, name = root / "memory", "memory.limit_in_bytes"
        elif controllers:
            continue
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):  # "." last: in a container, its own group
            text = _read(top / folder / name)
            if text.strip().isdigit():  # not "max"
                yield int(text)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
