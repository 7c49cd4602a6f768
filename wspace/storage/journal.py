"""The journal of an output that is being made: its finished blocks, one a line, only ever added to.

    SHARD START NBYTES CHECKSUM CHECK

A line is written after the block's bytes are on the disk, and vouches for them. ``CHECK`` is a
checksum of the line and of the job that it belongs to: what a crash left of a line, or of an
earlier job, is known for what it is, and passed over.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import xxhash


class Block(NamedTuple):
    """A finished run of bytes of one file."""

    shard: int
    start: int  # byte in the shard's file
    nbytes: int
    checksum: str


class Journal:
    """The open file. It is locked while it is open: the lock ends with the process."""

    def __init__(self, path: Path, job: str) -> None:
        """``job``: the digest of its fingerprint.

        Raises BlockingIOError if another has it, FileNotFoundError if the folder is gone.
        """
        self._path, self._job = path, job
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        while True:
            self._descriptor = os.open(path, flags, 0o644)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # the one who had it may have removed it meanwhile
                if os.path.samestat(os.fstat(self._descriptor), path.stat()):
                    return
            except BaseException:
                self.close()
                raise
            self.close()

    def read(self) -> list[Block]:
        """Every line that is whole; of a block that is there twice, the last."""
        text = self._path.read_text(encoding="ascii", errors="replace")
        if text and not text.endswith("\n"):
            os.write(self._descriptor, b"\n")  # the next line starts as one
        blocks = (self._parsed(line) for line in text.split("\n"))
        return list({(block.shard, block.start): block for block in blocks if block}.values())

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

    def _check(self, text: str) -> str:
        return xxhash.xxh3_64_hexdigest(f"{self._job} {text}".encode())

    def _line(self, block: Block) -> str:
        text = " ".join(map(str, block))
        return f"{text} {self._check(text)}\n"

    def _parsed(self, line: str) -> Block | None:
        text, _, check = line.rpartition(" ")
        if self._check(text) != check:
            return None
        shard, start, nbytes, checksum = text.split(" ")
        return Block(int(shard), int(start), int(nbytes), checksum)
