"""Writing a checkpoint: headers first, byte ranges in place as the stream runs, then a rename."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from wspace.errors import OutputError
from wspace.storage.checkpoints import INDEX, Checkpoint, open_checkpoint
from wspace.storage.files import WRITE, OutputFile
from wspace.storage.headers import BITS, render_header

_COMPANIONS = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py")
"""Files that belong to a model besides its weights: config, tokenizer, generation, code."""


class OutputTensor(NamedTuple):
    name: str
    dtype: str  # as in headers.BITS
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        n_bits = BITS[self.dtype]
        for size in self.shape:
            n_bits *= size
        return n_bits // 8


def plan_shards(tensors: Sequence[OutputTensor], max_bytes: int) -> list[list[OutputTensor]]:
    """Consecutive tensors, up to ``max_bytes`` a shard; a larger tensor has a shard of its own."""
    shards: list[list[OutputTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.nbytes > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return shards


def check_output(out: Path, inputs: Sequence[Checkpoint], nbytes: int) -> None:
    """Refuse an output that exists, lies in or over an input, or does not fit on its disk."""
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out}: exists; choose another name, or remove it first")
    target = out.resolve()
    for checkpoint in inputs:
        source = checkpoint.folder.resolve()
        if checkpoint.path.is_dir() and target.is_relative_to(source):
            raise OutputError(
                f"{out}: lies inside the input {checkpoint.path}; choose another place"
            )
    ground = next(parent for parent in target.parents if parent.exists())
    if not ground.is_dir() or not os.access(ground, os.W_OK):
        raise OutputError(f"{out}: {ground} cannot be written to")
    free = shutil.disk_usage(ground).free
    if nbytes > free:
        raise OutputError(
            f"{out}: the output takes {nbytes} bytes, and the disk of {ground} has {free} free"
        )


class CheckpointWriter:
    """One output checkpoint, in a hidden folder beside its name until :meth:`publish`.

    Hub names: ``model.safetensors``, or ``model-00001-of-00002.safetensors`` and an index.
    """

    def __init__(
        self,
        out: Path,
        tensors: Sequence[OutputTensor],
        *,
        metadata: dict[str, str],
        max_shard_bytes: int,
        pool: ThreadPoolExecutor,
        stem: str = "model",
    ) -> None:
        self.out = out
        self._pool = pool
        self._placed: dict[str, tuple[int, int]] = {}  # name -> shard, byte in its file
        self._files: list[OutputFile] = []
        self._made = [parent for parent in out.absolute().parents if not parent.exists()]
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(
                tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent)
            )
        except OSError as error:
            raise OutputError(f"{out}: cannot be made: {error.strerror}") from error
        shards = plan_shards(tensors, max_shard_bytes)
        self._names = [f"{stem}.safetensors"]
        if len(shards) > 1:
            width = len(shards)
            self._names = [f"{stem}-{k + 1:05}-of-{width:05}.safetensors" for k in range(width)]
        try:
            for name, shard in zip(self._names, shards, strict=True):
                self._create(name, shard, metadata)
        except BaseException as error:
            self.abandon()
            if isinstance(error, OSError):
                raise OutputError(f"{out}: cannot be written: {error.strerror}") from error
            raise
        self._total = sum(tensor.nbytes for tensor in tensors)

    def _create(self, file: str, shard: Sequence[OutputTensor], metadata: dict[str, str]) -> None:
        header, starts, length = render_header(
            {tensor.name: (tensor.dtype, tensor.shape) for tensor in shard}, metadata
        )
        number = len(self._files)
        self._files.append(OutputFile(self._folder / file, length))
        self._placed |= {name: (number, start) for name, start in starts.items()}
        for future in self.write(number, 0, np.frombuffer(header, dtype=np.uint8)):
            future.result()

    def place(self, name: str, start: int) -> tuple[int, int]:
        """Shard and byte in its file of byte ``start`` of a tensor."""
        shard, first = self._placed[name]
        return shard, first + start

    def write(self, shard: int, position: int, view: np.ndarray) -> list[Future[None]]:
        """Start writing; ``view`` (uint8) must stay as it is until every future is done."""
        futures = []
        while len(view):
            length = WRITE - position % WRITE  # whole pages, but for the ends of the range
            futures.append(self._pool.submit(self._write, shard, position, view[:length]))
            view, position = view[length:], position + length
        return futures

    def _write(self, shard: int, position: int, view: np.ndarray) -> None:
        try:
            self._files[shard].write(view, position)
        except OSError as error:
            raise OutputError(f"{self.out}: {self._names[shard]}: {error.strerror}") from error

    def written(self) -> Checkpoint:
        """What was written so far, as a checkpoint."""
        return open_checkpoint(self._folder)

    def publish(
        self,
        donor: Checkpoint,
        record: dict,
        dtype: str | None = None,
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Flush, add the index, ``wspace.json`` and the donor's config files, and give it its name.

        ``dtype``: what the config shall call the weights' type, if it is not the donor's.
        ``files``: names and texts of more files, in place of the donor's.
        """
        try:
            if len(self._names) > 1:
                weight_map = {name: self._names[shard] for name, (shard, _) in self._placed.items()}
                index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
                _write_json(self._folder / INDEX, index)
            for file in companions(donor):
                shutil.copyfile(file, self._folder / file.name)
            if (self._folder / "config.json").is_file():
                _mend(self._folder / "config.json", dtype)
            for name, text in (files or {}).items():
                (self._folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
            _write_json(self._folder / "wspace.json", record)
            for shard in self._files:
                shard.sync()
            self._close()
            for file in self._folder.iterdir():
                if file.name not in self._names:
                    _sync(file)
            self._folder.chmod(0o755)
            _sync(self._folder)
            if self.out.exists():
                raise OutputError(f"{self.out}: was made by something else while this ran")
            self._folder.rename(self.out)
            _sync(self.out.parent)
        except OSError as error:
            raise OutputError(f"{self.out}: {error.strerror}") from error

    def abandon(self) -> None:
        """Remove everything, unless published."""
        self._close()
        shutil.rmtree(self._folder, ignore_errors=True)
        for parent in self._made:
            with contextlib.suppress(OSError):  # it holds something by now
                parent.rmdir()

    def _close(self) -> None:
        while self._files:
            self._files.pop().close()


def companions(checkpoint: Checkpoint) -> list[Path]:
    """The config, tokenizer and other small files beside the weights."""
    files = {file for pattern in _COMPANIONS for file in checkpoint.folder.glob(pattern)}
    if not checkpoint.path.is_dir():
        # a weight file in a folder of other things: only what bears a model's names
        files = {file for file in files if (checkpoint.folder / "config.json").is_file()}
    unwanted = ("wspace.json",)
    return sorted(
        file
        for file in files
        if file.is_file() and file.name not in unwanted and not file.name.endswith(".index.json")
    )


def _mend(config: Path, dtype: str | None) -> None:
    """Name the type that the weights have; they are not quantised, whatever the donor's were."""
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        return  # not ours to mend
    named = {key: dtype for key in ("dtype", "torch_dtype") if dtype and key in settings}
    mended = {key: value for key, value in settings.items() if key != "quantization_config"} | named
    if mended != settings:
        _write_json(config, mended)


def _write_json(path: Path, content: dict) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # a file name that is not UTF-8 has characters that only JSON's own escapes can hold
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
