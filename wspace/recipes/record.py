"""How an output was made, and what its bytes follow from."""

from __future__ import annotations

from typing import Any

from wspace.devices import device_named
from wspace.recipes.plan import Plan
from wspace.recipes.tokenizers import is_of_tokenizer
from wspace.sizes import parse_bytes
from wspace.storage.checksums import checksum
from wspace.storage.companions import companions
from wspace.storage.fingerprints import Fingerprint, fingerprint
from wspace.version import VERSION


def record_of(plan: Plan, seed: int) -> dict[str, Any]:
    """What ``wspace.json`` says."""
    copied = {
        t.name: "not floating point, equal in all that have it"
        for t in plan.tensors
        if t.step is None
    }
    return {
        "made": {
            "version": VERSION,
            "method": plan.recipe.method,
            "models": [str(reference) for reference in plan.references],
            "base": str(plan.recipe.base) if plan.recipe.base else None,
            "dtype": plan.recipe.out_dtype or plan.recipe.dtype,
            "seed": seed,
            "recipe": plan.recipe.text,
        },
        "tensors": {
            "mixed": len(plan.tensors) - len(copied),
            "copied": copied,
            "left_out": plan.left_out,
        },
    }


def job_of(
    plan: Plan, *, seed: int = 0, max_shard_size: int | str = "5GB", device: str = "auto",
    **options: Any,
) -> Fingerprint:  # fmt: skip
    """What an output's bytes follow from; of the options, those that they follow from.

    Inner products are rounded differently by a GPU, and so may factors that come from them.
    """
    read = [*plan.checkpoints, *filter(None, plan.diagonals), plan.tokenizer]
    also = [
        c.home / file.name for c in read for file in companions(c) if is_of_tokenizer(file.name)
    ]
    from_grams = any(t.step and t.step.factors is None for t in plan.tensors)
    listed = "\n".join(f"{t.name} {t.dtype} {t.shape}" for t in plan.tensors)
    return fingerprint(
        record_of(plan, seed)["made"],
        read,
        also=also,
        tensors=checksum(listed.encode()),
        max_shard_bytes=parse_bytes(max_shard_size),
        device=device_named(device).name.partition(":")[0] if from_grams else None,
    )
