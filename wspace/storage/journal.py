"""The journal of an output that is being made: its finished blocks, only ever added to.

    SHARD START NBYTES CHECKSUM CHECK

A line tells of one block, or of several beside each other, whose checksums stand one after the
other: to write a line for each took as long as the checksums themselves. It is written after the
bytes are on the disk, and vouches for them. ``CHECK`` is a checksum of the line and of the job that
it belongs to: what a crash left of a line, or of an earlier job, is known for what it is, and
passed over. Where several processes make an output, each has a journal of its own.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import xxhash


class Block(NamedTuple):
    """A finished run of bytes of one file; of several blocks, with the checksum of each."""

    shard: int
    start: int  # byte in the shard's file
    nbytes: int
    checksum: str


def open_locked(path: Path, how: int) -> int:
    """A descriptor of the file, made if it is not there, with a lock that ends with the process.

    ``how``: ``fcntl.LOCK_EX``, or ``fcntl.LOCK_SH`` for one that others may have too. Raises
    BlockingIOError if another has it, FileNotFoundError if the folder is gone.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            # the one who had it may have removed it meanwhile
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def read_blocks(path: Path, job: str) -> list[Block]:
    """Every line that is whole and of this job. A later one may tell anew of some of a line's
    blocks, which ``Blocks.split`` settles."""
    lines = path.read_text(encoding="ascii", errors="replace").split("\n")
    return [block for line in lines if (block := _parsed(line, job))]


class Journal:
    """The open file. It is locked while it is open."""

    def __init__(self, path: Path, job: str) -> None:
        """``job``: the digest of its fingerprint. Errors are those of :func:`open_locked`."""
        self._path, self._job = path, job
        self._descriptor = open_locked(path, fcntl.LOCK_EX)

    def read(self) -> list[Block]:
        """See :func:`read_blocks`; to be called once before anything is added."""
        size = os.fstat(self._descriptor).st_size
        if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
            os.write(self._descriptor, b"\n")  # what a crash left: the next line starts as one
        return read_blocks(self._path, self._job)

    def add(self, blocks: Iterable[Block]) -> None:
        """Return when they are on the disk."""
        text = "".join(map(self._line, blocks)).encode()
        while text:
            text = text[os.write(self._descriptor, text) :]
        os.fdatasync(self._descriptor)

    def clear(self) -> None:
        os.ftruncate(self._descriptor, 0)

    @property
    def empty(self) -> bool:
        return self._descriptor < 0 or os.fstat(self._descriptor).st_size == 0

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _line(self, block: Block) -> str:
        shard, start, nbytes, checksum = block
        text = f"{shard} {start} {nbytes} {checksum}"
        return f"{text} {_check(text, self._job)}\n"


def _check(text: str, job: str) -> str:
    return xxhash.xxh3_64_hexdigest(f"{job} {text}".encode())


def _parsed(line: str, job: str) -> Block | None:
    text, _, check = line.rpartition(" ")
    if _check(text, job) != check:
        return None
    shard, start, nbytes, checksum = text.split(" ")
    return Block(int(shard), int(start), int(nbytes), checksum)
