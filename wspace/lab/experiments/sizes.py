"""Does the number of training rows move a model's direction? One model for each data set and size.

Source: the paper (arXiv 2302.04863), section 4.1, appendix C, Figures 7 and 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from wspace import geometry
from wspace.errors import WspaceError
from wspace.grams import gram
from wspace.lab.data import Task
from wspace.lab.encoders import HEAD_PATTERNS
from wspace.lab.experiments.efficient import Workbench
from wspace.lab.finetune import Job, save_base, train_zoo
from wspace.lab.records import plain
from wspace.lab.settings import Settings
from wspace.lab.statistics import cluster_scores
from wspace.zoo import open_zoo


def run(tasks: Mapping[str, Task], bench: Workbench) -> dict[str, Any]:
    """Clusters with k = number of data sets, and with k = number of sizes.

    Trains one model for each data set and size into ``sizes/`` of the results. A data set with
    fewer rows than the greatest size takes no part, unless the settings name it.
    """
    jobs, left_out = planned(tasks, bench.settings)
    if len({job.task.name for job in jobs}) < 2:
        return {"models": [], "left_out": left_out, "reason": "fewer than two data sets"}
    folder = bench.folder / "sizes"
    base = bench.folder / "base"
    save_base(bench.encoder, base)
    records = train_zoo(bench.encoder, jobs, bench.settings, folder, bench.progress)
    failed = {record["name"]: record["status"] for record in records if record["status"] != "done"}
    done = [job for job in jobs if job.name not in failed]
    names = [job.task.name for job in done]
    sizes = [str(job.training.rows) for job in done]
    zoo = open_zoo([folder / job.name for job in done], base=base, exclude=HEAD_PATTERNS)
    matrix = gram(zoo, per_tensor=False).total
    return plain(
        {
            "models": [
                {"task": job.task.name, "size": job.training.rows, "seed": job.seed} for job in done
            ],
            "accuracy": [r["test_accuracy"] for r in records if r["name"] not in failed],
            "gram": matrix.tolist(),
            "cosines": geometry.cosines(matrix).tolist(),
            "k_tasks": _scores(matrix, names),
            "k_sizes": _scores(matrix, sizes),
            "left_out": left_out | failed,
        }
    )


def planned(tasks: Mapping[str, Task], settings: Settings) -> tuple[list[Job], dict[str, str]]:
    """The models to train, and the data sets that take no part."""
    chosen = settings.experiments.sizes
    assert chosen is not None
    greatest, left_out, jobs = max(chosen.sizes), {}, []
    recipe = chosen.training or settings.finetune
    for name in chosen.tasks or tuple(tasks):
        task = tasks[name]
        classes = len(set(task.train.labels))
        if len(task.train) < greatest:
            if chosen.tasks:
                raise WspaceError(
                    f"sizes: {name} has {len(task.train)} training rows, fewer than {greatest}"
                )
            left_out[name] = f"{len(task.train)} training rows, fewer than {greatest}"
        elif 2 * classes > min(chosen.sizes) and not chosen.tasks:
            left_out[name] = f"{classes} classes, too many for {min(chosen.sizes)} rows"
        else:
            jobs += [
                Job(f"{name}-{size}", task, replace(recipe, rows=size), 0) for size in chosen.sizes
            ]
    return jobs, left_out


def _scores(matrix, truth: list[str]) -> dict[str, Any]:
    labels = geometry.spectral_clustering(matrix, len(set(truth)), seed=0).labels.tolist()
    return cluster_scores(labels, truth) | {"labels": labels, "truth": truth}
