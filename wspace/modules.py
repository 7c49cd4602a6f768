"""Mixes that go into a live ``torch.nn.Module``, or stay on a device, and never to the disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
import torch

from wkernels import arguments, ops
from wspace.budgets import enough, recorded
from wspace.devices import Cpu, device_named
from wspace.errors import MisalignedZooError
from wspace.grams import EXACT, Gram
from wspace.jobs import output_dtype, plan_mixes, run_mixes
from wspace.merging import needed
from wspace.placement import choose, mixes_job
from wspace.sizes import parse_bytes
from wspace.storage.headers import KERNEL_NAMES
from wspace.stream import ChunkPlan, Progress, Stream, chunk_elements, plan_chunks
from wspace.weights import check_weights
from wspace.zoo import Zoo


def mix_into(
    module: torch.nn.Module,
    zoo: Zoo,
    weights: Any,
    *,
    device: str = "auto",
    memory: int | str = "1GiB",
    allow_non_finite: bool = False,
    progress: Progress | None = None,
) -> tuple[str, ...]:
    """Load one mix of the zoo into a module, straight from the checkpoints: nothing is written.

    ``weights``: one row ``[n]`` or ``[1, n]``, as in :func:`wspace.merge`. Every tensor of the zoo
    must be a parameter or buffer of the module, of the same shape; each keeps its dtype and device.
    Returns the names of the module's tensors that the zoo does not have, which stay as they were.
    Raises MisalignedZooError for a tensor that the module lacks.
    """
    row = np.atleast_2d(np.asarray(weights, dtype=np.float64))
    chosen = needed(zoo, row)
    targets, untouched = _targets(module, zoo)
    if len(chosen.weights) != 1:
        raise MisalignedZooError(f"mix_into takes one row of weights, got {len(chosen.weights)}")
    kinds = {str(target.dtype).removeprefix("torch.") for target in targets.values()}
    # rounded once where all tensors have one type
    dtype = kinds.pop() if len(kinds) == 1 else "float32"
    worker = device_named(choose(device, mixes_job(zoo, len(chosen.rows), 1)).name)
    plans = enough(
        lambda budget: plan_mixes(zoo, chosen, worker, budget, dtype), parse_bytes(memory), "merge",
        recorded(zoo.checkpoints),
    )  # fmt: skip
    run_mixes(zoo, chosen, plans, worker, dtype, _Loader(zoo, targets), progress, allow_non_finite)
    return untouched


class _Loader:
    """Takes a mix, and copies it into a module's tensors."""

    def __init__(self, zoo: Zoo, targets: Mapping[str, torch.Tensor]) -> None:
        self._zoo, self._targets = zoo, targets

    def positions(self, plan: ChunkPlan, dtype: str) -> list[int]:
        return [0]

    def results(
        self, plan: ChunkPlan, buffer: np.ndarray, starts: Sequence[int], dtype: str
    ) -> _Loaded:
        values = torch.from_numpy(buffer[starts[0] :]).view(getattr(torch, KERNEL_NAMES[dtype]))
        return _Loaded([
            (self._targets[self._zoo.tensors[piece.tensor].name].view(-1)[piece.start : piece.stop],
             values[piece.at :][: piece.stop - piece.start])
            for piece in plan.pieces
        ])  # fmt: skip


class _Loaded(NamedTuple):
    """A chunk of it: parts of the module's tensors, and their values."""

    parts: list[tuple[torch.Tensor, torch.Tensor]]

    def digests(self, first: int, n: int) -> None:
        return None

    def write(self) -> list[Future[None]]:
        for target, values in self.parts:
            target.copy_(values)
        return []


def _targets(module: torch.nn.Module, zoo: Zoo) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """The module's tensors that the zoo's go to, and the names of the others."""
    state = {name: tensor.detach() for name, tensor in module.state_dict(keep_vars=True).items()}
    targets = {}
    for tensor in zoo.tensors:
        target = state.get(tensor.name)
        if target is None or tuple(target.shape) != tensor.shape:
            found = "no such tensor" if target is None else f"shape {list(target.shape)}"
            raise MisalignedZooError(
                f"the zoo's tensor {tensor.name!r} has shape {list(tensor.shape)}; the module has "
                f"{found}. Open the zoo with exclude={tensor.name!r} to leave it out"
            )
        if not target.is_contiguous():
            raise MisalignedZooError(f"the module's tensor {tensor.name!r} is not contiguous")
        targets[tensor.name] = target
    shared = {target.data_ptr() for target in targets.values()}
    untouched = [
        name for name, t in state.items() if name not in targets and t.data_ptr() not in shared
    ]
    return targets, tuple(untouched)


