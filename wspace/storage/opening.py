"""Opening files that others wrote: regular ones only, and none that a link leads out of its folder.

A pipe in place of a file would be waited for without end, and a device has none. A link from a
model's folder to a file elsewhere would put what is there (a key, another's weights) into an output
that is published. Links inside the folder are followed, and those of the Hub's cache, which keeps a
snapshot as links into the ``blobs`` beside ``snapshots``, and those into ``blobs`` of the cache.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from wspace.errors import CheckpointError
from wspace.storage.remote import Location, RemotePath

MAX_TEXT = 100_000_000
"""Bytes of a text that is read whole: an index, a config, a tokenizer. As many as of a header."""

_SNAPSHOT = re.compile(r"(?P<repository>(?P<cache>.*)/[a-z]+--[^/]+)/snapshots/[^/]+(/.*)?")


def open_regular(path: Path) -> BinaryIO:
    """A file for reading. Raises OSError, for what is no regular file too, at once."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # without it, a pipe is waited for
    file = os.fdopen(os.open(path, flags), "rb")
    kind = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(kind):
        file.close()
        raise OSError(errno.EINVAL, "is no regular file")
    return file


def read_text(path: Location, most: int = MAX_TEXT) -> str:
    """A text in UTF-8. Raises OSError, also for one of more than ``most`` bytes, and ValueError."""
    if isinstance(path, RemotePath):
        if path.is_file():  # else the copy says that it is not there
            _refuse_long(path.status().size, most)
        path = path.local()
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        _refuse_long(size, most)
        text = file.read(size).decode("utf-8")  # as much memory is taken as is asked for
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _refuse_long(size: int, most: int) -> None:
    if size > most:
        raise OSError(errno.EFBIG, f"has {size} bytes, expected at most {most}")


def real_path(path: Path) -> Path:
    """Where a path leads; ``resolve`` raises at a link to itself, which stays as it is here."""
    return Path(os.path.realpath(path))


def read_object(path: Location) -> dict[str, Any] | None:
    """A JSON object; None if the file has none, or cannot be read."""
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def check_folder(folder: Location, endings: Sequence[str]) -> None:
    """Raises CheckpointError if what has such an ending is no file of the folder.

    Folders, and links to nothing, are no matter: they are not there for whoever looks for a file.
    """
    if isinstance(folder, RemotePath):
        return
    with os.scandir(folder) as entries:
        chosen = [entry for entry in entries if entry.name.endswith(tuple(endings))]
    unusual = [entry for entry in chosen if not entry.is_file(follow_symlinks=False)]
    if not unusual:
        return
    real = os.path.realpath(folder)
    grounds = [real]
    if snapshot := _SNAPSHOT.fullmatch(real):
        grounds += [f"{snapshot['repository']}/blobs", f"{snapshot['cache']}/blobs"]
    for path in sorted(Path(entry.path) for entry in unusual):
        if path.is_dir() or not path.exists():
            continue
        if not path.is_file():
            raise CheckpointError(f"{path}: is no regular file; expected one, or none")
        target = os.path.realpath(path)
        if not any(target.startswith(f"{ground}/") for ground in grounds):
            raise CheckpointError(
                f"{path}: is a link out of its folder, to {target}; expected a file of the folder: "
                "copy it there, or give the folder that it belongs to"
            )
