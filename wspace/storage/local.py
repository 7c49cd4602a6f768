"""Reading bytes of a file of this machine: through the page cache, or past it."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import numpy as np

from wspace.errors import CheckpointError
from wspace.profiling import DIRECT, stage
from wspace.storage.pace import REQUESTS, Pace
from wspace.storage.residence import PAGE, drop, memory_available, pages, pages_cached

SHARE = 0.5
"""Of the memory that is available: what is larger would not be in the cache when it is read again,
and would push out what is."""


def exceeds_cache(nbytes: int) -> bool:
    """Whether so many bytes are better read past the page cache; only Linux can."""
    available = memory_available()
    return available is not None and nbytes > SHARE * available


def read_exactly(descriptor: int, view: np.ndarray, path: Path, start: int) -> None:
    """Fill ``view`` (uint8) from byte ``start`` on. Raises CheckpointError if the file is short."""
    done = 0
    while done < len(view):
        got = os.preadv(descriptor, [view.data[done:]], start + done)
        if got == 0:
            raise CheckpointError(
                f"{path}: ends at byte {start + done}, expected {len(view) - done} more; the file "
                "became shorter since its header was read"
            )
        done += got


class PastCache:
    """Reads that leave the page cache as it is, for several threads.

    What is in the cache comes from there, and stays. The rest is read directly (``O_DIRECT``): the
    whole pages that it lies in, into memory of the reading thread, from where it is copied. Where
    the file system refuses that, it is read through the cache, which then drops it. The cache is
    asked for each request: a file may be in it in part. Where it does not tell, it is used: then
    nothing that is in it is read from the disk.
    """

    def __init__(self, readers: int, largest: int = REQUESTS[-1]) -> None:
        """``largest``: bytes of a request at most, which each of the threads holds."""
        self.pace = Pace(readers, largest)
        self._refused: set[Path] = set()
        self._own = threading.local()

    def read_exactly(self, descriptor: int, view: np.ndarray, path: Path, start: int) -> None:
        """:func:`read_exactly`; the descriptor must be the thread's own."""
        done = 0
        while done < len(view):
            part = view[done : done + self.pace.setting.request]
            self._request(descriptor, part, path, start + done)
            done += len(part)

    def _request(self, descriptor: int, view: np.ndarray, path: Path, start: int) -> None:
        first = start // PAGE * PAGE
        length = -(-(start + len(view)) // PAGE) * PAGE - first
        cached = pages_cached(descriptor, first, length)
        if cached is None or cached * PAGE >= length:
            read_exactly(descriptor, view, path, start)
            return
        with self.pace.request(len(view)):
            with stage(DIRECT, len(view)):
                got = self._direct(descriptor, view, path, first, start)
            if got == len(view):
                return
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # nothing beyond the request
            read_exactly(descriptor, view[got:], path, start + got)
            if cached <= 2:  # but for what it shares with its neighbours
                drop(descriptor, first, length)

    def _direct(self, descriptor: int, view: np.ndarray, path: Path, first: int, start: int) -> int:
        """Bytes that were read; fewer than asked for where direct reads are refused, or fail."""
        if path in self._refused:
            return 0
        before = start - first
        length = -(-(before + len(view)) // PAGE) * PAGE
        own = self._pages(length)
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
            got = os.preadv(descriptor, [own.data], first)
        except OSError as error:  # if the disk is at fault, it will be so through the cache, too
            if error.errno == errno.EINVAL:
                self._refused.add(path)
            return 0
        finally:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
        got = max(0, min(got - before, len(view)))
        view[:got] = own[before : before + got]
        return got

    def _pages(self, length: int) -> np.ndarray:
        """Memory of the thread, from the start of a page on."""
        memory = getattr(self._own, "memory", None)
        if memory is None or len(memory) < length:
            self._own.memory = memory = pages(length)
        return memory[:length]
