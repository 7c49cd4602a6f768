"""Where sketches are kept: files of safetensors with room for many, each written in place.

    sketches-00000.safetensors    "sketches", F32 [256, 2, 65536]: of all tensors, of the layers

A slot that nothing was written to is zeros, and takes no space on the disk.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wkernels.sketches import SIZE
from wspace.errors import CheckpointError
from wspace.storage.checksums import checksum
from wspace.storage.headers import TensorRecord, read_header, render_header

ROOM = 256
"""Slots of a file."""

PARTS: tuple[str, ...] = ("all", "layers")
NAME = "sketches"
_SHAPE = (ROOM, len(PARTS), SIZE)


class Slots:
    """Those of one folder. Whoever writes holds the catalogue's lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arrays: dict[int, np.ndarray] = {}  # of files, mapped

    def write(self, slot: int, sketches: Sequence[np.ndarray | None]) -> list[str]:
        """Puts a model's sketches on the disk; returns their checksums, empty for none."""
        path, row = self._file(slot // ROOM), slot % ROOM
        if not path.exists():
            self._create(path)
        start = self._record(path).start
        with path.open("r+b", buffering=0) as file:
            for part, values in enumerate(sketches):
                if values is not None:
                    data = values.astype("<f4").tobytes()
                    _write(file.fileno(), data, start + 4 * SIZE * (len(PARTS) * row + part))
            os.fdatasync(file.fileno())
        return [checksum(values.tobytes()) if values is not None else "" for values in sketches]

    def read(self, slot: int, part: str) -> np.ndarray:
        """One sketch, float32 ``[SIZE]``; mapped, not copied."""
        number = slot // ROOM
        if number not in self._arrays:
            path = self._file(number)
            record = self._record(path)
            data = np.memmap(path, np.uint8, "r", record.start, (record.nbytes,))
            self._arrays[number] = np.asarray(data).view("<f4").reshape(_SHAPE)
        return self._arrays[number][slot % ROOM, PARTS.index(part)]

    def _file(self, number: int) -> Path:
        return self._folder / f"{NAME}-{number:05}.safetensors"

    def _record(self, path: Path) -> TensorRecord:
        record = read_header(path).tensors.get(NAME)
        if record is None or (record.dtype, record.shape) != ("F32", _SHAPE):
            raise CheckpointError(
                f"{path}: expected the tensor {NAME!r}, F32 {list(_SHAPE)}; it is damaged: remove "
                f"{self._folder} and index again"
            )
        return record

    def _create(self, path: Path) -> None:
        header, _, size = render_header({NAME: ("F32", _SHAPE)}, {})
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(header)
            file.truncate(size)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)


def _write(descriptor: int, data: bytes, position: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, position)
        data, position = data[written:], position + written
