"""One file being written at given places: past the page cache where the file system allows it."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import numpy as np

from wspace.storage.residence import PAGE, drop, in_memory, pages

SECTOR = 512
"""Bytes. What most disks want of memory for direct writes; some want whole pages."""

WRITE = 8 << 20
"""Bytes of one task of a writing thread; a multiple of ``PAGE``."""

COPY = 256 << 10
"""Bytes moved at a time to where a direct write can take them; a multiple of ``PAGE``."""

SYNC = 128 << 20
"""Bytes in the page cache after which they are written to the disk, and leave the cache."""


class OutputFile:
    """A new file of known length, written in any order by any thread.

    Whole pages go to the disk directly (``O_DIRECT``): copying them into the page cache takes more
    processor time than a merge's arithmetic, and would push the inputs out of it. The ends of a
    range that are less than a page, and everything where direct writes are refused, go through
    the page cache; no page is written both ways. What goes through the cache is flushed every
    ``SYNC`` bytes, and dropped from it: neither grows with the file.
    """

    def __init__(self, path: Path, length: int, *, again: bool = False) -> None:
        """``again``: go on with what is there of it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if again else os.O_EXCL)
        self._descriptor = os.open(path, flags, 0o644)
        self._direct = -1
        self._alignment = SECTOR  # of memory
        self._cached = 0  # bytes since the last sync
        self._lock = threading.Lock()
        try:
            # of a file in memory all pages would be made before the first is written: 0.3 s a GB
            ahead = not in_memory(self._descriptor)
            if again or not ahead:
                os.ftruncate(self._descriptor, length)
            if ahead:
                os.posix_fallocate(self._descriptor, 0, length)
        except BaseException:
            self.close()
            raise
        if hasattr(os, "O_DIRECT"):
            try:
                self._direct = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_DIRECT)
            except OSError:  # a file system without it
                self._direct = -1

    def write(self, view: np.ndarray, position: int) -> None:
        """Write ``view`` (uint8) at ``position``."""
        head = min(-position % PAGE, len(view))
        body = (len(view) - head) // PAGE * PAGE
        if self._direct >= 0 and body:
            try:
                self._write_pages(view[head : head + body], position + head)
            except OSError:  # refused as it stands; if the disk is at fault, the next line says so
                self._write_cached(view[head : head + body], position + head)
            self._write_cached(view[:head], position)
            self._write_cached(view[head + body :], position + head + body)
        else:
            self._write_cached(view, position)

    def _write_pages(self, view: np.ndarray, position: int) -> None:
        """Write whole pages directly, from where they are if the disk can take them there."""
        if view.ctypes.data % self._alignment == 0:
            try:
                _write_exactly(self._direct, view, position)
                return
            except OSError as error:
                if error.errno != errno.EINVAL or view.ctypes.data % PAGE == 0:
                    raise
                self._alignment = PAGE
        if not hasattr(_own, "pages"):
            _own.pages = pages(COPY)
        for start in range(0, len(view), COPY):
            part = view[start : start + COPY]
            copy = _own.pages[: len(part)]
            copy[:] = part
            _write_exactly(self._direct, copy, position + start)

    def _write_cached(self, view: np.ndarray, position: int) -> None:
        _write_exactly(self._descriptor, view, position)
        with self._lock:
            self._cached += len(view)
            due = self._cached >= SYNC
            if due:
                self._cached = 0
        if due:  # so that the last wait is short, and others' pages stay in the cache
            os.fdatasync(self._descriptor)
            drop(self._descriptor)

    def read(self, start: int, nbytes: int) -> bytes:
        """Bytes that were written earlier; fewer at the end of the file. They leave the cache."""
        parts, first, stop = [], start, start + nbytes
        while start < stop and (part := os.pread(self._descriptor, stop - start, start)):
            parts.append(part)
            start += len(part)
        drop(self._descriptor, first, stop - first)
        return b"".join(parts)

    def sync(self) -> None:
        """Return when everything written is on the disk."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        for descriptor in (self._descriptor, self._direct):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._direct = -1


_own = threading.local()


def _write_exactly(descriptor: int, view: np.ndarray, position: int) -> None:
    data = view.data
    while data:
        written = os.pwrite(descriptor, data, position)
        data, position = data[written:], position + written