class ResidentZoo:
    """All checkpoints of a zoo in a device's memory, loaded once: thousands of mixes from it.

    ``rows[g][i]`` is model ``i``'s part of group ``g`` (tensors of one combination of dtypes), one
    flat tensor; the base's come last.
    """

    def __init__(
        self, zoo: Zoo, device: str | torch.device = "cpu", *, progress: Progress | None = None
    ) -> None:
        self.zoo = zoo
        self.device = torch.device(device)
        device_named(str(device))  # refuses one that is not there
        self.rows: list[list[torch.Tensor]] = []
        self._places: list[list[tuple[int, int]]] = []  # per group: zoo tensor, start
        group_of: dict[int, tuple[int, int]] = {}
        dtypes: tuple[str, ...] = ()
        lengths: list[int] = []
        for index, tensor in enumerate(zoo.tensors):
            if tensor.dtypes != dtypes:
                dtypes = tensor.dtypes
                self._places.append([])
                lengths.append(0)
            group_of[index] = (len(lengths) - 1, lengths[-1])
            self._places[-1].append((index, lengths[-1]))
            lengths[-1] += tensor.numel
        for places, length in zip(self._places, lengths, strict=True):
            self.rows.append(
                [
                    torch.empty(length, dtype=_torch_type(dtype), device=self.device)
                    for dtype in zoo.tensors[places[0][0]].dtypes
                ]
            )
        self._load(group_of, progress)

    def _load(self, group_of: dict[int, tuple[int, int]], progress: Progress | None) -> None:
        zoo, worker = self.zoo, Cpu()
        every = range(len(zoo.checkpoints))

        def size(dtypes: Sequence[str]) -> int:
            return chunk_elements(1 << 30, worker.chunk_bytes, dtypes, 0)

        plans = list(plan_chunks(zoo, every, size, 4096))
        with Stream(zoo, every, plans, worker, progress=progress) as stream:
            for chunk in stream:
                for i, start in enumerate(chunk.starts):
                    kind = _torch_type(chunk.plan.dtypes[i])
                    nbytes = chunk.plan.n * kind.itemsize
                    values = torch.from_numpy(chunk.buffer[start : start + nbytes]).view(kind)
                    for piece in chunk.plan.pieces:
                        group, first = group_of[piece.tensor]
                        n = piece.stop - piece.start
                        target = self.rows[group][i][first + piece.start :][:n]
                        target.copy_(values[piece.at : piece.at + n])

    def mix(self, weights: Any, *, dtype: str | None = None) -> list[dict[str, torch.Tensor]]:
        """A state dict for each row of weights ``[n_mixes, n]``, as :func:`wspace.merge` has it.

        Models without a weight are not read: a line costs its two models, whatever the zoo.
        """
        table = check_weights(weights, len(self.zoo), has_base=self.zoo.base is not None)
        used = np.flatnonzero(table.any(axis=0)).tolist() or [0]
        states: list[dict[str, torch.Tensor]] = [{} for _ in table]
        for rows, places in zip(self.rows, self._places, strict=True):
            code = output_dtype(self.zoo, self.zoo.tensors[places[0][0]], dtype)
            flat = torch.empty(
                (len(table), rows[0].numel()), dtype=_torch_type(code), device=self.device
            )
            base = rows[-1] if self.zoo.base else None
            chosen = torch.from_numpy(table[:, used].copy())
            ops.weighted_sum([rows[i] for i in used], chosen, base=base, out=flat)
            for index, start in places:
                tensor = self.zoo.tensors[index]
                for state, values in zip(states, flat, strict=True):
                    part = values[start : start + tensor.numel]
                    state[tensor.name] = part.view(tensor.shape)
        return states

    def mix_into(self, module: torch.nn.Module, weights: Any) -> tuple[str, ...]:
        """One mix into a module's tensors; returns the names of those that stay as they were."""
        targets, untouched = _targets(module, self.zoo)
        kinds = {str(target.dtype).removeprefix("torch.") for target in targets.values()}
        row = np.atleast_2d(np.asarray(weights, dtype=np.float64))
        (state,) = self.mix(row, dtype=kinds.pop() if len(kinds) == 1 else "float32")
        for name, target in targets.items():
            target.copy_(state[name])
        return untouched

    def gram(self, *, fast: bool = False) -> Gram:
        """As :func:`wspace.gram`, of what is resident; without the per-tensor matrices.

        ``fast`` lets a GPU use its 16-bit matrix units: see :func:`wkernels.gram`, whose error the
        result then carries, so that :func:`wspace.refine` knows which distances to measure.
        """
        n = len(self.zoo)
        fast = fast and any(map(arguments.on_gpu, self.rows))
        total = torch.zeros((n, n), dtype=torch.float64)
        for rows in self.rows:
            total += ops.gram(rows[:n], rows[n] if self.zoo.base else None, fast=fast).cpu()
        return Gram(
            total=total,
            per_tensor=None,
            tensors=tuple(tensor.name for tensor in self.zoo.tensors),
            members=self.zoo.names,
            has_base=self.zoo.base is not None,
            left_out=self.zoo.left_out,
            error=ops.FAST_ERROR if fast else EXACT,
        )


def _torch_type(code: str) -> torch.dtype:
    return getattr(torch, KERNEL_NAMES[code])
