"""A checkpoint: the tensors of one model, whichever files they are in."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from weakref import WeakValueDictionary

from wspace.errors import CheckpointError
from wspace.storage.headers import BITS, RawHeader, TensorRecord, read_raw
from wspace.storage.opening import check_folder, read_text
from wspace.storage.remote import FAR_THREADS, Location, RemotePath, location
from wspace.storage.stamps import Stamp, stamp_of

if TYPE_CHECKING:
    import numpy as np

INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
PICKLES = (".bin", ".pt", ".pth")

SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py")
"""Files that belong to a model besides its weights: config, tokenizer, generation, code."""

_SMALL = tuple([pattern.removeprefix("*") for pattern in SMALL_FILES])


class Derived(Protocol):
    """A tensor that no file holds: its elements are computed, as they are read, from ones that do.

    ``fill`` gives the same bits for an element whichever run of elements it is asked for in, and
    may be called by several threads.
    """

    dtype: str  # that an output made from it alone has: a key of headers.BITS
    nbytes: int  # of files, read for all of it
    workspace: int  # bytes held while one request is filled, besides the target

    def fill(self, start: int, view: np.ndarray) -> None:
        """Write the tensor's bytes from ``start`` on into ``view`` (uint8)."""
        ...


class StoredTensor(NamedTuple):
    """A tensor of a checkpoint, and where its bytes are."""

    record: TensorRecord  # of a derived tensor: what is read; ``start`` counts its own bytes
    file: int  # index into Checkpoint.files, in whose order the bytes are best read
    memory: Any = None  # a uint8 array, where the file does not have the bytes in order
    derived: Derived | None = None

    @property
    def written(self) -> str:
        """The type of an output made from this tensor alone; 8-bit types become bfloat16."""
        dtype = self.derived.dtype if self.derived else self.record.dtype
        return "BF16" if BITS[dtype] == 8 and dtype.startswith("F") else dtype

    @property
    def read_bytes(self) -> int:
        """Of files, for all of it."""
        return self.derived.nbytes if self.derived else self.record.nbytes


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one model, from headers alone: nothing else has been read."""

    path: Location
    files: tuple[Location, ...]
    tensors: dict[str, StoredTensor]  # in file order
    aliases: dict[str, str] = field(default_factory=dict)  # name -> the tensor it shares bytes with
    metadata: dict[str, str] = field(default_factory=dict)
    title: str = ""  # what it is called, if not by its path
    stamps: tuple[Stamp, ...] = ()  # of the files, when they were opened

    def __str__(self) -> str:
        return self.title or str(self.path)

    @property
    def nbytes(self) -> int:
        """Of files, read for all of it."""
        return sum(tensor.read_bytes for tensor in self.tensors.values())

    @property
    def numel(self) -> int:
        return sum(tensor.record.numel for tensor in self.tensors.values())

    @property
    def is_remote(self) -> bool:
        """Whether any of its files is on a server."""
        return any(isinstance(file, RemotePath) for file in self.files)

    @property
    def home(self) -> Location:
        """The folder that it is in."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def folder(self) -> Path:
        """Where the config and tokenizer are: of a remote checkpoint, copies of them."""
        home = self.home
        return home.small_files(SMALL_FILES) if isinstance(home, RemotePath) else home

    def find(self, name: str) -> StoredTensor | None:
        """The tensor of this name, or the one that it is an alias of."""
        return self.tensors.get(self.aliases.get(name, name) if self.aliases else name)


def open_checkpoint(path: str | Location) -> Checkpoint:
    """A checkpoint's headers: a folder or file of safetensors, or PyTorch's ``.bin`` / ``.pt``.

    ``path`` may be a URL: ``hf://owner/model[@revision]``, ``s3://bucket/prefix``,
    ``https://host/folder``, or any other that fsspec knows. Its safetensors are read by ranges,
    here and in every pass, and never copied to a disk.

    A folder is read through its ``model.safetensors.index.json``; or its ``model.safetensors``; or
    its shards ``NAME-00001-of-00003.safetensors``, which must be complete; or its only safetensors
    file; or its ``pytorch_model.bin`` (with index). PyTorch files are unpickled by
    torch's ``weights_only`` loader, which runs no code. Links may lead to files of the folder, or
    of the Hub's cache that the folder is in (see ``wspace.storage.opening``).

    Raises CheckpointError, naming the file, what was found and what was expected.
    """
    place = location(path)
    found = _opened(place)
    return replace(found, title=place.asked) if isinstance(place, RemotePath) else found


