"""A folder of a server: its files, their sizes and versions, and how they are opened."""

from __future__ import annotations

import fnmatch
import re
import weakref
from pathlib import Path
from typing import Any, NamedTuple

from wspace.errors import CheckpointError
from wspace.storage.asking import ShortAnswerError, as_os, reason, server_of, status_of

_USUAL = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tokenizer.tiktoken",
    "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json", "adapter_config.json",
)  # fmt: skip
"""Files beside weights, to be asked for where a web server does not list them."""

_FIRST = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")

_VERSIONS = (
    "VersionId", "version_id", "ETag", "etag", "lfs", "xet_hash", "blob_id", "md5Hash",
    "content_md5", "Last-Modified", "LastModified", "last_modified", "mtime", "created",
)  # fmt: skip
"""What file systems call that by which one state of a file differs from another; the best first."""


class Status(NamedTuple):
    """Of a file of a server."""

    size: int
    version: str  # an ETag, version, hash or date; empty where the server gives none

    def difference(self, now: Status) -> str:
        """In words."""
        if now.size != self.size:
            return f"{self.size} bytes before, {now.size} now"
        return f"version {self.version or '?'} before, {now.version or '?'} now"


class Folder:
    """What is asked for is remembered; a new object asks again."""

    def __init__(self, url: str) -> None:
        self.asked = self.url = url
        self.server, path = server_of(url)
        self._path = path.rstrip("/")
        self._listed: dict[str, Status] | None = None
        self._all_listed = False  # whether all files are listed
        self._known: dict[str, Status | None] = {}  # of files that were asked for by name
        self._copies: Path | None = None  # of small files, while this object is there
        self._web = self.server.scheme in ("http", "https")
        self._closed = self._web  # lists no files, or not all: they are asked for by name
        self._refusal: PermissionError | None = None  # to list them
        if self.server.scheme == "hf":
            self._pin()

    def _pin(self) -> None:
        """Name the commit that a branch stands for now, so that all reads are of one."""
        from huggingface_hub import HfApi

        files = self.server.files
        try:
            found = self.server.ask(lambda: files.resolve_path(self._path))
            revision = getattr(found, "revision", None)
            if revision is None:  # of a bucket
                return
            if not re.fullmatch(r"[0-9a-f]{40}", revision):
                api = HfApi(endpoint=files.endpoint, token=files.token)
                info = self.server.ask(
                    lambda: api.repo_info(
                        found.repo_id, repo_type=found.repo_type, revision=found.revision
                    )
                )
                revision = info.sha
        except Exception as error:
            raise CheckpointError(f"{self.url}: cannot be opened: {reason(error)}") from None
        kind = "" if found.repo_type == "model" else f"{found.repo_type}s/"
        self._path = f"{kind}{found.repo_id}@{revision}/{found.path_in_repo}".rstrip("/")
        self.url = f"hf://{self._path}"

    def exists(self) -> bool:
        if self._web or self._list() or any(map(self.status, _FIRST)):
            return True
        if self._refusal:
            raise self._failed("", self._refusal) from self._refusal
        return False

    def names(self) -> list[str]:
        """Files that are listed."""
        return sorted(self._list())

    def status(self, name: str) -> Status | None:
        """None if there is no such file."""
        listed = self._list() if self._listed is not None or not self._closed else {}
        if self._all_listed:
            return listed.get(name)
        if name not in self._known:
            self._known[name] = self._ask_for(name)
        return self._known[name]

    def _ask_for(self, name: str) -> Status | None:
        try:
            info = self.server.ask(lambda: self.server.files.info(f"{self._path}/{name}"))
        except Exception as error:
            if isinstance(error, FileNotFoundError | PermissionError) and self._absent(error):
                return None
            raise self._failed(name, error) from as_os(error)
        return _status(info, f"{self.url}/{name}") if info["type"] == "file" else None

    def _absent(self, error: OSError) -> bool:
        status = status_of(error)
        if status is None:  # fsspec calls it so too where a web server gave no answer
            return isinstance(error, FileNotFoundError) and not (self._web and error.__cause__)
        return status in (404, 410) or (status == 403 and self._closed)

    def _list(self) -> dict[str, Status]:
        if self._listed is not None:
            return self._listed
        path = f"{self._path}/" if self._web else self._path
        try:
            found = self.server.ask(lambda: self.server.files.ls(path, detail=True))
        except (FileNotFoundError, NotADirectoryError):
            found = []
        except (
            PermissionError
        ) as error:  # of a bucket whose files can be read, where they are known
            found, self._closed, self._refusal = [], True, error
        except Exception as error:
            if not self._web:
                raise self._failed("", error) from as_os(error)
            found = []  # a page that cannot be read is no list
        listed: dict[str, Status] = {}
        for info in found:
            above, _, name = info["name"].rpartition("/")
            if info["type"] != "file" or above.strip("/") != self._path.strip("/"):
                continue
            if not self._closed:
                listed[name] = _status(info, f"{self.url}/{name}")
            elif re.fullmatch(r"[\w.-]+", name) and (status := self.status(name)):
                listed[name] = status
        # a web page may be anything; one with links to weights is a list of the folder
        self._all_listed = not self._closed or any(name.endswith(_WEIGHTS) for name in listed)
        if not self._all_listed:
            found = {name: self.status(name) for name in _FIRST}
            listed |= {name: status for name, status in found.items() if status}
        self._listed = listed
        return listed

    def small_files(self, patterns: tuple[str, ...]) -> Path:
        """A local folder with those of the files whose names are like these."""
        names = {*self.names(), *(() if self._all_listed else _USUAL)}
        for name in sorted(names):
            if any(fnmatch.fnmatchcase(name, like) for like in patterns) and self.status(name):
                self.copy(name)
        return self._place_of_copies()

    def copy(self, name: str) -> Path:
        """A small file, fetched whole, once. Raises FileNotFoundError."""
        copy = self._place_of_copies() / name
        if not copy.exists():
            status = self.status(name)
            if status is None:
                raise FileNotFoundError(2, "No such file", f"{self.url}/{name}")
            try:
                data = self.server.ask(lambda: self._fetched(name, status.size))
            except Exception as error:
                raise self._failed(name, error) from as_os(error)
            copy.write_bytes(data)
        return copy

    def _fetched(self, name: str, size: int) -> bytes:
        data = self.server.files.cat_file(f"{self._path}/{name}")
        if len(data) != size:
            raise ShortAnswerError(f"{len(data)} bytes came, expected {size}")
        return data

    def _place_of_copies(self) -> Path:
        if self._copies is None:
            import shutil  # not for --help
            import tempfile

            self._copies = Path(tempfile.mkdtemp(prefix="wspace-remote-"))
            weakref.finalize(self, shutil.rmtree, self._copies, ignore_errors=True)
        return self._copies

    def open(self, name: str) -> Any:
        """A file of fsspec, without a cache: what is read is what is asked for."""
        options: dict[str, Any] = {}
        if self._web:
            size, version = self.status(name) or Status(0, "")
            headers = {**self.server.files.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
            if version.startswith('"'):  # an ETag that stands for the bytes
                headers["If-Match"] = version
            options = {"headers": headers, "size": size}
        return self.server.files.open(f"{self._path}/{name}", "rb", cache_type="none", **options)

    def _failed(self, name: str, error: Exception) -> CheckpointError:
        url = f"{self.url}/{name}" if name else self.url
        return CheckpointError(f"{url}: cannot be read: {reason(error)}")


def _status(info: dict[str, Any], url: str) -> Status:
    size = info.get("size")
    if not isinstance(size, int):
        raise CheckpointError(f"{url}: the server does not tell its size; expected Content-Length")
    version = next((info[key] for key in _VERSIONS if info.get(key)), "")
    if isinstance(version, dict):  # of the Hub's large files
        version = version.get("sha256", version)
    return Status(size, str(version))
