"""Is the centre of a region a better start than the base? BitFit from both, on the same rows.

Source: the paper (arXiv 2302.04863), section 7, appendix H, Tables 2 and 3, Figures 6 and 14.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wspace.errors import WspaceError
from wspace.lab.data import Task, with_scored_rows
from wspace.lab.encoders import Encoder
from wspace.lab.experiments.context import Context
from wspace.lab.finetune import Progress
from wspace.lab.points import Point, apply, centroid, centroid_of_groups, origin
from wspace.lab.records import Kept, plain
from wspace.lab.settings import EfficientSettings, Settings, Training, digest
from wspace.lab.statistics import paired_summary
from wspace.lab.training import bitfit, planned_steps

# of Table 2
PAPER_TARGETS = (
    "cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli", "boolq", "cb", "multirc", "wic",
)  # fmt: skip
STARTS = ("pretrained", "centroid", "family_centroid")


@dataclass(frozen=True)
class Workbench:
    """What an experiment that trains needs besides the context."""

    encoder: Encoder
    settings: Settings
    folder: Path  # of the results
    identities: tuple[str, ...]  # of the members' weights, then the base's
    progress: Progress | None = None


@dataclass(frozen=True)
class Run:
    """One BitFit training."""

    task: Task
    regime: str
    training: Training
    rows: int | None
    seed: int
    start: str
    point: Point


def run(context: Context, bench: Workbench) -> dict[str, Any]:
    """BitFit on every target, from the base and from centroids of models that never saw it.

    ``centroid``: the mean of all models but the target's; ``family_centroid``: of those of its
    family. Both starts of a comparison share the head's first weights, the rows and their order.
    ``parts``: the summary again, of the targets that the base was tuned on before, of the others,
    and of those that the paper has.
    """
    runs, left_out = planned(context)
    kept = Kept(bench.folder / "cache" / "efficient.jsonl")
    total = sum(planned_steps(one.task, replace(one.training, rows=one.rows)) for one in runs)
    found, done, loaded = [], 0, (None, {})
    for one in runs:
        steps = planned_steps(one.task, replace(one.training, rows=one.rows))
        key = _key(one, bench)
        if key not in kept.results:
            if loaded[0] != one.point:
                assert context.resident is not None
                loaded = (one.point, apply(one.point, context.resident))

            def tell(step: int, _all: int, one: Run = one, done: int = done) -> None:
                if bench.progress:
                    bench.progress(f"BitFit {one.task.name} from {one.start}", done + step, total)

            training = replace(one.training, rows=one.rows)
            trained = bitfit(
                bench.encoder, loaded[1], one.task, training, one.seed,
                head=bench.settings.finetune.head, progress=tell,
            )  # fmt: skip
            kept.add(key, {**trained.test, "steps": trained.steps, "status": trained.status})
        done += steps
        found.append(_described(one) | kept.results[key])
    for one in found:
        if one["status"] != "done":
            name = ", ".join(str(one[key]) for key in ("task", "start", "regime", "rows", "seed"))
            left_out[name] = one["status"]
    whole = [one for one in found if one["status"] == "done"]
    tuned_on = bench.settings.base_tuned_on
    parts = {
        "seen by the base": [one for one in whole if one["task"] in tuned_on],
        "new to the base": [one for one in whole if one["task"] not in tuned_on],
        "in the paper": [one for one in whole if one["task"] in PAPER_TARGETS],
    }
    return plain(
        {
            "targets": found,
            "summary": summary(whole),
            "parts": [
                {"part": name} | row for name, chosen in parts.items() for row in summary(chosen)
            ],
            "left_out": left_out,
        }
    )


def planned(context: Context) -> tuple[list[Run], dict[str, str]]:
    """Every training of this experiment, and targets or starts that cannot be, with the reason."""
    settings = context.settings.efficient
    assert settings is not None
    for start in settings.starts:
        if start not in STARTS:
            raise WspaceError(f"efficient: no start {start!r}; known: {', '.join(STARTS)}")
    regimes = {"paper": settings.paper, "tuned": settings.tuned}
    runs, left_out = [], {}
    for name in settings.targets or tuple(context.tasks):
        task = context.tasks[name]
        task = with_scored_rows(task, settings.validation_rows, settings.test_rows)
        points = _starts(context, settings, task)
        left_out |= {f"{name}, {k}": why for k, why in points.items() if isinstance(why, str)}
        runs += [
            Run(task, regime, training, rows, seed, start, point)
            for start, point in points.items()
            if isinstance(point, Point)
            for regime, training in regimes.items()
            if training is not None
            for rows in settings.rows
            for seed in range(settings.seeds)
        ]
    return runs, left_out


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every regime, number of rows and start: gains in mean accuracy over the base, by target.

    A target counts once, with the mean of its seeds, as in the paper's tables.
    """
    groups: dict[tuple, dict[str, dict[str, list[float]]]] = {}
    for one in found:
        group = groups.setdefault((one["regime"], one["rows"]), {})
        group.setdefault(one["start"], {}).setdefault(one["task"], []).append(one["accuracy"])
    rows = []
    for (regime, count), starts in groups.items():
        base = {task: _mean(values) for task, values in starts.get("pretrained", {}).items()}
        for start, tasks in starts.items():
            shared = [task for task in tasks if task in base]
            if start == "pretrained" or not shared:
                continue
            other = [_mean(tasks[task]) for task in shared]
            first = [base[task] for task in shared]
            rows.append(
                {"regime": regime, "rows": count, "start": start, "targets": shared}
                | {"pretrained_accuracy": _mean(first), "accuracy": _mean(other)}
                | paired_summary(first, other)
            )
    return rows


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _described(one: Run) -> dict[str, Any]:
    return {
        "task": one.task.name,
        "family": one.task.family,
        "start": one.start,
        "regime": one.regime,
        "rows": "all" if one.rows is None else one.rows,
        "seed": one.seed,
        "base_rate": one.task.base_rate,
    }


def _starts(context: Context, settings: EfficientSettings, task: Task) -> dict[str, Point | str]:
    """The points to start from, or why there is none."""
    others = [
        i
        for i, name in enumerate(context.task_of)
        if name != task.name and _within(context, i, settings.source_seeds)
    ]
    relatives = [i for i in others if context.family_of[i] == task.family]
    found: dict[str, Point | str] = {}
    for start in settings.starts:
        sources = relatives if start == "family_centroid" else others
        if start == "pretrained":
            found[start] = origin(len(context.records))
        elif not sources:
            found[start] = "no model of another data set to start from"
        elif settings.sources == "models":
            found[start] = centroid(len(context.records), sources)
        else:
            labels = [name if i in sources else None for i, name in enumerate(context.task_of)]
            found[start] = centroid_of_groups(labels)
    return found


def _within(context: Context, i: int, count: int | None) -> bool:
    """Whether a model is among the first ``count`` of its data set."""
    return count is None or context.task_of[:i].count(context.task_of[i]) < count


def _key(one: Run, bench: Workbench) -> str:
    sources = sorted(
        (name, weight)
        for name, weight in zip(bench.identities, one.point.weights, strict=False)
        if weight
    )
    rows = [one.task.train.hash, one.task.validation.hash, one.task.test.hash, one.task.max_length]
    encoder = [bench.encoder.pooling, bench.encoder.bf16, bench.settings.finetune.head]
    return digest(
        [bench.identities[-1], sources, rows, encoder, asdict(one.training), one.rows, one.seed]
    )
