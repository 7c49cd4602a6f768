"""The tensors of a plan whose method chooses elements: their passes, and what those cost."""

from __future__ import annotations

from wspace.devices import Device
from wspace.elementwise.choices import Choice, Largest
from wspace.elementwise.run import Run
from wspace.elementwise.whole import whole_of
from wspace.elementwise.work import Cost, Work, cost_of
from wspace.recipes.plan import Plan
from wspace.recipes.steps import TensorPlan
from wspace.sinks import FileSink
from wspace.storage.writing import CheckpointWriter
from wspace.stream import Progress
from wspace.zoo import Zoo, ZooTensor


def works_of(plan: Plan, seed: int = 0) -> list[Work]:
    """Tensors of the same models that are written in the same type, by group."""
    found: dict[tuple[tuple[int, ...], str], list[tuple[TensorPlan, Choice]]] = {}
    for tensor in plan.tensors:
        if tensor.step and tensor.step.choice:
            key = (tensor.rows, tensor.dtype)
            found.setdefault(key, []).append((tensor, tensor.step.choice))
    works = []
    for (rows, dtype), content in found.items():
        across = [
            (
                ZooTensor(
                    tensor.name, tensor.shape, tensor.numel, tensor.stored + tensor.diagonals
                ),
                choice,
            )
            for tensor, choice in content
        ]
        first: dict[tuple[str, ...], int] = {}
        across.sort(key=lambda pair: first.setdefault(pair[0].group, len(first)))
        read = [plan.checkpoints[row] for row in rows]
        read += [own for row in rows if plan.diagonals and (own := plan.diagonals[row])]
        *members, base = read
        zoo = Zoo(tuple(members), base, tuple([tensor for tensor, _ in across]), (), {})
        choices = tuple([choice for _, choice in across])
        works.append(Work(zoo, choices, rows[:-1], dtype, seed))
    return works


def cost_of_chosen(plan: Plan, worker: Device, budget: int) -> Cost:
    """Bytes read from files, and held."""
    costs = [cost_of(work, worker, budget) for work in works_of(plan)]
    return Cost(
        sum(cost.read_bytes for cost in costs), max((cost.held_bytes for cost in costs), default=0)
    )


class ChosenTensors:
    """The passes of one plan."""

    def __init__(
        self, plan: Plan, worker: Device, budget: int, *, seed: int, allow_non_finite: bool
    ) -> None:
        self._plan = plan
        works = works_of(plan, seed)
        self._runs = [Run(work, worker, budget, allow_non_finite) for work in works]
        choices = [choice for work in works for choice in work.choices]
        self._whole = next(
            (c.densities for c in choices if isinstance(c.keep, Largest) and c.keep.whole), None
        )

    @property
    def nbytes(self) -> int:
        """That will be read, of the stream."""
        extra = 4 if self._whole else 0  # digits and signs of whole models
        return sum(run.nbytes + extra * run.read_once for run in self._runs)

    def write(self, writer: CheckpointWriter, progress: Progress) -> None:
        done = 0

        def follow(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            progress(done, self.nbytes)

        sinks = []
        for run in self._runs:
            places = [(tensor.name, 0) for tensor in run.work.zoo.tensors]
            sinks.append(FileSink([(places, writer)]))
        if all(run.has(sink) for run, sink in zip(self._runs, sinks, strict=True)):
            return
        whole = None
        if self._whole is not None:
            whole = whole_of(self._runs, self._whole, follow)
        for run, sink in zip(self._runs, sinks, strict=True):
            run.write(sink, follow, whole)
