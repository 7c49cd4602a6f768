"""What derived tensors are computed from: tensors of files, or derived ones."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wspace.storage.checkpoints import Checkpoint, StoredTensor
from wspace.storage.headers import BITS, KERNEL_NAMES
from wspace.storage.reading import read_elements
from wspace.storage.remote import Location


class Operand(NamedTuple):
    """A tensor and the file that it is in."""

    path: Location
    tensor: StoredTensor

    @classmethod
    def of(cls, checkpoint: Checkpoint, tensor: StoredTensor) -> Operand:
        return cls(checkpoint.files[tensor.file], tensor)

    @property
    def dtype(self) -> str:
        return self.tensor.record.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensor.record.shape

    @property
    def numel(self) -> int:
        return self.tensor.record.numel

    @property
    def width(self) -> int:
        """Bytes of an element."""
        return BITS[self.dtype] // 8

    @property
    def workspace(self) -> int:
        return self.tensor.derived.workspace if self.tensor.derived else 0

    def raw(self, start: int, stop: int) -> np.ndarray:
        """The bytes of elements ``start .. stop``."""
        return read_elements(self.path, self.tensor, start, stop)

    def floats(self, start: int, stop: int, compute: type[np.floating] = np.float32) -> np.ndarray:
        """Elements ``start .. stop`` in ``compute``, exactly."""
        from wkernels.cpu.derived import widen  # numba: not before weights are read

        return widen(self.raw(start, stop), KERNEL_NAMES[self.dtype], compute)


def compute_type(*operands: Operand) -> tuple[str, type[np.floating]]:
    """What is computed in: float64 if any operand is, else float32."""
    if any(operand.dtype == "F64" for operand in operands):
        return "F64", np.float64
    return "F32", np.float32