def _opened(path: Location) -> Checkpoint:
    if path.is_file():
        if (path.parent / "config.json").exists():  # the files beside it go with it
            check_folder(path.parent, _SMALL)
        if path.suffix == ".safetensors":
            return _from_safetensors(path, [path])
        if path.suffix in PICKLES:
            return _from_pickles(path, [path])
        raise CheckpointError(
            f"{path}: expected a folder, or a file ending in .safetensors, {', '.join(PICKLES)}"
        )
    if not path.is_dir():
        found = "is neither a file nor a folder" if path.exists() else "no such file or folder"
        raise CheckpointError(f"{path}: {found}")
    check_folder(path, (".safetensors", *PICKLES, *_SMALL))
    if (path / INDEX).is_file():
        return _from_index(path, path / INDEX, _from_safetensors)
    if (path / "model.safetensors").is_file():
        return _from_safetensors(path, [path / "model.safetensors"])
    files: list[Location] = sorted(path.glob("*.safetensors"), key=str)
    if files:
        return _from_safetensors(path, _complete_shards(path, files))
    index = path / "pytorch_model.bin.index.json"
    if index.is_file():
        return _from_index(path, index, _from_pickles)
    pickles = sorted(file for file in path.iterdir() if file.suffix in PICKLES)
    named = [file for file in pickles if file.name == "pytorch_model.bin"]
    if len(named or pickles) == 1:
        return _from_pickles(path, named or pickles)
    found = ", ".join(file.name for file in pickles[:4]) or "none"
    raise CheckpointError(
        f"{path}: expected model.safetensors, {INDEX} or pytorch_model.bin; weight files: {found}"
    )


def _complete_shards(folder: Location, files: list[Location]) -> list[Location]:
    matches = [SHARD.fullmatch(file.name) for file in files]
    shards = [match for match in matches if match]
    if not shards:
        if len(files) == 1:
            return files
        raise CheckpointError(
            f"{folder}: {len(files)} safetensors files ({files[0].name}, {files[1].name}, ...) and "
            f"neither an {INDEX} nor shard numbers; name one of the files"
        )
    kinds = {(match["stem"], match["count"]) for match in shards}
    if len(kinds) > 1:
        raise CheckpointError(
            f"{folder}: shards of several models: "
            + ", ".join(f"{stem}-*-of-{count}" for stem, count in sorted(kinds))
        )
    ((stem, count),) = kinds
    expected = [f"{stem}-{number:05}-of-{count}.safetensors" for number in range(1, int(count) + 1)]
    have = {match.string for match in shards}
    for name in expected:
        if name not in have:
            raise CheckpointError(f"{folder}: shard {name} is missing")
    for name in sorted(have.difference(expected)):
        raise CheckpointError(f"{folder}: shard {name} is not one of {int(count)}")
    return [folder / name for name in expected]


def _from_index(folder: Location, index: Location, reader) -> Checkpoint:
    try:
        weight_map = json.loads(read_text(index))["weight_map"]
        names = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: expected JSON with a weight_map: {error!r:.80}") from None
    except OSError as error:
        raise CheckpointError(f"{index}: cannot be read: {error.strerror}") from error
    if not names:
        raise CheckpointError(f"{index}: weight_map is empty")
    files = []
    for file in dict.fromkeys(names.values()):
        if Path(file).name != file or file in ("", ".", ".."):
            raise CheckpointError(f"{index}: shard {file!r:.80} is not a file name in this folder")
        if len(file.encode(errors="replace")) > 255 or not (folder / file).is_file():
            raise CheckpointError(f"{index}: shard {_shown(file)} does not exist")
        files.append(folder / file)
    _refuse_unlisted(folder, index, {file.name for file in files})
    checkpoint = reader(folder, sorted(files))
    for name, file in names.items():
        tensor = checkpoint.find(name)
        if tensor is None or checkpoint.files[tensor.file].name != file:
            raise CheckpointError(
                f"{index}: tensor {name!r:.200} is not in {file:.80}, as the index says"
            )
    for name in checkpoint.tensors:
        if name not in names:
            raise CheckpointError(
                f"{index}: tensor {name!r:.200} is in a shard, but not in the index"
            )
    return checkpoint


