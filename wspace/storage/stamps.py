"""What tells one state of a file from another without reading all of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from wspace.errors import CheckpointError
from wspace.storage.checksums import checksum

END = 64 << 10
"""Bytes read of a file without a header: where a zip archive, as PyTorch's are, has its index."""


class Stamp(NamedTuple):
    size: int
    mtime_ns: int
    digest: str  # of a safetensors header; of any other file's end


def stamp_of(path: Path) -> Stamp:
    """The stamp of a file without a header. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            file.seek(max(0, status.st_size - END))
            return Stamp(status.st_size, status.st_mtime_ns, checksum(file.read(END)))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def refuse_changed(path: Path, stamp: Stamp) -> None:
    """Raises CheckpointError if the file is not as it was when it was stamped."""
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(
            f"{path}: changed while it was being read: {error.strerror}; nothing was published"
        ) from None
    if (status.st_size, status.st_mtime_ns) != (stamp.size, stamp.mtime_ns):
        raise CheckpointError(
            f"{path}: changed while it was being read ({difference(stamp, status)}); nothing was "
            "published, run it again"
        )


def difference(before: Stamp, now: Stamp | os.stat_result) -> str:
    """In words."""
    size = now.size if isinstance(now, Stamp) else now.st_size
    if size != before.size:
        return f"{before.size} bytes before, {size} now"
    return "the same size, modified since"
