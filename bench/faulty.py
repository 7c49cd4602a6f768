"""Disks that fail, for tests and for ``bench.faults``: calls that go wrong, and power that is lost.

All of it stands in for functions of ``os``, through which storage does its work.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from wspace.storage.residence import PAGE

ERRORS = (errno.EIO, errno.ENOSPC, errno.EINTR, errno.EDQUOT)
SHARE = 0.02
"""Of the calls that fail; several times as many do less than was asked."""

FAILING = ("fsync", "fdatasync", "posix_fallocate", "ftruncate")


class Faults:
    """Inside ``with``, some calls fail, and some read or write a part of what was asked."""

    def __init__(self, seed: int, share: float = SHARE) -> None:
        self._draw, self._share = random.Random(seed), share
        self.counts: Counter[str] = Counter()
        self._calls = {name: getattr(os, name) for name in ("preadv", "pread", "pwrite")}
        self._rename = Path.rename
        self._stack = ExitStack()

    def __enter__(self) -> Faults:
        mine = {"preadv": self._preadv, "pread": self._pread, "pwrite": self._pwrite}
        mine |= {name: self._failing(name, getattr(os, name)) for name in FAILING}
        for name, call in mine.items():
            self._stack.enter_context(patch.object(os, name, call))
        rename = self._failing("rename", Path.rename)
        self._stack.enter_context(patch.object(Path, "rename", rename))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _fail(self, name: str) -> None:
        if self._draw.random() < self._share:
            number = self._draw.choice(ERRORS)
            self.counts[f"{name} {errno.errorcode[number]}"] += 1
            raise OSError(number, os.strerror(number))

    def _failing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._fail(name)
            return real(*arguments)

        return call

    def _short(self, name: str, n: int) -> int:
        if self._draw.random() < 5 * self._share and n > 1:
            self.counts[f"{name} short"] += 1
            return self._draw.randrange(1, n)
        return n

    def _preadv(self, descriptor: int, buffers: list[memoryview], position: int) -> int:
        self._fail("preadv")
        self.counts["direct"] += bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        (buffer,) = buffers
        part = buffer[: self._short("preadv", len(buffer))]
        return self._calls["preadv"](descriptor, [part], position)

    def _pread(self, descriptor: int, n: int, position: int) -> bytes:
        self._fail("pread")
        return self._calls["pread"](descriptor, self._short("pread", n), position)

    def _pwrite(self, descriptor: int, data: memoryview, position: int) -> int:
        self._fail("pwrite")
        part = data[: self._short("pwrite", len(data))]
        return self._calls["pwrite"](descriptor, part, position)


def flip(path: Path, draw: random.Random, first: int = 0, stop: int | None = None) -> int:
    """Flip a bit of a file between two of its bytes, and keep its times; returns which byte."""
    status = path.stat()
    position = draw.randrange(first, status.st_size if stop is None else stop)
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1 << draw.randrange(8)]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return position


@contextmanager
def flipped_writes(draw: random.Random, share: float) -> Iterator[list[int]]:
    """Some writes put a wrong bit on the disk; yields the bytes of files at which they did."""
    real, done = os.pwrite, []

    def pwrite(descriptor: int, data: memoryview, position: int) -> int:
        if draw.random() < share and len(data):
            copy = bytearray(data)
            k = draw.randrange(len(copy))
            copy[k] ^= 1 << draw.randrange(8)
            # a copy lies anywhere in memory: what is written directly has to lie at a page
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
            fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
            try:
                written = real(descriptor, copy, position)
            finally:
                fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
            if k < written:
                done.append(position + k)
            return written
        return real(descriptor, data, position)

    with patch.object(os, "pwrite", pwrite):
        yield done


class Entry(NamedTuple):
    """A name in a folder."""

    inode: int
    is_folder: bool


class Power:
    """Inside ``with``, keeps what of a folder is sure to be on the disk: what was synced.

    ``moment(k)`` is called at every write, sync and rename, before and after it: the power may be
    lost there, and :meth:`lose` makes what may then be found. A file has what was in it when its
    last sync began, and of the rest nothing, zeros, all, or some pages; a folder has the names that
    it had when it was last synced, or those that it has now.
    """

    def __init__(self, root: Path, moment: Callable[[int], None]) -> None:
        self._root, self._moment = root, moment
        self._files: dict[int, bytes] = {}
        self._folders: dict[int, dict[str, Entry]] = {}
        self._lock = threading.RLock()
        self._busy = False
        self.moments = 0
        self._stack = ExitStack()
        for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
            self._folders[folder.stat().st_ino] = _entries(folder)
        for file in root.rglob("*"):
            if file.is_file():
                self._files[file.stat().st_ino] = file.read_bytes()

    def __enter__(self) -> Power:
        for name in ("pwrite", "write", "ftruncate"):
            self._stack.enter_context(patch.object(os, name, self._around(getattr(os, name))))
        for name in ("fsync", "fdatasync"):
            self._stack.enter_context(patch.object(os, name, self._syncing(getattr(os, name))))
        self._stack.enter_context(patch.object(Path, "rename", self._around(Path.rename)))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _at(self) -> None:
        with self._lock:
            if not self._busy:  # what a moment does is none itself
                self._busy = True
                try:
                    self.moments += 1
                    self._moment(self.moments)
                finally:
                    self._busy = False

    def _around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            with self._lock:
                self._at()
                done = real(*arguments)
                self._at()
                return done

        return call

    def _syncing(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def call(descriptor: int) -> None:
            with self._lock:
                self._at()
                if not self._busy:
                    self._keep(descriptor)
                real(descriptor)
                self._at()

        return call

    def _keep(self, descriptor: int) -> None:
        status, path = os.fstat(descriptor), Path(f"/proc/self/fd/{descriptor}")
        if stat.S_ISDIR(status.st_mode):
            self._folders[status.st_ino] = _entries(path)
        else:
            self._files[status.st_ino] = path.read_bytes()

    def lose(self, target: Path, draw: random.Random, *, names: str, rest: str) -> None:
        """What may be found when the power is back.

        ``names``: ``synced`` or ``now``, of folders. ``rest``: what became of bytes that were not
        synced: ``lost``, ``zeros``, ``pages`` (some are there, some lost), or ``there``.
        """
        self._restore(self._root, self._root.stat().st_ino, target, draw, names, rest)

    def _restore(
        self, now: Path | None, inode: int, target: Path, draw: random.Random, names: str, rest: str
    ) -> None:
        target.mkdir()
        entries = self._folders.get(inode, {})
        if names == "now":
            assert now is not None
            entries = _entries(now)
        for name, entry in sorted(entries.items()):
            if entry.is_folder:
                below = None if now is None else _path_of(entry.inode, self._root)
                if below is not None or entry.inode in self._folders:
                    self._restore(below, entry.inode, target / name, draw, names, rest)
                continue
            path = _path_of(entry.inode, self._root)
            synced = self._files.get(entry.inode, b"")
            current = path.read_bytes() if path else synced
            (target / name).write_bytes(_found(synced, current, draw, rest))
            if path:
                times = path.stat()
                os.utime(target / name, ns=(times.st_atime_ns, times.st_mtime_ns))


def _entries(folder: Path) -> dict[str, Entry]:
    with os.scandir(folder) as found:
        return {entry.name: Entry(entry.inode(), entry.is_dir()) for entry in found}


def _path_of(inode: int, root: Path) -> Path | None:
    """Where a file is now."""
    for path in root.rglob("*"):
        try:
            if path.lstat().st_ino == inode:
                return path
        except FileNotFoundError:
            continue
    return None


def _found(synced: bytes, current: bytes, draw: random.Random, rest: str) -> bytes:
    if rest == "there" or synced == current:
        return current
    if rest == "lost":
        return synced
    padded = synced[: len(current)].ljust(len(current), b"\0")
    if rest == "zeros":
        return padded
    pages = range(0, len(current), PAGE)
    return b"".join(draw.choice((padded, current))[k : k + PAGE] for k in pages)
