"""Checksums of tensors: of blocks, each on its own, so that any thread may take any of them.

A tensor is cut from its start into blocks of ``BLOCK`` bytes. Its checksum is that of its blocks'
checksums, as text, one after the other. xxh3 with 128 bits runs at the speed of memory (33 GB/s on
a Zen 5 core, where sha256 has 2): it finds damage, and is no proof against forgery.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import xxhash

ALGORITHM = "xxh3_128"

DIGEST = 16
"""Bytes of a checksum."""

BLOCK = 256 << 10
"""Bytes. What is journaled, and read again, at a time."""


PIECE = 64 << 10
"""Bytes hashed at a time. For more, xxhash lets go of Python's lock, and to get that back from busy
threads takes many times as long as the hash."""


def checksum(data: bytes | memoryview) -> str:
    """32 hexadecimal digits. ``data``: contiguous bytes."""
    return digest(data).hex()


def digest(data: bytes | memoryview) -> bytes:
    """The same as ``DIGEST`` bytes."""
    if len(data) <= PIECE:
        return xxhash.xxh3_128_digest(data)
    found = xxhash.xxh3_128()
    _update(found, memoryview(data))
    return found.digest()


def checksum_apart(data: bytes | memoryview) -> str:
    """The same without Python's lock: for threads that do little else."""
    return xxhash.xxh3_128_hexdigest(data)


def _update(digest: xxhash.xxh3_128, view: memoryview) -> None:
    for start in range(0, len(view), PIECE):
        digest.update(view[start : start + PIECE])


def checksum_of_blocks(checksums: Iterable[str]) -> str:
    """That of a tensor, from those of its blocks."""
    return checksum("".join(checksums).encode())


BLANK = "0" * 32
"""In place of a record's checksum of its own text, when that is taken."""


def seal(record: Path) -> None:
    """Fill in the checksum of a JSON file's text, whose ``"record"`` is ``BLANK``."""
    text = record.read_text(encoding="utf-8")
    digest = checksum(text.encode())
    record.write_text(text.replace(f'"record": "{BLANK}"', f'"record": "{digest}"'), "utf-8")


def is_sealed(text: str, digest: str) -> bool:
    """Whether the text is as it was when it was sealed."""
    blank = text.replace(f'"record": "{digest}"', f'"record": "{BLANK}"')
    return checksum(blank.encode()) == digest


class OpenBlock:
    """A block that arrives in parts, in any order: one that is early is kept until its turn."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes, self._done = nbytes, 0
        self._hash = xxhash.xxh3_128()
        self._early: dict[int, bytes | memoryview] = {}

    def add(self, start: int, part: memoryview) -> bytes | None:
        """A part that starts at byte ``start`` of the block; its digest, when all are there."""
        self._early[start] = part if start == self._done else bytes(part)
        while self._done in self._early:
            piece = self._early.pop(self._done)
            _update(self._hash, memoryview(piece))
            self._done += len(piece)
        return self._hash.digest() if self._done == self._nbytes else None
