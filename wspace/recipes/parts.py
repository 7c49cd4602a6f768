"""A plan cut into parts: tensors with the same inputs, which make a zoo of their own.

Its tensors bear the output's names, whatever they are called in the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from wspace.devices import device_named
from wspace.recipes.plan import Plan
from wspace.recipes.tensors import Step, TensorPlan
from wspace.sizes import parse_bytes
from wspace.storage.checkpoints import StoredTensor
from wspace.storage.headers import BITS
from wspace.stream import OUTPUTS, SLOTS, chunk_elements, derived_workspace
from wspace.zoo import Zoo, ZooTensor

MATRIX_ROWS = 1 << 14
"""Rows of matrices that are treated as tensors at a time, where each has factors of its own."""


@dataclass(frozen=True)
class Part:
    """Tensors that are read from the same models and written in the same type."""

    rows: tuple[int, ...]  # of Plan.checkpoints; the base last if ``based``
    based: bool
    dtype: str
    tensors: tuple[TensorPlan, ...]  # grouped by the inputs' types
    factors: tuple[np.ndarray, ...] | None  # of each tensor; None: from its Gram matrix
    rowwise: bool

    @property
    def nbytes(self) -> int:
        """Of the inputs, as the stream has them."""
        return sum(
            tensor.numel * BITS[stored.record.dtype] // 8
            for tensor in self.tensors
            for stored in tensor.stored
        )

    @property
    def read_bytes(self) -> int:
        """Of the inputs' files."""
        return sum(stored.read_bytes for tensor in self.tensors for stored in tensor.stored)


class Cost(NamedTuple):
    read_bytes: int
    write_bytes: int
    memory_bytes: int  # of buffers and results, within the budget


def parts_of(plan: Plan) -> list[Part]:
    """The plan's mixed tensors in parts; models whose factor is zero are not read."""
    found: dict[tuple, list[tuple[TensorPlan, np.ndarray | None]]] = {}
    used_of: dict[int, tuple[tuple[int, ...], np.ndarray] | None] = {}
    for tensor in plan.tensors:
        step = tensor.step
        if step is None:
            continue
        if id(step) not in used_of:
            used_of[id(step)] = None if step.factors is None else _used(step, step.factors)
        used = used_of[id(step)]
        if used is None:
            key = (tensor.rows, step.based, tensor.dtype, step.rowwise, True)
            found.setdefault(key, []).append((tensor, None))
            continue
        which, factors = used
        if len(which) < len(tensor.rows):
            tensor = tensor._replace(
                rows=tuple([tensor.rows[k] for k in which]),
                stored=tuple([tensor.stored[k] for k in which]),
            )
        key = (tensor.rows, step.based, tensor.dtype, False, False)
        found.setdefault(key, []).append((tensor, factors))
    parts = []
    for (rows, based, dtype, rowwise, from_gram), content in found.items():
        first: dict[tuple[str, ...], int] = {}
        content.sort(key=lambda item: first.setdefault(_types(item[0]), len(first)))
        factors = None if from_gram else tuple(f for _, f in content if f is not None)
        tensors = tuple(tensor for tensor, _ in content)
        parts.append(Part(rows, based, dtype, tensors, factors, rowwise))
    return parts


def _used(step: Step, factors: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    used = np.flatnonzero(factors).tolist()
    if not used and not step.based:
        used = [0]  # zeros of the right shape
    return (*used, *([len(factors)] if step.based else [])), factors[used]


def _types(tensor: TensorPlan) -> tuple[str, ...]:
    return tuple([stored.record.dtype for stored in tensor.stored])


def cost(plan: Plan, *, device: str = "auto", memory: int | str = "1GiB") -> Cost:
    """Bytes read, written and held at most. Raises BudgetError if ``memory`` is too little."""
    worker, budget = device_named(device), parse_bytes(memory)
    read = sum(s.record.nbytes for t in plan.tensors if t.step is None for s in t.stored)
    held = 0
    for part in parts_of(plan):
        read += part.read_bytes * (1 if part.factors is not None else 2)
        n = len(part.rows) - part.based
        results = 0 if part.factors is not None else 8 * n * n * len(part.tensors)
        out_bytes = BITS[part.dtype] // 8
        numel = sum(tensor.numel for tensor in part.tensors)
        results += derived_workspace(tensor.stored for tensor in part.tensors)
        for dtypes in {_types(tensor) for tensor in part.tensors}:
            fitting = chunk_elements(
                budget - results, worker.chunk_bytes, dtypes, out_bytes, "merge"
            )
            in_bytes = sum(BITS[dtype] for dtype in dtypes) // 8
            chunk = min(fitting, numel) * (SLOTS * in_bytes + OUTPUTS * out_bytes)
            held = max(held, results + chunk)
    return Cost(read, plan.nbytes, held)


def zoos_of(
    plan: Plan, part: Part
) -> Iterator[tuple[Zoo, list[tuple[str, int]], Sequence[TensorPlan]]]:
    """The part as zoos; for each of their tensors, its place in the output, and the plan's."""
    checkpoints = tuple(plan.checkpoints[row] for row in part.rows)
    members = checkpoints[: len(checkpoints) - part.based]
    base = checkpoints[-1] if part.based else None
    if not part.rowwise:
        tensors = tuple(ZooTensor(t.name, t.shape, t.numel, t.stored) for t in part.tensors)
        zoo = Zoo(members, base, tensors, (), {})
        yield zoo, [(tensor.name, 0) for tensor in tensors], part.tensors
        return
    rows = ((tensor, k) for tensor in part.tensors for k in range(_n_rows(tensor)))
    while batch := list(islice(rows, MATRIX_ROWS)):
        tensors = tuple(_matrix_row(tensor, k) for tensor, k in batch)
        places = [(tensor.name, k * tensor.shape[-1]) for tensor, k in batch]
        yield Zoo(members, base, tensors, (), {}), places, [tensor for tensor, _ in batch]


def _n_rows(tensor: TensorPlan) -> int:
    return tensor.numel // tensor.shape[-1] if tensor.numel else 0


def _matrix_row(tensor: TensorPlan, k: int) -> ZooTensor:
    """Row ``k`` along the last axis, as a tensor of its own."""
    length = tensor.shape[-1]
    stored = []
    for whole in tensor.stored:
        record, memory = whole.record, whole.memory
        nbytes = length * BITS[record.dtype] // 8
        start = k * nbytes
        if memory is not None:
            memory = memory[start : start + nbytes]
        record = record._replace(shape=(length,), start=record.start + start, nbytes=nbytes)
        stored.append(StoredTensor(record, whole.file, memory, whole.derived))
    return ZooTensor(tensor.name, (length,), length, tuple(stored))


def copies_of(plan: Plan) -> Iterator[Zoo]:
    """Zoos of the tensors that are copied, one for each set of models that has them."""
    found: dict[tuple[int, ...], list[ZooTensor]] = {}
    for t in plan.tensors:
        if t.step is None:
            found.setdefault(t.rows, []).append(ZooTensor(t.name, t.shape, t.numel, t.stored))
    for rows, tensors in found.items():
        yield Zoo(tuple(plan.checkpoints[row] for row in rows), None, (), tuple(tensors), {})
