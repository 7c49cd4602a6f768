"""Generalized loss of points of weight space: mix, features, probe; each number is made once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from wspace.errors import WspaceError
from wspace.lab.data import Task, scored_rows
from wspace.lab.encoders import Encoded, Encoder
from wspace.lab.points import Point, apply_into
from wspace.lab.probe import ProbeResult, fit_probe
from wspace.lab.records import Kept
from wspace.lab.settings import Probe, digest
from wspace.modules import ResidentZoo

Progress = Callable[[str, int, int], None]


class Evaluator:
    """Losses of points on tasks, through one live module; results are kept in a file.

    ``identities``: a hash of each member's weights, then the base's. They, the point, the rows and
    the probe's settings are what a kept number is found by: a second run does no forward pass, and
    models that a point gives no weight play no part.
    """

    def __init__(
        self,
        encoder: Encoder,
        resident: ResidentZoo,
        tasks: Mapping[str, Task],
        settings: Probe,
        cache: Path | None = None,
        progress: Progress | None = None,
        *,
        identities: Sequence[str] = (),
    ) -> None:
        if cache is not None and len(identities) != len(resident.zoo) + 1:
            raise ValueError("identities: expected one for each member, then the base's")
        self.encoder, self.resident, self.tasks = encoder, resident, tasks
        self.settings, self.progress = settings, progress
        self.identities = list(identities)
        self.seconds = {"mix": 0.0, "features": 0.0, "probe": 0.0}
        self.forward_passes = 0
        self._kept = Kept(cache)
        self._rows: dict[str, tuple[Encoded, Encoded, str]] = {}
        self._module: torch.nn.Module | None = None

    def losses(
        self, points: Sequence[Point], task_names: Sequence[str]
    ) -> list[dict[str, ProbeResult]]:
        """For each point, the probe's result on each task.

        A point whose features are not finite has a loss of NaN. Progress counts points x tasks.
        """
        for name in task_names:
            if name not in self.tasks:
                raise WspaceError(
                    f"no task {name!r} to evaluate on; known: {', '.join(self.tasks)}"
                )
        keys = [{name: self.key(point, name) for name in task_names} for point in points]
        todo: dict[str, tuple[Point, dict[str, str]]] = {}
        for point, names in zip(points, keys, strict=True):
            lacking = {name: key for name, key in names.items() if key not in self._kept.results}
            if lacking:
                # points given twice are one
                todo.setdefault("".join(sorted(lacking.values())), (point, lacking))
        total = sum(len(lacking) for _, lacking in todo.values())
        done = 0
        for point, lacking in todo.values():
            self._load(point)
            for name, key in lacking.items():
                if key not in self._kept.results:
                    self._kept.add(key, asdict(self._probe(name)))
                done += 1
                if self.progress:
                    self.progress(f"evaluating on {name}", done, total)
        kept = self._kept.results
        return [{n: ProbeResult(**kept[key]) for n, key in names.items()} for names in keys]

    def key(self, point: Point, task_name: str) -> str:
        """What a result is kept by."""
        identities = self.identities or list(map(str, range(len(point.weights) + 1)))
        members = sorted(
            (identity, weight)
            for identity, weight in zip(identities, point.weights, strict=False)
            if weight
        )
        direction = asdict(point.direction) if point.direction else None
        rows = self._encoded(task_name)[2]
        encoder = [self.encoder.pooling, self.encoder.bf16, str(self.encoder.device.type)]
        return digest(
            [identities[-1], members, direction, point.scale, rows, asdict(self.settings), encoder]
        )

    def _encoded(self, name: str) -> tuple[Encoded, Encoded, str]:
        if name not in self._rows:
            task, probe = self.tasks[name], self.settings
            parts = [(task.train, probe.train_rows), (task.test, probe.test_rows)]
            train, test = (
                self.encoder.encode(scored_rows(rows, n), task.max_length) for rows, n in parts
            )
            self._rows[name] = train, test, digest([train.hash, test.hash])
        return self._rows[name]

    def _load(self, point: Point) -> None:
        started = time.perf_counter()
        if self._module is None:
            self._module = self.encoder.module()
        apply_into(point, self.resident, self._module)
        self._took("mix", started)

    def _probe(self, name: str) -> ProbeResult:
        assert self._module is not None
        train, test, _ = self._encoded(name)
        started = time.perf_counter()
        pooling = self.settings.pooling
        x = [self.encoder.features(self._module, part, pooling) for part in (train, test)]
        self.forward_passes += 1
        started = self._took("features", started)
        result = fit_probe(
            x[0], train.labels, x[1], test.labels, len(self.tasks[name].labels),
            self.settings.l2, kind=self.settings.kind, device=self.encoder.device,
        )  # fmt: skip
        self._took("probe", started)
        return result

    def _took(self, what: str, started: float) -> float:
        now = time.perf_counter()
        self.seconds[what] += now - started
        return now
