"""What an experiment will train and evaluate, and how long it should take: counted, and measured.

The experiments themselves are asked for their points, with an evaluator that only counts, so the
plan is what will be run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from wspace.grams import Gram
from wspace.lab.data import Task, subset, with_scored_rows
from wspace.lab.experiments import edges, efficient, lines, regions, sizes
from wspace.lab.experiments.context import Context
from wspace.lab.finetune import Job, read_record, zoo_jobs
from wspace.lab.laboratory import Lab
from wspace.lab.points import Point
from wspace.lab.probe import ProbeResult
from wspace.lab.settings import Settings, Training
from wspace.lab.stages import STAGES, check_stages, claimed, read_stage, stage_hash
from wspace.lab.training import planned_steps

MEASURED_STEPS = 3
MEASURED_ROWS = 256
PROBE_ITERATIONS = 150  # passes over the features that a fit takes: 20 to 250 were seen


@dataclass
class Plan:
    """Counts and seconds by stage."""

    what: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    gigabytes: float = 0.0

    def lines(self) -> list[str]:
        rows = [
            f"{stage:<10} {_time(self.seconds[stage]):>9}  {self.what[stage]}"
            for stage in self.what
        ]
        total = sum(self.seconds.values())
        return [
            *rows,
            f"{'in all':<10} {_time(total):>9}  at most, by a short measurement on this machine; "
            f"{self.gigabytes:.1f} GB of weights on the disk",
        ]


class _Counter:
    """An evaluator that says which losses are asked for, and gives ones."""

    def __init__(self) -> None:
        self.asked: set[tuple[Point, str]] = set()

    def losses(self, points: Sequence[Point], task_names: Sequence[str]) -> list[dict[str, Any]]:
        self.asked |= {(point, name) for point in points for name in task_names}
        one = ProbeResult(1.0, 0.5, 1, 1)
        return [dict.fromkeys(task_names, one) for _ in points]


def estimate(
    settings: Settings, folder: Path, *, device: str = "auto", only: Sequence[str] = ()
) -> Plan:
    """Count what is left to do in a results folder, and time a little of it. Writes nothing."""
    chosen = check_stages(only)
    claimed(settings, folder)
    lab = Lab(settings, folder, device)
    left = [
        stage
        for stage in STAGES[:-1]
        if stage in chosen
        and (stage in STAGES[:2] or getattr(settings.experiments, stage) is not None)
        and read_stage(folder, stage, stage_hash(settings, stage)) is None
    ]
    cost, plan = _Cost(lab), Plan()
    jobs = [
        job
        for job in zoo_jobs(lab.tasks, settings)
        if read_record(folder / "models" / job.name) is None
    ]
    seen: set[tuple[Point, str]] = set()
    for stage in left:
        if stage == "finetune":
            _add(plan, stage, f"{len(jobs)} models to train", cost.jobs(jobs))
            plan.gigabytes += 4e-9 * lab.encoder.numel * (len(jobs) + 1)
        elif stage == "sizes":
            found, _ = sizes.planned(lab.tasks, settings)
            _add(plan, stage, f"{len(found)} models to train", cost.jobs(found))
            plan.gigabytes += 4e-9 * lab.encoder.numel * len(found)
        elif stage == "efficient":
            runs, _ = efficient.planned(_context(lab, None))
            seconds = sum(
                cost.training(run.task, replace(run.training, rows=run.rows), bitfit=True)
                for run in runs
            )
            _add(plan, stage, f"{len(runs)} BitFit trainings", seconds)
        elif stage in ("lines", "regions", "edges"):
            counter = _Counter()
            {"lines": lines, "regions": regions, "edges": edges}[stage].run(_context(lab, counter))
            new = counter.asked - seen
            seen |= new
            points = len({point for point, _ in new})
            seconds = sum(cost.evaluation(name) for _, name in new)
            _add(plan, stage, f"{len(new)} losses of {points} points", seconds)
        else:
            _add(plan, stage, "from one read of the zoo", 0.0)
    return plan


def _add(plan: Plan, stage: str, what: str, seconds: float) -> None:
    plan.what[stage], plan.seconds[stage] = what, seconds


def _context(lab: Lab, counter: _Counter | None) -> Context:
    """A context of models that are not trained yet: orthogonal task vectors of length 1."""
    jobs = zoo_jobs(lab.tasks, lab.settings)
    names = tuple(job.name for job in jobs)
    n = len(jobs)
    gram = Gram(torch.eye(n, dtype=torch.float64), None, (), names, True, {})
    resident = SimpleNamespace(mix=lambda *_a, **_k: [{"": torch.ones(1)}])
    return Context(
        records=[{"task": job.task.name, "family": job.task.family} for job in jobs],
        zoo=cast(Any, range(n)),  # only its length is asked for
        gram=gram,
        resident=cast(Any, resident),
        evaluator=counter,
        tasks=lab.tasks,
        settings=lab.settings.experiments,
        seed=lab.settings.seed,
    )


class _Cost:
    """Seconds of a training and of an evaluation, from a few steps of each on this machine."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.encoder = lab, lab.encoder
        self.steps: dict[tuple[bool, int], tuple[float, float]] = {}
        task = max(lab.tasks.values(), key=lambda task: self._mean_tokens(task.name))
        encoded = self.encoder.encode(subset(task.test, MEASURED_ROWS, 0), task.max_length)
        module = self.encoder.module()
        self.encoder.features(module, encoded)  # the first pass warms up
        started = time.perf_counter()
        self.encoder.features(module, encoded)
        tokens = sum(batch["input_ids"].numel() for batch in encoded.batches)
        self.forward = (time.perf_counter() - started) / tokens
        x = torch.randn(1000, self.encoder.hidden, dtype=torch.float64, device=self.encoder.device)
        weights = x.new_zeros(self.encoder.hidden, 20)
        _ = (x @ weights).sum().item()
        started = time.perf_counter()
        for _ in range(5):
            _ = (x.T @ (x @ weights).exp()).sum().item()
        self.product = (time.perf_counter() - started) / 5 / (1000 * 20)

    def jobs(self, jobs: Sequence[Job]) -> float:
        finetune = self.lab.settings.finetune
        rows = finetune.validation_rows, finetune.test_rows
        return sum(self.training(with_scored_rows(job.task, *rows), job.training) for job in jobs)

    def training(self, task: Task, training: Training, *, bitfit: bool = False) -> float:
        """One training and its scoring, if nothing stops it early."""
        name = task.name
        steps = planned_steps(task, training)
        scored = len(task.validation) + len(task.test)
        if training.patience is not None:
            scored += math.ceil(training.epochs) * len(task.validation)
        step = self._step(bitfit or training.method == "bitfit", training.batch)
        seconds = step[0] + step[1] * self._padded_tokens(name, training.batch)
        return steps * seconds + scored * self._mean_tokens(name) * self.forward

    def evaluation(self, name: str) -> float:
        """Features of a probe's rows, and its fit."""
        task, probe = self.lab.tasks[name], self.lab.settings.probe
        train = min(len(task.train), probe.train_rows or len(task.train))
        test = min(len(task.test), probe.test_rows or len(task.test))
        fit = self.product * train * len(task.labels) * PROBE_ITERATIONS
        return (train + test) * self._mean_tokens(name) * self.forward + fit

    def _step(self, bitfit: bool, batch: int) -> tuple[float, float]:
        """Seconds of an optimizer step: for itself, and for each token."""
        if (bitfit, batch) not in self.steps:
            names = sorted(self.lab.tasks, key=lambda name: self._padded_tokens(name, batch))
            ends = names[0], names[-1]
            seconds = [self._measured(name, bitfit, batch) for name in ends]
            tokens = [self._padded_tokens(name, batch) for name in ends]
            slope = max(0.0, seconds[1] - seconds[0]) / max(tokens[1] - tokens[0], 1.0)
            self.steps[bitfit, batch] = max(0.0, seconds[0] - slope * tokens[0]), slope
        return self.steps[bitfit, batch]

    def _measured(self, name: str, bitfit: bool, batch: int) -> float:
        task = self.lab.tasks[name]
        model = self.encoder.fresh(0, len(task.labels))
        for parameter_name, parameter in model.encoder.named_parameters():
            parameter.requires_grad_(not bitfit or "bias" in parameter_name)
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True
        )
        rows = self._rows(name)
        times = []
        for inputs in self._drawn(len(rows), batch, MEASURED_STEPS):
            chosen = [rows[i] for i in inputs]
            padded = self.encoder.tokenizer.pad(chosen, return_tensors="pt")
            started = time.perf_counter()
            with self.encoder.autocast():
                loss = model(**padded.to(self.encoder.device))["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            _ = loss.item()
            times.append(time.perf_counter() - started)
        return min(times)

    def _rows(self, name: str) -> list[dict[str, Any]]:
        task = self.lab.tasks[name]
        return self.encoder.encode(task.train, task.max_length).rows

    def _mean_tokens(self, name: str) -> float:
        return float(np.mean([len(row["input_ids"]) for row in self._rows(name)]))

    def _padded_tokens(self, name: str, batch: int) -> float:
        """Of a batch, padding included."""
        lengths = np.array([len(row["input_ids"]) for row in self._rows(name)])
        drawn = self._drawn(len(lengths), batch, 20)
        return float(np.mean([len(part) * lengths[part].max() for part in drawn]))

    @staticmethod
    def _drawn(n: int, batch: int, count: int) -> list[np.ndarray]:
        draw = np.random.default_rng(0)
        return [draw.choice(n, min(batch, n), replace=False) for _ in range(count)]


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
