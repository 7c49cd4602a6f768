"""What plans cost, from headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from wspace.budgets import enough, recorded
from wspace.devices import device_named
from wspace.recipes.chosen import cost_of_chosen
from wspace.recipes.mixed import needs_of
from wspace.recipes.parts import parts_of
from wspace.recipes.plan import Plan
from wspace.sizes import parse_bytes
from wspace.storage.checkpoints import Checkpoint
from wspace.storage.headers import BITS


class Cost(NamedTuple):
    read_bytes: int
    write_bytes: int
    memory_bytes: int  # of buffers and results, within the budget


def cost(*plans: Plan, device: str = "auto", memory: int | str = "1GiB") -> Cost:
    """Bytes read, written and held at most. Raises BudgetError if ``memory`` is too little."""
    worker = device_named(device)
    copied = {
        (id(plan.checkpoints[row]), id(stored)): stored.record.nbytes
        for plan in plans
        for tensor in plan.tensors
        if tensor.step is None
        for row, stored in zip(tensor.rows, tensor.stored, strict=True)
    }
    parts = parts_of(plans)

    def within(budget: int) -> Cost:
        needs = [needs_of(part, worker, budget) for part in parts]
        chosen = cost_of_chosen(plans, worker, budget)
        read = sum(need.file_bytes for need in needs) + chosen.read_bytes
        held = max([need.held_bytes for need in needs], default=0)
        return Cost(read, 0, max(held, chosen.held_bytes))

    written = _written(plans)
    taken = recorded(_checkpoints(plans), written)
    found = enough(within, parse_bytes(memory), "merge", taken)
    read = sum(copied.values()) + found.read_bytes
    return Cost(read, sum(written), taken + found.memory_bytes)


def recorded_of(plans: Sequence[Plan]) -> int:
    """Bytes of what is known about the tensors that plans read and write."""
    return recorded(_checkpoints(plans), _written(plans))


def _checkpoints(plans: Sequence[Plan]) -> list[Checkpoint]:
    return [checkpoint for plan in plans for checkpoint in plan.checkpoints]


def _written(plans: Sequence[Plan]) -> list[int]:
    """Bytes of each tensor of the outputs."""
    return [t.numel * BITS[t.dtype] // 8 for plan in plans for t in plan.tensors]
