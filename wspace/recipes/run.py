"""Running a plan: one read for the Gram matrices that it needs, and one that writes."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wspace.devices import Device, device_named
from wspace.jobs import FileSink, Job, Mixes, plan_jobs, run_jobs
from wspace.merging import copy_equal
from wspace.passes import sum_over_tensors
from wspace.recipes.card import RECIPE, model_card
from wspace.recipes.chosen import ChosenTensors
from wspace.recipes.parts import Batch, Part, batches_of, copies_of, parts_of
from wspace.recipes.plan import Plan
from wspace.recipes.problems import RecipeError
from wspace.recipes.report import Report, report_of
from wspace.recipes.tensors import TensorPlan
from wspace.recipes.tokenizers import is_of_tokenizer
from wspace.sizes import parse_bytes
from wspace.storage.checkpoints import Checkpoint
from wspace.storage.headers import KERNEL_NAMES
from wspace.storage.writing import CheckpointWriter, OutputTensor, check_output, companions
from wspace.stream import Chunk, Progress
from wspace.version import VERSION
from wspace.zoo import Zoo


def merge_recipe(plan: Plan, out: str | Path, **options: Any) -> Path:
    """Write the output of one plan: see :func:`merge_recipes`."""
    return merge_recipes([plan], [out], **options)[0]


def merge_recipes(
    plans: Sequence[Plan],
    outs: Sequence[str | Path],
    *,
    max_shard_size: int | str = "5GB",
    device: str = "auto",
    memory: int | str = "1GiB",
    allow_non_finite: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    report: Callable[[str, Report], None] | None = None,
) -> list[Path]:
    """Write the outputs of plans; numerics, options and errors are those of ``wspace.merge``.

    Tensors are written in the plans' types. An output has its donor's config and tokenizer files,
    ``wspace.json``, the recipe as ``mergekit_config.yml``, and a model card. What several outputs
    are made of is read once for all of them. A tensor whose factors come from inner products is
    read twice: once for those, in float64, and once to be written. Methods that choose elements
    are run for one output after the other, and read a tensor once if ``memory`` holds it; ``seed``
    is that of the methods that draw. ``report`` is called with each output's path and measurements,
    which take one more read of it and of its inputs, and are kept beside it in ``report.json``.
    """
    paths = [Path(out) for out in outs]
    worker, budget = device_named(device), parse_bytes(memory)
    total_bytes = sum(plan.nbytes for plan in plans)
    for plan, path in zip(plans, paths, strict=True):
        check_output(path, plan.checkpoints, total_bytes)
    parts = parts_of(plans)
    chosen = [
        ChosenTensors(plan, worker, budget, seed=seed, allow_non_finite=allow_non_finite)
        for plan in plans
    ]
    total = sum(part.nbytes() for part in parts) + sum(tensors.nbytes for tensors in chosen)
    passes = _Passes(worker, budget, allow_non_finite, progress, total)
    records = [_record(plan, seed) for plan in plans]
    pool = ThreadPoolExecutor(4, thread_name_prefix="wspace-write")
    writers: list[CheckpointWriter] = []
    try:
        for plan, path, record in zip(plans, paths, records, strict=True):
            tensors = [OutputTensor(t.name, t.dtype, t.shape) for t in plan.tensors]
            metadata = {"format": "pt", "wspace": json.dumps(record["made"])}
            writers.append(
                CheckpointWriter(
                    path, tensors, metadata=metadata, max_shard_bytes=parse_bytes(max_shard_size),
                    pool=pool,
                )
            )  # fmt: skip
            for copies in copies_of(plan):
                copy_equal(copies, writers[-1:])
        for part in parts:
            for batch in batches_of(part):
                factors = _factors(plans, part, batch, passes)
                passes.write(part, batch, factors, writers)
        for tensors, writer in zip(chosen, writers, strict=True):
            tensors.write(writer, passes.follow())
        for plan, record, writer in zip(plans, records, writers, strict=True):
            files = {RECIPE: plan.recipe.text}
            measured = None
            if report:
                measured = report_of(plan, writer.written(), worker, budget, progress)
                files["report.json"] = json.dumps(measured.as_json(), indent=1, ensure_ascii=False)
                report(str(writer.out), measured)
            files["README.md"] = model_card(plan, writer.out.name, measured)
            with donor_of(plan) as donor:
                writer.publish(donor, record, plan.dtype, files)
    finally:
        pool.shutdown(cancel_futures=True)
        for writer in reversed(writers):
            writer.abandon()
    return paths


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
        self.allow_non_finite = allow_non_finite
        self._worker, self._budget = worker, budget
        self._progress, self._done, self._total = progress, 0, total

    def follow(self) -> Progress:
        start = self._done

        def follow(done: int, total: int) -> None:
            self._done = start + done
            if self._progress:
                self._progress(self._done, self._total)

        return follow

    def grams(self, part: Part, zoo: Zoo) -> dict[tuple[tuple[int, ...], bool], np.ndarray]:
        """Inner products of each tensor's rows, float64 ``[n_tensors, n, n]``.

        One for each set of rows that a use asks for, with or without the last as their origin.
        """
        worker, asked = self._worker, part.asked
        place = {row: k for k, row in enumerate(asked)}
        wanted = list(dict.fromkeys((u.which, u.based) for u in part.uses if not u.known))
        sizes = [len(which) - based for which, based in wanted]
        ends = np.cumsum([n * n for n in sizes]).tolist()

        def add(chunk: Chunk, segments: np.ndarray, sums: np.ndarray) -> None:
            for (which, based), n, end in zip(wanted, sizes, ends, strict=True):
                rows = chunk.of_rows([place[row] for row in which])
                own = sums[:, 0, end - n * n : end].reshape(-1, n, n).copy()
                worker.products("dot", rows, segments, own, based=based)
                sums[:, 0, end - n * n : end] = own.reshape(-1, n * n)

        def finite(sums: np.ndarray) -> bool:
            return bool(np.isfinite(sums).all())

        sums = sum_over_tensors(
            zoo, asked, (1, ends[-1]), add, worker=worker, budget=self._budget, keep=True,
            what="Gram matrices", check=None if self.allow_non_finite else finite,
            progress=self.follow(),
        )  # fmt: skip
        table = sums.per_tensor
        assert table is not None
        return {
            key: table[:, 0, end - n * n : end].reshape(-1, n, n)
            for key, n, end in zip(wanted, sizes, ends, strict=True)
        }

    def write(
        self,
        part: Part,
        batch: Batch,
        factors: Sequence[Sequence[np.ndarray]],
        writers: Sequence[CheckpointWriter],
    ) -> None:
        """Write a batch: ``factors[u][t]`` are those of use ``u`` for tensor ``t``."""
        alike: dict[tuple, list[int]] = {}
        for u, use in enumerate(part.uses):
            alike.setdefault((use.which, use.based, use.dtype), []).append(u)
        jobs = []
        for (which, based, dtype), uses in alike.items():
            stacked = [np.stack(rows) for rows in zip(*(factors[u] for u in uses), strict=True)]
            distinct: dict[bytes, int] = {}
            kinds = [distinct.setdefault(rows.tobytes(), len(distinct)) for rows in stacked]
            weights = np.frombuffer(b"".join(distinct), dtype=np.float64)
            weights = weights.reshape(len(distinct), len(uses), len(which) - based)
            outputs = []
            for u in uses:
                names = [tensor.made[u].name for tensor in batch.tensors]
                places = list(zip(names, batch.starts, strict=True))
                outputs.append((places, writers[part.uses[u].output]))
            mixes = Mixes(weights, which, based, np.array(kinds))
            jobs.append(Job(mixes, KERNEL_NAMES[dtype], FileSink(outputs)))
        zoo = batch.zoo
        plans = plan_jobs(zoo, jobs, self._worker, self._budget)
        run_jobs(zoo, jobs, plans, self._worker, self.follow(), self.allow_non_finite)


def _factors(
    plans: Sequence[Plan], part: Part, batch: Batch, passes: _Passes
) -> list[list[np.ndarray]]:
    """``[use][tensor]``: the factors of the use's rows, known or from Gram matrices."""
    grams = passes.grams(part, batch.zoo) if part.asked else {}
    result = []
    for u, use in enumerate(part.uses):
        known = [tensor.factors[u] for tensor in batch.tensors]
        if not use.known:
            made = [tensor.made[u] for tensor in batch.tensors]
            gram = grams[use.which, use.based]
            known = list(_from_gram(plans[use.output], made, gram, passes.allow_non_finite))
        result.append(known)
    return result


