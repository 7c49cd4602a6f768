"""Which device a recipe runs on, and why."""

from __future__ import annotations

from collections.abc import Sequence

from wspace.elementwise.work import passes_of
from wspace.placement import Choice, Job, choose
from wspace.recipes.plan import Plan
from wspace.storage.headers import BITS


def device_for(plans: Sequence[Plan], device: str) -> Choice:
    """The device called ``device``; for ``auto`` the one estimated to be faster, and why."""
    return choose(device, job_of(plans))


def job_of(plans: Sequence[Plan]) -> Job:
    """What the plans' tensors take: each is read once for each output that it is part of."""
    read = written = flops = chosen = 0.0
    for plan in plans:
        for tensor in plan.tensors:
            if tensor.step is None:
                continue
            n = len(tensor.rows)
            inputs = sum(stored.read_bytes for stored in tensor.stored)
            read, written = read + inputs, written + tensor.numel * BITS[tensor.dtype] / 8
            if tensor.step.choice:
                chosen += n * tensor.numel * passes_of(tensor.step.choice)
            elif tensor.step.factors is None:
                read, flops = read + inputs, flops + n * (n + 1) * tensor.numel
    return Job(read, written, flops, chosen)
