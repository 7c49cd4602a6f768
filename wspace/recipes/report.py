"""What a merge made, measured on the written files: norms, distances, angles, NaN and Inf."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wkernels import moments
from wspace.devices import Device
from wspace.passes import sum_over_tensors
from wspace.recipes.plan import Plan
from wspace.recipes.steps import TensorPlan
from wspace.storage.checkpoints import Checkpoint
from wspace.stream import Chunk, Progress
from wspace.zoo import Zoo, ZooTensor


@dataclass(frozen=True)
class Measured:
    """A tensor of the output, or all of it; of each input, the distance to it and the angle."""

    norm: float
    max_abs: float
    non_finite: int
    distances: dict[str, float | None]
    cosines: dict[str, float | None]  # of differences from the base, where there is one

    def as_json(self) -> dict[str, Any]:
        inputs = {
            model: {"distance": distance, "cosine": self.cosines.get(model)}
            for model, distance in self.distances.items()
        }
        return {
            "norm": self.norm, "max_abs": self.max_abs, "non_finite": self.non_finite,
            "inputs": inputs,
        }  # fmt: skip


@dataclass(frozen=True)
class Report:
    total: Measured
    tensors: dict[str, Measured]
    base: str | None  # from which cosines are taken
    copied: tuple[str, ...]
    left_out: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        return {
            "cosines_are_of_differences_from": self.base,
            "total": self.total.as_json(),
            "tensors": {name: measured.as_json() for name, measured in self.tensors.items()},
            "copied": list(self.copied),
            "left_out": self.left_out,
        }

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Columns, and a row for each tensor and for all of them."""
        models = list(self.total.distances)
        columns = ["tensor", "norm", "max", "nan/inf"]
        columns += [f"{what}[{m}]" for m in models for what in ("distance", "cosine")]
        rows: list[list[Any]] = []
        for name, measured in (*self.tensors.items(), ("all", self.total)):
            row: list[Any] = [name, measured.norm, measured.max_abs, measured.non_finite]
            for model in models:
                row += [measured.distances.get(model), measured.cosines.get(model)]
            rows.append(row)
        return columns, rows


@dataclass
class _Sums:
    """Sums over elements; those of several tensors can be added."""

    square: float = 0.0
    max_abs: float = 0.0
    non_finite: int = 0
    # of each input x and the output y, from their origin: <x, x>, <x, y>, <y, y>
    products: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    def add(self, other: _Sums) -> None:
        self.square += other.square
        self.max_abs = max(self.max_abs, other.max_abs)
        self.non_finite += other.non_finite
        for model, terms in other.products.items():
            known = self.products.get(model, (0.0, 0.0, 0.0))
            xx, xy, yy = (a + b for a, b in zip(known, terms, strict=True))
            self.products[model] = (xx, xy, yy)

    def measured(self) -> Measured:
        distances: dict[str, float | None] = {}
        cosines: dict[str, float | None] = {}
        for model, (xx, xy, yy) in self.products.items():
            if not math.isfinite(xx + xy + yy):
                distances[model] = cosines[model] = None
                continue
            distances[model] = math.sqrt(max(xx + yy - 2 * xy, 0))
            cosines[model] = xy / math.sqrt(xx * yy) if xx > 0 and yy > 0 else None
        return Measured(math.sqrt(self.square), self.max_abs, self.non_finite, distances, cosines)


def report_of(
    plan: Plan,
    written: Checkpoint,
    worker: Device,
    budget: int,
    progress: Progress | None = None,
) -> Report:
    """Measure a plan's output as it was written, in one read of it and of its inputs.

    Inner products are those of the Gram matrix: differences from the base in float32, where
    ``base_model`` is one of a tensor's inputs; products and sums in float64.
    """
    base = plan.references.index(plan.recipe.base) if plan.recipe.base else None
    groups: dict[tuple[int, ...], list[TensorPlan]] = {}
    for tensor in plan.tensors:
        if tensor.step:
            groups.setdefault(tensor.rows, []).append(tensor)
    total = _Sums()
    found: dict[str, Measured] = {}
    for tensors in groups.values():
        for name, sums in _sums_of(plan, tensors, base, written, worker, budget, progress):
            total.add(sums)
            found[name] = sums.measured()
    return Report(
        total=total.measured(),
        tensors={tensor.name: found[tensor.name] for tensor in plan.tensors if tensor.step},
        base=None if base is None else str(plan.references[base]),
        copied=tuple(tensor.name for tensor in plan.tensors if tensor.step is None),
        left_out=plan.left_out,
    )


def _sums_of(
    plan: Plan,
    tensors: list[TensorPlan],
    base: int | None,
    written: Checkpoint,
    worker: Device,
    budget: int,
    progress: Progress | None,
) -> Iterator[tuple[str, _Sums]]:
    """Of tensors with the same inputs: rows of a zoo, then the output, and the base as origin."""
    rows = tensors[0].rows
    order = [k for k, row in enumerate(rows) if row != base]
    origin = [k for k, row in enumerate(rows) if row == base]
    members = (*(plan.checkpoints[rows[k]] for k in order), written)
    zoo_tensors = []
    for t in tensors:
        own, bases = [t.stored[k] for k in order], [t.stored[k] for k in origin]
        stored = (*own, written.tensors[t.name], *bases)
        zoo_tensors.append(ZooTensor(t.name, t.shape, t.numel, stored))
    first: dict[tuple[str, ...], int] = {}
    zoo_tensors.sort(key=lambda tensor: first.setdefault(tensor.group, len(first)))
    zoo = Zoo(members, plan.checkpoints[rows[origin[0]]] if origin else None,
              tuple(zoo_tensors), (), {})  # fmt: skip
    n = len(members)

    def add(chunk: Chunk, segments: np.ndarray, sums: np.ndarray) -> None:
        products = sums[:, 0, : n * n].reshape(-1, n, n).copy()
        worker.products("dot", chunk, segments, products, based=bool(origin))
        sums[:, 0, : n * n] = products.reshape(-1, n * n)
        of_output = sums[:, :, n * n :].copy()
        worker.row_moments(chunk.of_rows([n - 1]), segments, of_output, based=False)
        sums[:, :, n * n :] = of_output

    table = sum_over_tensors(
        zoo, range(len(zoo.checkpoints)), (1, n * n + moments.N), add, worker=worker, budget=budget,
        keep=True, what="report", progress=progress,
    ).per_tensor  # fmt: skip
    assert table is not None
    for tensor, (row,) in zip(zoo.tensors, table, strict=True):
        gram, power = row[: n * n].reshape(n, n), row[n * n :]
        output = float(gram[-1, -1])
        products = {
            str(plan.references[rows[k]]): (float(gram[i, i]), float(gram[i, -1]), output)
            for i, k in enumerate(order)
        }
        products |= {str(plan.references[rows[k]]): (0.0, 0.0, output) for k in origin}
        yield tensor.name, _Sums(
            float(power[moments.SUM2]), float(power[moments.MAX_ABS]),
            int(power[moments.NON_FINITE]), products,
        )  # fmt: skip
