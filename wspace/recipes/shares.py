"""Plans divided among processes: by whole tensors, as factors and thresholds are of whole ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from wspace.elementwise.choices import Largest
from wspace.errors import WspaceError
from wspace.recipes.plan import Plan
from wspace.shares import Share, dealt
from wspace.storage.headers import BITS


def share_of(plans: Sequence[Plan], share: Share) -> list[Plan]:
    """The plans with the tensors of one share; those of one name are in the same, by bytes.

    Raises WspaceError where the statistics of a method are of whole models.
    """
    if share.n == 1:
        return list(plans)
    sizes: dict[str, int] = {}
    for plan in plans:
        for tensor in plan.tensors:
            keep = tensor.step and tensor.step.choice and tensor.step.choice.keep
            if isinstance(keep, Largest) and keep.whole:
                raise WspaceError(
                    f"{plan.recipe.method} has one threshold for each whole model, which one "
                    "process finds: run it without torchrun and --range"
                )
            nbytes = sum(stored.record.nbytes for stored in tensor.stored)
            nbytes += tensor.numel * BITS[tensor.dtype] // 8
            sizes[tensor.name] = sizes.get(tensor.name, 0) + nbytes
    owners = dict(zip(sizes, dealt(list(sizes.values()), share.n), strict=True))
    return [
        replace(plan, tensors=tuple([t for t in plan.tensors if owners[t.name] == share.index]))
        for plan in plans
    ]
