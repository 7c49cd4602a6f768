"""Running a plan: one read for the Gram matrices that it needs, and one that writes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wspace.devices import Device, device_named
from wspace.merging import FileSink, Mixes, copy_equal, plan_mixes, run_mixes
from wspace.passes import sum_over_tensors
from wspace.recipes.parts import Part, copies_of, parts_of, zoos_of
from wspace.recipes.plan import Plan
from wspace.recipes.problems import RecipeError
from wspace.recipes.tensors import TensorPlan
from wspace.sizes import parse_bytes
from wspace.storage.checkpoints import Checkpoint
from wspace.storage.headers import KERNEL_NAMES
from wspace.storage.writing import CheckpointWriter, OutputTensor, check_output, companions
from wspace.stream import Chunk, Progress
from wspace.version import VERSION
from wspace.zoo import Zoo


def merge_recipe(
    plan: Plan,
    out: str | Path,
    *,
    max_shard_size: int | str = "5GB",
    device: str = "auto",
    memory: int | str = "1GiB",
    allow_non_finite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write the output of a plan; numerics, options and errors are those of ``wspace.merge``.

    Tensors are written in the plan's types. The output has the donor's config and tokenizer files,
    and ``wspace.json`` with the recipe. A tensor whose factors come from inner products is read
    twice: once for those, in float64, and once to be written.
    """
    out = Path(out)
    worker, budget = device_named(device), parse_bytes(memory)
    tensors = [OutputTensor(tensor.name, tensor.dtype, tensor.shape) for tensor in plan.tensors]
    check_output(out, plan.checkpoints, plan.nbytes)
    parts = parts_of(plan)
    total = sum(part.nbytes * (1 if part.factors is not None else 2) for part in parts)
    passes = _Passes(worker, budget, allow_non_finite, progress, total)
    record = _record(plan)
    pool = ThreadPoolExecutor(4, thread_name_prefix="wspace-write")
    writer = None
    try:
        writer = CheckpointWriter(
            out, tensors, metadata={"format": "pt", "wspace": json.dumps(record["made"])},
            max_shard_bytes=parse_bytes(max_shard_size), pool=pool,
        )  # fmt: skip
        for copies in copies_of(plan):
            copy_equal(copies, [writer])
        for part in parts:
            for zoo, places, owners in zoos_of(plan, part):
                factors: Sequence[np.ndarray] | None = part.factors
                if factors is None:
                    factors = list(_from_gram(plan, zoo, owners, passes, allow_non_finite))
                passes.write(zoo, part, factors, FileSink(places, [writer]))
        with _donor(plan) as donor:
            writer.publish(donor, record, plan.dtype)
    finally:
        pool.shutdown(cancel_futures=True)
        if writer:
            writer.abandon()
    return out


class _Passes:
    """Passes over zoos with one progress."""

    def __init__(
        self,
        worker: Device,
        budget: int,
        allow_non_finite: bool,
        progress: Progress | None,
        total: int,
    ) -> None:
        self._worker, self._budget, self._allow = worker, budget, allow_non_finite
        self._progress, self._done, self._total = progress, 0, total

    def _follow(self) -> Progress:
        start = self._done

        def follow(done: int, total: int) -> None:
            self._done = start + done
            if self._progress:
                self._progress(self._done, self._total)

        return follow

    def gram(self, zoo: Zoo) -> np.ndarray:
        """Inner products of the rows of each tensor, float64 ``[n_tensors, n, n]``."""
        based, worker, n = zoo.base is not None, self._worker, len(zoo)

        def add(chunk: Chunk, segments: np.ndarray, sums: np.ndarray) -> None:
            worker.products("dot", chunk, segments, sums, based=based)

        def finite(sums: np.ndarray) -> bool:
            return bool(np.isfinite(np.diagonal(sums, axis1=1, axis2=2)).all())

        sums = sum_over_tensors(
            zoo, range(len(zoo.checkpoints)), (n, n), add, worker=worker, budget=self._budget,
            keep=True, what="Gram matrices", check=None if self._allow else finite,
            progress=self._follow(),
        )  # fmt: skip
        assert sums.per_tensor is not None
        return sums.per_tensor

    def write(self, zoo: Zoo, part: Part, factors: Sequence[np.ndarray], sink: FileSink) -> None:
        """Write a part: ``factors[t]`` are those of its tensor ``t``."""
        distinct: dict[bytes, int] = {}
        kinds = np.array([distinct.setdefault(row.tobytes(), len(distinct)) for row in factors])
        weights = np.frombuffer(b"".join(distinct), dtype=np.float64)
        weights = weights.reshape(len(distinct), 1, len(zoo))
        chosen = Mixes(weights, tuple(range(len(zoo.checkpoints))), part.based, kinds)
        dtype = KERNEL_NAMES[part.dtype]
        plans = plan_mixes(zoo, chosen, self._worker, self._budget, dtype)
        run_mixes(zoo, chosen, plans, self._worker, dtype, sink, self._follow(), self._allow)


def _from_gram(
    plan: Plan, zoo: Zoo, owners: Sequence[TensorPlan], passes: _Passes, allow: bool
) -> np.ndarray:
    """Each tensor's factors from its Gram matrix, ``[n_tensors, n]``."""
    grams = passes.gram(zoo)
    factors = np.empty((len(zoo.tensors), len(zoo)))
    steps = np.array([id(owner.step) for owner in owners])
    for step in {id(owner.step): owner.step for owner in owners}.values():
        which = np.flatnonzero(steps == id(step))
        assert step is not None
        found = plan.method.factors(step.numbers, grams[which])
        assert found is not None
        factors[which] = found
    wrong = np.flatnonzero(~np.isfinite(factors).all(axis=1))
    if len(wrong) and not allow:
        name = owners[wrong[0]].name
        raise RecipeError([f"{plan.recipe.method}: the directions of {name!r} cancel"])
    return factors


@contextmanager
def _donor(plan: Plan) -> Iterator[Checkpoint]:
    """Where the config and tokenizer are to be copied from: edited, if they had to be."""
    donor = plan.checkpoints[plan.donor]
    if plan.config is None:
        yield donor
        return
    with tempfile.TemporaryDirectory(prefix="wspace-config-") as name:
        folder = Path(name)
        for file in companions(donor):
            shutil.copyfile(file, folder / file.name)
        text = json.dumps(plan.config, indent=2, ensure_ascii=False) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
        yield replace(donor, path=folder)


def _record(plan: Plan) -> dict[str, Any]:
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
            "recipe": plan.recipe.text,
        },
        "tensors": {
            "mixed": len(plan.tensors) - len(copied),
            "copied": copied,
            "left_out": plan.left_out,
        },
    }
