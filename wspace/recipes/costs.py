"""What plans cost, from headers alone."""

from __future__ import annotations

from typing import NamedTuple

from wspace.devices import device_named
from wspace.recipes.chosen import cost_of_chosen
from wspace.recipes.mixed import needs_of
from wspace.recipes.parts import parts_of
from wspace.recipes.plan import Plan
from wspace.sizes import parse_bytes


class Cost(NamedTuple):
    read_bytes: int
    write_bytes: int
    memory_bytes: int  # of buffers and results, within the budget


def cost(*plans: Plan, device: str = "auto", memory: int | str = "1GiB") -> Cost:
    """Bytes read, written and held at most. Raises BudgetError if ``memory`` is too little."""
    worker, budget = device_named(device), parse_bytes(memory)
    copied = {
        (id(plan.checkpoints[row]), id(stored)): stored.record.nbytes
        for plan in plans
        for tensor in plan.tensors
        if tensor.step is None
        for row, stored in zip(tensor.rows, tensor.stored, strict=True)
    }
    read, held = sum(copied.values()), 0
    for part in parts_of(plans):
        needs = needs_of(part, worker, budget)
        read, held = read + needs.file_bytes, max(held, needs.held_bytes)
    chosen = cost_of_chosen(plans, worker, budget)
    written = sum(plan.nbytes for plan in plans)
    return Cost(read + chosen.read_bytes, written, max(held, chosen.held_bytes))