def _refuse_unlisted(folder: Location, index: Location, listed: set[str]) -> None:
    """An index that was cut short leaves a shard out, and with it tensors."""
    shards = [match for match in map(SHARD.fullmatch, listed) if match]
    sets = {match.group("stem", "count") for match in shards}
    if not sets or isinstance(folder, RemotePath):
        return
    for file in sorted(folder.iterdir()):
        match = SHARD.fullmatch(file.name)
        if match and match.group("stem", "count") in sets and file.name not in listed:
            raise CheckpointError(f"{index}: shard {file.name} is in the folder, but not in it")


def _shown(name: str) -> str:
    return name[:80] if name.isprintable() else f"{name!r:.80}"


class _Tensors(dict[str, StoredTensor]):
    """Those that some headers tell of."""

    def __init__(self, headers: Sequence[RawHeader]) -> None:
        super().__init__()
        self.metadata: list[dict[str, str]] = []  # of each
        files = [raw.path for raw in headers]
        for number, raw in enumerate(headers):
            header = raw.parsed()
            self.metadata.append(header.metadata)
            rows = zip(header.tensors.values(), repeat(number), repeat(None), repeat(None))
            stored = map(partial(tuple.__new__, StoredTensor), rows)
            _add(self, dict(zip(header.tensors, stored, strict=True)), files)


_KNOWN: WeakValueDictionary[tuple[tuple[int, int, str], ...], _Tensors] = WeakValueDictionary()
"""By what the headers of a checkpoint tell of tensors: the models of a zoo mostly tell the same,
which is parsed and checked once. As long as a checkpoint has them."""


def _from_safetensors(path: Location, files: Sequence[Location]) -> Checkpoint:
    headers = _headers(files)
    stamps = tuple([raw.stamp for raw in headers])
    told = [raw.told() for raw in headers]
    key = tuple([of_tensors for of_tensors, _ in told])
    tensors = _KNOWN.get(key)
    if tensors is None:
        tensors = _KNOWN[key] = _Tensors(headers)
    metadata: dict[str, str] = {}
    for (_, own), shared in zip(told, tensors.metadata, strict=True):
        metadata |= shared if own is None else own
    return Checkpoint(path, tuple(files), tensors, metadata=metadata, stamps=stamps)


def _headers(files: Sequence[Location]) -> list[RawHeader]:
    """Of remote files several at a time: each takes two requests."""
    if not any(isinstance(file, RemotePath) for file in files):
        return [read_raw(file) for file in files]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(FAR_THREADS, thread_name_prefix="wspace-headers") as pool:
        return list(pool.map(read_raw, files))


def _from_pickles(path: Location, files: Sequence[Location]) -> Checkpoint:
    from wspace.storage.pickles import pickled_tensors  # torch: only where a file needs it

    tensors: dict[str, StoredTensor] = {}
    aliases: dict[str, str] = {}
    local = []
    for file in files:
        if isinstance(file, RemotePath):
            raise CheckpointError(
                f"{file}: PyTorch's files cannot be read by ranges; expected safetensors, or a "
                "local copy"
            )
        local.append(file)
    stamps = tuple([stamp_of(file) for file in local])
    for number, file in enumerate(local):
        records, shared = pickled_tensors(file)
        found = {name: StoredTensor(r, number, m) for name, (r, m) in records.items()}
        _add(tensors, found, files)
        aliases |= shared
    for name in sorted(aliases.keys() & tensors.keys()):
        raise CheckpointError(f"{path}: tensor {name!r:.200} is in two files")
    return Checkpoint(path, tuple(files), tensors, aliases, stamps=stamps)


def _add(
    tensors: dict[str, StoredTensor], found: dict[str, StoredTensor], files: Sequence[Location]
) -> None:
    if not tensors.keys().isdisjoint(found):
        name = next(name for name in found if name in tensors)
        other = files[tensors[name].file].name
        raise CheckpointError(f"{files[found[name].file]}: tensor {name!r:.200} is also in {other}")
    tensors |= found
