"""Running plans: the passes over their tensors, and what an output has besides."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from wspace.budgets import enough
from wspace.devices import device_named
from wspace.merging import copy_equal
from wspace.recipes.card import RECIPE, model_card
from wspace.recipes.chosen import ChosenTensors
from wspace.recipes.costs import recorded_of
from wspace.recipes.devices import device_for
from wspace.recipes.mixed import MixedTensors
from wspace.recipes.parts import copies_of
from wspace.recipes.plan import Plan
from wspace.recipes.record import job_of, record_of
from wspace.recipes.report import Report, report_of
from wspace.recipes.shares import share_of
from wspace.recipes.tokenizers import is_of_tokenizer
from wspace.sizes import parse_bytes
from wspace.storage.checkpoints import Checkpoint
from wspace.storage.companions import companions
from wspace.storage.outputs import OutputTensor, check_output, check_space
from wspace.storage.writers import all_finished, checkpoint_writers
from wspace.storage.writing import NewCheckpoint, Note
from wspace.stream import Progress
from wspace.team import ALONE, Team


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
    restart: bool = False,
    progress: Progress | None = None,
    report: Callable[[str, Report], None] | None = None,
    note: Note | None = None,
    team: Team = ALONE,
) -> list[Path]:
    """Write the outputs of plans; numerics, options and errors are those of ``wspace.merge``.

    Tensors are written in the plans' types. An output has its donor's config and tokenizer files,
    ``wspace.json``, the recipe as ``mergekit_config.yml``, and a model card. What several outputs
    are made of is read once for all of them. A tensor whose factors come from inner products, which
    are in float64, is read once if ``memory`` holds it, and else once more to be written. Methods
    that choose elements read a tensor once if ``memory`` holds it, and else once more for each of
    their statistics; where several outputs keep the same elements, those are found once. On several
    GPUs each has whole tensors of theirs, and a part of ``memory``. ``seed`` is that of the methods
    that draw. ``report`` is called with each output's path and measurements,
    which take one more read of it and of its inputs, and are kept
    beside it in ``report.json``. A ``team`` of processes divides the tensors.
    """
    paths = [Path(out) for out in outs]
    worker = device_named(device_for(plans, device).name)
    budget = parse_bytes(memory)
    for plan, path in zip(plans, paths, strict=True):
        check_output(path, plan.checkpoints)
    if team.share.index == 0:
        check_space(paths, sum(plan.nbytes for plan in plans))
    shares = share_of(plans, team.share)
    outputs = [
        NewCheckpoint(
            path,
            _tensors_of(plan),
            job_of(plan, seed=seed, max_shard_size=max_shard_size, device=worker.name),
            parse_bytes(max_shard_size),
            own=None if team.share.n == 1 else {t.name: (0, t.nbytes) for t in _tensors_of(share)},
        )
        for plan, share, path in zip(plans, shares, paths, strict=True)
    ]

    def passes(budget: int) -> tuple[MixedTensors, ChosenTensors]:
        return (
            MixedTensors(shares, worker, budget, allow_non_finite=allow_non_finite),
            ChosenTensors(shares, worker, budget, seed=seed, allow_non_finite=allow_non_finite),
        )

    mixed, chosen = enough(passes, budget, "merge", recorded_of(plans))
    progresses = _shared(progress, [mixed.nbytes, chosen.nbytes])
    records = [record_of(plan, seed) for plan in plans]
    with checkpoint_writers(outputs, restart=restart, note=note, team=team) as writers:
        for plan, writer in zip(shares, writers, strict=True):
            for copies in copies_of(plan):
                copy_equal(copies, [writer])
        mixed.write(writers, progresses[0])
        chosen.write(writers, progresses[1])
        published = zip(plans, records, writers, strict=True)
        for plan, record, writer in published if all_finished(writers, team) else ():
            files = {RECIPE: plan.recipe.text}
            measured = None
            if report:
                measured = report_of(plan, writer.written(), worker, budget, progress)
                files["report.json"] = json.dumps(measured.as_json(), indent=1, ensure_ascii=False)
                report(str(writer.out), measured)
            files["README.md"] = model_card(plan, writer.out.name, measured)
            with donor_of(plan) as donor:
                writer.publish(donor, record, plan.dtype, files)
        team.wait()
    return paths


def _tensors_of(plan: Plan) -> list[OutputTensor]:
    return [OutputTensor(t.name, t.dtype, t.shape) for t in plan.tensors]


def _shared(progress: Progress | None, sizes: Sequence[int]) -> list[Progress]:
    """The progress of works that are done one after the other, as parts of one."""

    def part(before: int) -> Progress:
        def follow(done: int, _total: int) -> None:
            if progress:
                progress(before + done, sum(sizes))

        return follow

    return [part(sum(sizes[:k])) for k in range(len(sizes))]


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
