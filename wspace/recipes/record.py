"""How an output was made, and what its bytes follow from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wspace.devices import device_named
from wspace.recipes.plan import Plan
from wspace.recipes.references import ModelReference
from wspace.recipes.tokenizers import is_of_tokenizer
from wspace.sizes import parse_bytes
from wspace.storage.checkpoints import Checkpoint
from wspace.storage.checksums import checksum
from wspace.storage.companions import companions
from wspace.storage.fingerprints import Fingerprint, fingerprint
from wspace.storage.naming import hub_place, public_name
from wspace.version import VERSION


def known_as(reference: ModelReference, checkpoint: Checkpoint) -> str:
    """A model of the Hub by its id and the revision that was read; another as it was given."""
    place = hub_place(checkpoint.path)
    own = replace(reference, adapter=None)
    name = public_name(checkpoint.path) if place else str(own)
    adapter = reference.adapter and public_name(str(reference.adapter))
    return f"{name}+{adapter}" if adapter else name


def names_of(plan: Plan) -> dict[ModelReference, str]:
    """:func:`known_as` of all of its models."""
    pairs = zip(plan.references, plan.checkpoints, strict=True)
    return {reference: known_as(reference, checkpoint) for reference, checkpoint in pairs}


def record_of(plan: Plan, seed: int) -> dict[str, Any]:
    """What ``wspace.json`` says."""
    names = names_of(plan)
    base = plan.recipe.base
    copied = {
        t.name: "not floating point, equal in all that have it"
        for t in plan.tensors
        if t.step is None
    }
    return {
        "made": {
            "version": VERSION,
            "method": plan.recipe.method,
            "models": list(names.values()),
            "base": names.get(base, str(base)) if base else None,
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
