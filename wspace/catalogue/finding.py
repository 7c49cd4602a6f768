"""The models below a folder, and what tells whether one has changed since it was read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from wspace.storage.checkpoints import INDEX, SHARD

CONFIGS = ("config.json", "adapter_config.json")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


class Found(NamedTuple):
    path: str  # below the folder that was searched
    place: Path  # a folder, or a file of weights
    files: str  # JSON: names, sizes and times of the files that it follows from
    adapter: bool  # LoRA factors, not a model


def find_models(root: Path) -> Iterator[Found]:
    """Every folder that holds a checkpoint, and every safetensors file that is one by itself.

    Nothing in hidden folders. Links to folders are followed, and no folder is searched twice.
    """
    seen = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from _in_folder(root, Path(folder), sorted(names))


def found_at(place: Path, root: Path) -> Found | None:
    """The model at a path; None if it is none that :func:`find_models` would find."""
    folder = place if place.is_dir() else place.parent
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return next((found for found in _in_folder(root, folder, names) if found.place == place), None)


def _in_folder(root: Path, folder: Path, names: list[str]) -> Iterator[Found]:
    weights = [n for n in names if n.endswith(".safetensors") and not n.startswith(".")]
    one = INDEX in names or "model.safetensors" in names or len(weights) == 1
    if weights and not one and not any(map(SHARD.fullmatch, weights)):
        for name in weights:
            yield _found(root, folder / name, folder, [name])
        return
    if not weights:
        weights = [name for name in names if name == PICKLED[0] or _pickled_shard(name)]
    if weights:
        others = [name for name in (INDEX, PICKLED[1], *CONFIGS) if name in names]
        yield _found(root, folder, folder, [*weights, *others])


def _pickled_shard(name: str) -> bool:
    return name.startswith("pytorch_model-") and name.endswith(".bin")


def _found(root: Path, place: Path, folder: Path, names: list[str]) -> Found:
    stamps = []
    for name in names:
        try:
            status = (folder / name).stat()
            stamps.append((name, status.st_size, status.st_mtime_ns))
        except OSError:  # a link to nothing, which opening the model will tell
            stamps.append((name, -1, 0))
    path = place.relative_to(root).as_posix()
    adapter = CONFIGS[1] in names and CONFIGS[0] not in names
    return Found(path, place, json.dumps(stamps, separators=(",", ":")), adapter)


def size_of(found: Found) -> int:
    """Bytes of the files, about what reading the model will take."""
    return sum(max(size, 0) for _, size, _ in json.loads(found.files))
