"""What plans cost, from headers alone."""

from __future__ import annotations

from typing import NamedTuple

from wspace.budgets import enough
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

    found = enough(within, parse_bytes(memory), "merge")
    read, written = sum(copied.values()), sum(plan.nbytes for plan in plans)
    return found._replace(read_bytes=read + found.read_bytes, write_bytes=written)
