"""What the public operations are given: rows, checked, and which path they are for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from wkernels import dtypes

if TYPE_CHECKING:
    from wkernels.cpu import Pointers

Rows = torch.Tensor | Sequence[torch.Tensor]


def rows_of(
    x: Rows,
    name: str,
    *,
    like: Sequence[torch.Tensor] | None = None,
    types: Sequence[str] = tuple(dtypes.FLOATS),
) -> list[torch.Tensor]:
    """The rows of the argument ``name`` as a list, checked: dtype, length, device, contiguous.

    Lengths and device are those of ``like``, or of the first row.
    """
    if isinstance(x, torch.Tensor) and x.ndim != 2:
        raise ValueError(f"{name}: expected shape [rows, n], got {list(x.shape)}")
    rows = [row.detach() for row in x]
    if not rows:
        raise ValueError(f"{name}: expected at least one row, got none")
    first = like[0] if like else rows[0]
    for i, row in enumerate(rows):
        where = name if name == "base" else f"{name}[{i}]"
        if name_of(row) not in types:
            raise TypeError(f"{where}: expected one of {', '.join(types)}, got {name_of(row)}")
        if row.ndim != 1 or row.numel() != first.numel():
            raise ValueError(f"{where}: expected shape [{first.numel()}], got {list(row.shape)}")
        if not row.is_contiguous():
            raise ValueError(f"{where}: expected contiguous elements, got stride {row.stride()}")
        if row.device != first.device:
            raise ValueError(f"{where}: expected a tensor on {first.device}, got {row.device}")
    return rows


def base_of(base: torch.Tensor | None, *, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The base as a list of one row, checked, or of none."""
    return [] if base is None else rows_of([base], "base", like=like)


def name_of(tensor: torch.Tensor) -> str:
    """The type's name, as ``wkernels.dtypes`` spells it."""
    return str(tensor.dtype).removeprefix("torch.")


def output_dtype(rows: Sequence[torch.Tensor]) -> torch.dtype:
    """The type of the first row that can be written."""
    return next((row.dtype for row in rows if name_of(row) in dtypes.OUTPUTS), torch.float32)


def on_gpu(rows: Sequence[torch.Tensor]) -> bool:
    return rows[0].is_cuda


def pointers_to(rows: Sequence[torch.Tensor]) -> Pointers:
    """The rows as the CPU path takes them."""
    from wkernels import cpu

    return cpu.Pointers.of([row.data_ptr() for row in rows], [name_of(row) for row in rows])


def whole(length: int) -> np.ndarray:
    """The one segment that is everything."""
    return np.array([[0, length]], dtype=np.int64)
