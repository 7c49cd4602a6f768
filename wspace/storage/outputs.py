"""What an output will hold, in which shards, and whether there is a place for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from wspace.errors import OutputError
from wspace.storage.checkpoints import Checkpoint
from wspace.storage.headers import BITS
from wspace.storage.opening import real_path
from wspace.storage.partial import allocated
from wspace.storage.remote import RemotePath


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


def check_output(out: Path, inputs: Sequence[Checkpoint]) -> None:
    """Refuse an output that exists, or that lies in or over an input."""
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out}: exists; choose another name, or remove it first")
    target = real_path(out)
    for checkpoint in inputs:
        source = checkpoint.path
        if isinstance(source, RemotePath):
            continue
        if source.is_dir() and target.is_relative_to(real_path(source)):
            raise OutputError(
                f"{out}: lies inside the input {checkpoint.path}; choose another place"
            )
    ground = _ground(out)
    if not ground.is_dir() or not os.access(ground, os.W_OK):
        raise OutputError(f"{out}: {ground} cannot be written to")


def check_space(outs: Sequence[Path], nbytes: int) -> None:
    """Refuse outputs of ``nbytes`` in all that do not fit on their disk."""
    nbytes -= sum(map(allocated, outs))
    for out in outs:
        ground = _ground(out)
        free = shutil.disk_usage(ground).free
        if nbytes > free:
            raise OutputError(
                f"{out}: the output takes {nbytes} bytes, and the disk of {ground} has {free} free"
            )


def _ground(out: Path) -> Path:
    return next(parent for parent in real_path(out).parents if parent.exists())
