"""A zoo: models trained on tasks, each saved once, and not trained again when it is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wspace.lab.data import Task, with_scored_rows, with_train_rows
from wspace.lab.encoders import Encoder
from wspace.lab.records import file_hash, plain, state_hash, versions, write_json
from wspace.lab.settings import Settings, Training, digest
from wspace.lab.training import TrainingError, planned_steps, train

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much

RECORD = "record.json"


@dataclass(frozen=True)
class Job:
    """One model to be trained: its folder's name, its data, its recipe and its seed."""

    name: str
    task: Task
    training: Training
    seed: int


def zoo_jobs(tasks: Mapping[str, Task], settings: Settings) -> list[Job]:
    """Every task times every seed."""
    return [
        Job(f"{task.name}-{seed}", task, settings.finetune, seed)
        for task in tasks.values()
        for seed in range(settings.finetune.seeds)
    ]


def train_zoo(
    encoder: Encoder,
    jobs: Sequence[Job],
    settings: Settings,
    folder: Path,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Train the jobs' models that are not there yet; returns the records of all, in that order.

    Writes ``folder/<name>`` for each, under its name only when it is complete: a folder that
    AutoModel loads, with record.json beside it. A model that is there is not trained again; one
    whose loss is not finite leaves its record alone, and the others go on. Raises TrainingError if
    a folder holds another experiment's model. Progress counts optimizer steps.
    """
    base_hash = state_hash(encoder.state)
    total = sum(planned_steps(job.task, job.training) for job in jobs)
    records, done = [], 0
    for job in jobs:
        identity = model_hash(settings, job, base_hash)
        found = read_record(folder / job.name, identity)
        if found is None:

            def tell(step: int, _all: int, done: int = done, name: str = job.name) -> None:
                if progress:
                    progress(f"training {name}", done + step, total)

            tell(0, 0)
            found = _train_one(encoder, job, settings, (identity, base_hash), folder, tell)
        records.append(found)
        done += planned_steps(job.task, job.training)
        if progress:
            progress(f"trained {job.name}", done, total)
    return records


def save_base(encoder: Encoder, folder: Path) -> str:
    """The base as a plain folder beside its zoo; returns its hash.

    Raises TrainingError if another base is there.
    """
    base_hash, mark = state_hash(encoder.state), folder / "base.json"
    if mark.is_file():
        if json.loads(mark.read_text())["hash"] != base_hash:
            raise TrainingError(
                f"{folder}: holds another base than {encoder.name}; choose another results folder"
            )
        return base_hash
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    encoder.save(encoder.module(), partial)
    write_json(partial / "base.json", {"name": encoder.name, "hash": base_hash})
    partial.rename(folder)
    return base_hash


def model_hash(settings: Settings, job: Job, base_hash: str) -> str:
    """What makes a trained model: the same hash, the same model."""
    recipe = {key: value for key, value in asdict(job.training).items() if key != "seeds"}
    rows = [job.task.train.hash, job.task.validation.hash, job.task.max_length]
    shared = [settings.finetune.head, settings.finetune.validation_rows, settings.pooling]
    return digest([recipe, rows, shared, settings.bf16, settings.seed, job.seed, base_hash])


def read_record(folder: Path, identity: str | None = None) -> dict[str, Any] | None:
    """The record of a finished model, or None. Raises TrainingError for another experiment's."""
    path = folder / RECORD
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if identity is not None and record["hash"] != identity:
        raise TrainingError(
            f"{folder}: a model of other settings, data or base; choose another results folder, "
            "or remove it first"
        )
    return record


def _train_one(
    encoder: Encoder,
    job: Job,
    settings: Settings,
    made: tuple[str, str],
    folder: Path,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Train one model into ``folder``; ``made``: its identity and its base's."""
    finetune = settings.finetune
    # a seed is the head's first weights and the order of the rows: all seeds have the same rows
    task = with_train_rows(job.task, job.training.rows, settings.seed)
    task = with_scored_rows(task, finetune.validation_rows, finetune.test_rows)
    drawn = settings.seed * 1000 + job.seed
    partial = folder / f".{job.name}.partial"
    partial.mkdir(parents=True, exist_ok=True)
    model = encoder.fresh(drawn, len(task.labels), head=finetune.head, dropout=job.training.dropout)
    # of the same identity: checkpoints of other settings are not gone on from
    scratch = partial / f"trainer-{made[0]}"
    result = train(model, encoder, task, job.training, drawn, folder=scratch, progress=progress)
    for leftover in partial.glob("trainer-*"):
        shutil.rmtree(leftover)
    done = result.status == "done"
    if done:
        encoder.save(model.encoder, partial, model.classifier)
    found = asdict(result)
    scores = {
        f"{split}_{measure}": value
        for split in ("validation", "test")
        for measure, value in found.pop(split).items()
    }
    record = {
        "name": job.name,
        "task": task.name,
        "family": task.family,
        "seed": job.seed,
        "hash": made[0],
        "weights": file_hash(partial / "model.safetensors") if done else None,
        "base": {"name": encoder.name, "hash": made[1]},
        "pooling": encoder.pooling,
        "bf16": encoder.bf16,
        "settings": asdict(job.training),
        "head": finetune.head,
        "labels": len(task.labels),
        "max_length": task.max_length,
        **found,
        **scores,
        "versions": versions(),
    }
    record = plain(record)
    write_json(partial / RECORD, record)
    partial.rename(folder / job.name)
    return record
