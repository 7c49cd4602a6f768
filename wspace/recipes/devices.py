"""Which device a recipe runs on, and why."""

from __future__ import annotations

from collections.abc import Sequence

from wspace.elementwise.kernels import why_on_cpu
from wspace.elementwise.work import passes_of
from wspace.placement import Choice, Job, choose
from wspace.recipes.plan import Plan
from wspace.storage.headers import BITS


def device_for(plans: Sequence[Plan], device: str) -> Choice:
    """The device called ``device``; for ``auto`` the one that is estimated to be faster.

    With a reason where there was a choice, and where a method has no kernels for the device: then
    its tensors are made on the CPU, and the others on the device.
    """
    found = choose(device, job_of(plans))
    cannot = [(plan.recipe.method, why) for plan in plans if (why := _why_on_cpu(plan))]
    if found.name == "cpu" or not cannot:
        return found
    method, why = cannot[0]
    if device == "auto":  # copying to a device is not worth it for what is left
        return Choice("cpu", f"device cpu: in {method} {why}, which only the CPU does")
    return Choice(
        found.name,
        f"device cpu for the tensors of {method}, in which {why}, which only the CPU does; "
        f"{found.name} for all others",
    )


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


def _why_on_cpu(plan: Plan) -> str | None:
    steps = [tensor.step for tensor in plan.tensors if tensor.step]
    return why_on_cpu([step.choice for step in steps if step.choice])
