"""Asking servers through fsspec: which library, how long, how often, and what an error means."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from wspace.errors import CheckpointError, WspaceError

ATTEMPTS = 6
"""Of one request, with pauses of ``PAUSE`` seconds, twice as long each time."""

PAUSE = 0.25

TIMEOUT = 30.0
"""Seconds without a byte, of a plain HTTP server; the other libraries have their own."""

_PATIENT = {"hf": 2, "s3": 3, "s3a": 3}
"""Attempts where the library below tries again by itself."""

_FINAL = (
    WspaceError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError,
    NotImplementedError, ImportError, AttributeError, TypeError, ValueError,
)  # fmt: skip
"""What will be no other when it is asked again."""

_Answer = TypeVar("_Answer")


class ShortAnswerError(OSError):
    """Fewer bytes than were asked for."""


class Server(NamedTuple):
    """A file system of fsspec, asked from any thread."""

    scheme: str
    files: Any  # fsspec.AbstractFileSystem
    broken: (
        threading.Event
    )  # a request has failed for good: until one is answered, none is repeated

    def ask(self, request: Callable[[], _Answer]) -> _Answer:
        """The answer, asked for again where that may help.

        Raises FileNotFoundError for what is not there, else what the last attempt raised.
        """
        attempts = _PATIENT.get(self.scheme, ATTEMPTS)
        for attempt in range(attempts):
            try:
                answer = request()
            except Exception as error:
                status = status_of(error)
                if status in (404, 410):
                    raise FileNotFoundError(str(error)) from error
                last = attempt + 1 == attempts or not _may_pass(error, status)
                if last or self.broken.wait(PAUSE * 2**attempt):
                    raise
            else:
                self.broken.clear()
                return answer
        raise AssertionError


def server_of(url: str) -> tuple[Server, str]:
    """The server of a URL, and what the file is called there. Raises CheckpointError."""
    scheme = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs

        # an instance of our own: what it remembers of a folder is not older than the opening
        files, path = url_to_fs(url, skip_instance_cache=True, **_options(scheme))
    except ImportError as error:
        raise CheckpointError(
            f"{url}: a package that reads {scheme}:// is missing ({error}): "
            "pip install 'wspace[remote]' has those of hf, s3 and https"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{url}: cannot be read: {error}") from None
    if scheme in ("s3", "s3a"):
        files.retries = 1  # those of botocore below are enough
    return Server(scheme, files, threading.Event()), path


def _options(scheme: str) -> dict[str, Any]:
    if scheme not in ("http", "https"):
        return {}
    from aiohttp import ClientTimeout
    from fsspec.config import conf

    own = {
        "timeout": ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT),
        "trust_env": True,  # proxies and ~/.netrc, as other programs have them
    }
    return {"client_kwargs": own | conf.get(scheme, {}).get("client_kwargs", {})}


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status that an error of any of the libraries stands for, if there was one."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):  # botocore
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            found = getattr(error, "status", getattr(response, "status_code", None))
        if isinstance(found, int):
            return found
        error = error.__cause__
    return None


def _may_pass(error: BaseException, status: int | None) -> bool:
    if status is not None:
        return status in (408, 425, 429) or status >= 500
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return _may_pass(error.__cause__, None)  # fsspec calls any failure of a web server so
    return not isinstance(error, _FINAL) and "Credentials" not in type(error).__name__


def reason(error: BaseException) -> str:
    """In a few words, without secrets: the address that a server sends on to may hold a key."""
    status = status_of(error)
    if status is not None:
        from http import HTTPStatus  # not for --help

        known = status in {each.value for each in HTTPStatus}
        return f"HTTP {status} {HTTPStatus(status).phrase}" if known else f"HTTP {status}"
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return reason(error.__cause__)
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "the server was silent for too long"
    text = (str(error).strip() or type(error).__name__).splitlines()[0].partition(". ")[0]
    return re.sub(r"\?\S+", "", re.sub(r"//[^/@\s]*@", "//", text))[:160]


def as_os(error: Exception) -> OSError:
    """The cause of a refusal that a network brought about: what was finished before it is kept."""
    return error if isinstance(error, OSError) else OSError(str(error))
