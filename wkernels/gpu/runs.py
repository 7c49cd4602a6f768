"""Rows cut into runs of elements, as the kernels of merges that choose elements take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from wkernels import dtypes
from wkernels.gpu import addresses, blocks, chips, configs, elements


@dataclass(frozen=True)
class Runs:
    """Rows of one type, their base, and the runs of their segments, on the device.

    A program works on a run of all rows, or on one row's. ``table``: int64, the rows' addresses,
    then of each run its first element, its length, its segment, and the place in the tensor of its
    first element.
    """

    rows: Sequence[torch.Tensor]  # kept, while kernels have their addresses
    base: torch.Tensor | None
    n: int  # runs
    starts: np.ndarray  # int64 [n]
    owners: np.ndarray  # int64 [n]: the segment of each, in order
    table: torch.Tensor
    compute: str  # float32, or float64 if a row or the base is
    step: int  # elements that a program loads at a time
    fixed: dict[str, Any]  # what kernels are compiled for

    @classmethod
    def of(
        cls,
        rows: Sequence[torch.Tensor],
        base: torch.Tensor | None,
        segments: np.ndarray,
        firsts: np.ndarray | None = None,
        *others: torch.Tensor | None,
        kernel: str,
        length: int | None = None,
    ) -> Runs:
        """``segments`` int64 ``[S, 2]``, and ``firsts`` where each begins in its tensor (or 0).

        ``kernel``: of the launch configurations; ``length``: elements of a run, by default a step.

        Rows of different types are first converted, exactly, to float32 or float64: 4 or 8 bytes
        an element of memory for each. ``others``: further rows that are loaded or stored alike.
        """
        based = [] if base is None else [base]
        compute = dtypes.compute_type(*map(addresses.type_name, [*rows, *based]))
        if len(set(addresses.codes_of(rows))) > 1:
            rows = [row.to(getattr(torch, compute)) for row in rows]
        everything = [*rows, *based, *(other for other in others if other is not None)]
        width = min(tensor.element_size() for tensor in [*rows, *based])
        chip = chips.current()
        config = configs.choosing(chip.family, kernel, itemsize=width, lanes=chip.lanes)
        starts, lengths, owners = blocks.cut(segments, length or config.step)
        places = starts - segments[owners, 0]
        if firsts is not None:
            places = places + firsts[owners]
        table = np.concatenate([addresses.addresses_of(rows), starts, lengths, owners, places])
        fixed = {
            "CODE": addresses.codes_of(rows)[0],
            "BASE_CODE": addresses.codes_of(based)[0] if based else elements.NONE.value,
            "COMPUTE": elements.FLOAT_TYPES[compute],
            "ALIGNED": blocks.alignment(everything, segments),
            "STEP": config.step,
            "num_warps": config.num_warps,
            "enable_fp_fusion": False,
        }
        device = rows[0].device
        return cls(
            rows, base, len(starts), starts, owners, addresses.to_device(table, device), compute,
            config.step, fixed,
        )  # fmt: skip

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Rows, base, runs, and the numbers of both, which every kernel takes first."""
        n_rows = len(self.rows)
        base = 0 if self.base is None else self.base.data_ptr()
        return self.table, base, self.table[n_rows:], n_rows, self.n

    def upload(self, table: np.ndarray) -> torch.Tensor:
        return addresses.to_device(table, self.table.device)

    def add_up(self, counts: torch.Tensor, out: np.ndarray) -> None:
        """Adds what each run counted, ``[n, ...]`` in whole numbers, to its segment's ``out``."""
        first = np.flatnonzero(np.diff(self.owners, prepend=-1))
        summed = np.add.reduceat(counts.cpu().numpy(), first, axis=0, dtype=np.int64)
        out[self.owners[first]] += summed.astype(out.dtype)
