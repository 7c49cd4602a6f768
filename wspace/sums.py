"""Shares of a Gram matrix as files: what processes that know nothing of each other leave behind.

FOLDER/gram-I-of-N.npz: the sums over the columns of one of N ranges, in twice float64's precision,
and of which files they are. Joined in the order of the ranges, they are the matrix of one process,
bit for bit.
"""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from wspace.errors import CheckpointError
from wspace.grams import Gram, gram, gram_from, inputs_of
from wspace.passes import Accurate, TensorSums
from wspace.shares import Share
from wspace.storage.partial import flush
from wspace.team import OneOfMany
from wspace.zoo import Zoo


class _Saving(OneOfMany):
    def __init__(self, share: Share) -> None:
        super().__init__(share)
        self.pair: np.ndarray | None = None

    def added(self, pair: np.ndarray) -> np.ndarray:
        self.pair = pair
        return pair


def save_share(zoo: Zoo, share: Share, folder: str | Path, **options: Any) -> bool:
    """Sum over one share of the columns into ``folder``; ``options`` are those of ``ws.gram``.

    Returns False if that is there already. Raises CheckpointError if what is there is of other
    inputs.
    """
    folder = Path(folder)
    path = _path(folder, share)
    if path.exists():
        _load(path, zoo)
        return False
    team = _Saving(share)
    gram(zoo, per_tensor=False, team=team, **options)
    assert team.pair is not None
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            np.savez(file, pair=team.pair, inputs=np.array(inputs_of(zoo)))
        flush(unfinished)
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
    flush(folder)
    return True


def joined(zoo: Zoo, folder: str | Path) -> Gram:
    """The Gram matrix from the shares in ``folder``; no weight is read.

    Raises CheckpointError if one is missing, damaged, or of other inputs than the zoo's.
    """
    folder = Path(folder)
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    counts = {
        int(match[1]) for name in names if (match := re.fullmatch(r"gram-\d+-of-(\d+)\.npz", name))
    }
    if len(counts) != 1:
        found = f"of {' and of '.join(map(str, sorted(counts)))}" if counts else "none"
        raise CheckpointError(
            f"{folder}: expected the sums of all of n ranges, found {found}; make "
            "them with --range 0/n to n-1/n"
        )
    (n,) = counts
    total: Accurate | None = None
    for index in range(n):
        path = _path(folder, Share(index, n))
        if not path.exists():
            raise CheckpointError(f"{path}: missing; make it with --range {index}/{n}")
        pair = _load(path, zoo)
        if total is None:
            total = Accurate(pair)
        else:
            total.add_pair(pair)
    assert total is not None
    return gram_from(zoo, TensorSums(None, total.value()))


def _path(folder: Path, share: Share) -> Path:
    return folder / f"gram-{share.index}-of-{share.n}.npz"


def _load(path: Path, zoo: Zoo) -> np.ndarray:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            pair, inputs = content["pair"], str(content["inputs"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: not the sums of a range ({error}); remove it") from None
    if inputs != inputs_of(zoo):
        raise CheckpointError(
            f"{path}: is of other models, tensors or files than these; remove it, or take another "
            "folder"
        )
    if pair.shape != (2, len(zoo), len(zoo)) or pair.dtype != np.float64:
        raise CheckpointError(
            f"{path}: sums of shape {pair.shape}, expected those of {len(zoo)} models; remove it"
        )
    return pair
