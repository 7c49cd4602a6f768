"""What tells one state of a file from another without reading all of it."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from wspace.errors import CheckpointError
from wspace.storage.checksums import checksum
from wspace.storage.folders import Status
from wspace.storage.opening import open_regular
from wspace.storage.remote import Location, RemotePath

END = 64 << 10
"""Bytes read of a file without a header: where a zip archive, as PyTorch's are, has its index."""


class Stamp(NamedTuple):
    size: int
    mtime_ns: int  # 0 of a remote file
    digest: str  # of a safetensors header; of any other file's end
    version: str = ""  # of a remote file: its ETag or the like

    def as_json(self) -> dict[str, Any]:
        """Fields by their names; ``version`` where there is one."""
        return {key: value for key, value in self._asdict().items() if key != "version" or value}


def stamp_of(path: Location) -> Stamp:
    """The stamp of a file without a header. Raises CheckpointError."""
    try:
        local = path.local() if isinstance(path, RemotePath) else path
        with open_regular(local) as file:
            status = os.fstat(file.fileno())
            file.seek(max(0, status.st_size - END))
            digest = checksum(file.read(END))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if isinstance(path, RemotePath):
        return Stamp(path.status().size, 0, digest, path.status().version)
    return Stamp(status.st_size, status.st_mtime_ns, digest)


def refuse_changed(path: Location, stamp: Stamp) -> None:
    """Raises CheckpointError if the file is not as it was when it was stamped."""
    try:
        if isinstance(path, RemotePath):
            if not path.is_file():
                raise FileNotFoundError(2, "No such file")
            now = Stamp(path.status().size, 0, stamp.digest, path.status().version)
        else:
            status = path.stat()
            now = Stamp(status.st_size, status.st_mtime_ns, stamp.digest)
    except OSError as error:
        raise CheckpointError(
            f"{path}: changed while it was being read: {error.strerror}; nothing was published"
        ) from None
    if now != stamp:
        raise CheckpointError(
            f"{path}: changed while it was being read ({difference(stamp, now)}); nothing was "
            "published, run it again"
        )


def difference(before: Stamp, now: Stamp) -> str:
    """In words."""
    if (now.size, now.version) != (before.size, before.version):
        return Status(before.size, before.version).difference(Status(now.size, now.version))
    return "the same size, modified since"
