"""Where rows lie in memory: what a launcher must know before it can choose a kernel."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch

from wkernels.dtypes import CODES

WIDTH = 16
"""Bytes of the widest load or store."""


def type_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def codes_of(tensors: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """The code of each tensor's type, as kernels know it."""
    return tuple(CODES[type_name(tensor)] for tensor in tensors)


def addresses_of(tensors: Sequence[torch.Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def spacing(tensors: Sequence[torch.Tensor]) -> int | None:
    """Bytes from each tensor to the next, if it is the same between all; else None."""
    if len(tensors) < 2:
        return 0
    addresses = addresses_of(tensors)
    step = addresses[1] - addresses[0]
    even = all(after - before == step for before, after in itertools.pairwise(addresses))
    return step if even else None


def alignment(addresses: Sequence[int] | np.ndarray) -> int:
    """Bytes, at most 16, that all addresses (or distances) are multiples of: as wide are loads."""
    return int(np.gcd.reduce(np.append(np.asarray(addresses, dtype=np.int64).ravel(), WIDTH)))


def to_device(table: np.ndarray, device: torch.device) -> torch.Tensor:
    """A small table on the device, without waiting for it where the device is a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(table))
    if device.type == "cpu":
        return tensor
    # from pinned memory, which the allocator keeps until the copy is done
    return tensor.pin_memory().to(device, non_blocking=True)


def on_device_of(tensor: torch.Tensor) -> AbstractContextManager:
    """Kernels start on the current device: make it the tensor's."""
    return torch.cuda.device_of(tensor)
