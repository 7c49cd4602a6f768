"""Files of other machines, by URLs: ``hf://``, ``s3://``, ``https://``, all that fsspec knows.

A :class:`RemotePath` has what of ``pathlib.Path`` it takes to open a checkpoint. Weights are read
by ranges, into buffers that are there already; small files are fetched whole, into a folder that
ends with the process. Credentials are the libraries' own matter: no URL may hold any.
"""

from __future__ import annotations

import fnmatch
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from wspace.errors import CheckpointError
from wspace.storage.asking import ShortAnswerError, as_os, reason, server_of, status_of
from wspace.storage.folders import Folder, Status

if TYPE_CHECKING:
    import numpy as np

FAR_REQUEST = 2 << 20
"""Bytes of one range at most: far servers take long to begin."""

FAR_THREADS = 16
"""Ranges that are read at a time, for the same reason."""

FAR_WORKSPACE = 2 * FAR_THREADS * FAR_REQUEST
"""Bytes held meanwhile: the parts of each answer, and the whole that is made of them."""

_URL = re.compile(r"[a-z][a-z0-9.-]*://")
_FILES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".json")


class RemotePath:
    """A folder of a server, or a file in it."""

    def __init__(self, folder: Folder, file: str = "") -> None:
        self._folder, self._file = folder, file
        self._url = f"{folder.url}/{file}" if file else folder.url
        self._opened: Any = None
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return self._url

    def __repr__(self) -> str:
        return f"RemotePath({self._url!r})"

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, RemotePath) and self._url == other._url)

    def __hash__(self) -> int:
        return hash(self._url)

    def __lt__(self, other: RemotePath) -> bool:
        return self._url < other._url

    def __truediv__(self, file: str) -> RemotePath:
        return RemotePath(self._folder, file)

    @property
    def asked(self) -> str:
        """The URL as it was given; of the Hub, a branch in place of its commit."""
        return f"{self._folder.asked}/{self._file}" if self._file else self._folder.asked

    @property
    def name(self) -> str:
        return PurePosixPath(self._url).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self._file).suffix

    @property
    def parent(self) -> RemotePath:
        return RemotePath(self._folder)

    def absolute(self) -> RemotePath:
        return self

    resolve = absolute

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_dir(self) -> bool:
        return not self._file and self._folder.exists()

    def is_file(self) -> bool:
        return bool(self._file) and self._folder.status(self._file) is not None

    def iterdir(self) -> Iterator[RemotePath]:
        return (self / file for file in self._folder.names())

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        return (self / file for file in fnmatch.filter(self._folder.names(), pattern))

    def status(self) -> Status:
        """Size and version, as they were when they were first asked for."""
        found = self._folder.status(self._file)
        if found is None:
            raise CheckpointError(f"{self}: no such file")
        return found

    def local(self) -> Path:
        """A copy of a small file. Raises FileNotFoundError."""
        return self._folder.copy(self._file)

    def small_files(self, patterns: tuple[str, ...]) -> Path:
        """A local folder with copies of the small files of such names."""
        return self._folder.small_files(patterns)

    def read_bytes(self) -> bytes:
        return self.local().read_bytes()

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.local().read_text(encoding)

    def read_into(self, view: np.ndarray, start: int) -> None:
        """Fill ``view`` (uint8) with the file's bytes from ``start`` on; raises as :meth:`read`."""
        view.data[:] = self.read(start, len(view))

    def read(self, start: int, nbytes: int) -> bytes:
        """Bytes of the file, by one request. May be called by several threads.

        Raises CheckpointError for a server that does not give them, and for a file that is not as
        it was when it was first looked at.
        """
        if nbytes == 0:
            return b""
        before = self.status()
        server = self._folder.server
        try:
            return server.ask(lambda: self._range(start, nbytes))
        except Exception as error:
            server.broken.set()
            now = self._status_now(before)
            if now == before and status_of(error) != 412:  # If-Match
                raise CheckpointError(f"{self}: cannot be read: {reason(error)}") from as_os(error)
        how = before.difference(now) if now else "it is gone"
        raise CheckpointError(f"{self}: changed while it was being read ({how}); run it again")

    def _status_now(self, unknown: Status) -> Status | None:
        try:
            folder = Folder(self._folder.url)
            folder.server.broken.set()  # one answer is enough, or none
            return folder.status(self._file)
        except CheckpointError:
            return unknown

    def _range(self, start: int, nbytes: int) -> bytes:
        from fsspec.spec import AbstractBufferedFile

        with self._lock:
            if self._opened is None:
                self._opened = self._folder.open(self._file)
        if isinstance(self._opened, AbstractBufferedFile):
            # has neither a place nor a cache: what is asked for is what is sent, in any thread
            data = self._opened._fetch_range(start, start + nbytes)
        else:
            with self._lock:
                self._opened.seek(start)
                data = self._opened.read(nbytes)
        found = f"{len(data)} bytes came from byte {start} on, expected {nbytes}"
        if len(data) < nbytes:
            raise ShortAnswerError(found)
        if len(data) > nbytes:
            raise ValueError(f"{found}: the server does not give ranges")
        return data


Location = Path | RemotePath
"""Where a checkpoint, or one of its files, is."""


def is_remote(name: str | Location) -> bool:
    """Whether it is a URL."""
    return isinstance(name, RemotePath) or _URL.match(str(name)) is not None


def location(name: str | Location) -> Location:
    """The path, or what a URL names: a file, if it ends as one of weights does, else a folder.

    A branch of the Hub becomes the commit that it stands for now. Raises CheckpointError.
    """
    return locations([name])[0]


def locations(names: Iterable[str | Location]) -> list[Location]:
    """Several; those of one folder of a server share what is asked about it."""
    folders: dict[str, Folder] = {}

    def remote(url: str) -> RemotePath:
        above, _, last = url.rpartition("/")
        folder, file = (above, last) if PurePosixPath(last).suffix in _FILES else (url, "")
        if folder not in folders:
            folders[folder] = Folder(folder)
        return RemotePath(folders[folder], file)

    return [
        name
        if isinstance(name, RemotePath)
        else remote(_without_secrets(str(name)).rstrip("/"))
        if is_remote(name)
        else Path(name)
        for name in names
    ]


def matching(pattern: str) -> list[Location]:
    """Files and folders that a URL with ``*`` fits. Raises CheckpointError."""
    server, path = server_of(_without_secrets(pattern))
    try:
        found = server.ask(lambda: server.files.glob(path))
    except Exception as error:
        raise CheckpointError(f"{pattern}: cannot be listed: {reason(error)}") from as_os(error)
    return locations(server.files.unstrip_protocol(name) for name in found)


def _without_secrets(url: str) -> str:
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    if (scheme != "hf" and "@" in host) or (scheme in ("http", "https") and "?" in path):
        shown = f"{scheme}://{host.rpartition('@')[2]}/{path.partition('?')[0]}"
        raise CheckpointError(
            f"{shown}: a URL's password or query would be written down in wspace.json; expected "
            "one without; credentials go where its library looks for them (~/.netrc, ~/.aws, "
            "fsspec's settings, the Hub's token)"
        )
    return url