def _from_gram(plan: Plan, made: Sequence[TensorPlan], gram: np.ndarray, allow: bool) -> np.ndarray:
    """Each tensor's factors from its Gram matrix, ``[n_tensors, n]``."""
    factors = np.empty(gram.shape[:2])
    steps = np.array([id(tensor.step) for tensor in made])
    for step in {id(tensor.step): tensor.step for tensor in made}.values():
        which = np.flatnonzero(steps == id(step))
        assert step is not None
        found = plan.method.factors(step.numbers, gram[which])
        assert found is not None
        factors[which] = found
    wrong = np.flatnonzero(~np.isfinite(factors).all(axis=1))
    if len(wrong) and not allow:
        name = made[wrong[0]].name
        raise RecipeError([f"{plan.recipe.method}: the directions of {name!r} cancel"])
    return factors


@contextmanager
def donor_of(plan: Plan) -> Iterator[Checkpoint]:
    """Where the config and tokenizer are to be copied from: edited, if they had to be."""
    donor = plan.checkpoints[plan.donor]
    if plan.config is None and not plan.files and plan.tokenizer.folder == donor.folder:
        yield donor
        return
    with tempfile.TemporaryDirectory(prefix="wspace-config-") as name:
        folder = Path(name)
        for file in companions(donor):
            if plan.tokenizer.folder == donor.folder or not is_of_tokenizer(file.name):
                shutil.copyfile(file, folder / file.name)
        for file in companions(plan.tokenizer):
            if is_of_tokenizer(file.name):
                shutil.copyfile(file, folder / file.name)
        texts = dict(plan.files)
        if plan.config is not None:
            texts["config.json"] = json.dumps(plan.config, indent=2, ensure_ascii=False) + "\n"
        for file, text in texts.items():
            if text is None:
                (folder / file).unlink(missing_ok=True)
            else:
                (folder / file).write_text(text, encoding="utf-8")
        yield replace(donor, path=folder)


def _record(plan: Plan, seed: int) -> dict[str, Any]:
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
