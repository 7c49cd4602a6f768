"""The tensors of plans whose methods choose elements: their passes, and what those cost.

Plans that read the same tensors of the same models share their works, so that those are read once
for all. A plan that reads some of another's models is read with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import NamedTuple

from wspace.devices import Device
from wspace.elementwise.choices import Choice, ColumnSums, Largest
from wspace.elementwise.lanes import Count, at_once, cost_of_lanes, lanes_of
from wspace.elementwise.run import Run
from wspace.elementwise.scores import unit_of
from wspace.elementwise.whole import wholes_of
from wspace.elementwise.work import Cost, Use, Work, of_whole_model
from wspace.recipes.plan import Plan
from wspace.recipes.steps import TensorPlan
from wspace.sinks import FileSink
from wspace.storage.checkpoints import Checkpoint, StoredTensor
from wspace.storage.writing import CheckpointWriter
from wspace.stream import Progress
from wspace.zoo import Zoo, ZooTensor

Entry = tuple[int, int]
"""A checkpoint's number, and the identity of a tensor of it."""


class _Made(NamedTuple):
    """A tensor of an output."""

    output: int
    tensor: TensorPlan
    choice: Choice
    entries: tuple[Entry, ...]  # its models, and diagonals


@dataclass(eq=False)
class _Inputs:
    """Stored tensors that are read together, and what is made of them."""

    stored: dict[Entry, StoredTensor]
    made: list[_Made] = field(default_factory=list)


def works_of(plans: Sequence[Plan], seed: int = 0) -> list[Work]:
    """Tensors of the same models that are written in the same types, by group."""
    checkpoints: list[Checkpoint] = []
    found: dict[tuple, list[_Inputs]] = {}
    for inputs in _inputs_of(plans, checkpoints):
        place = {entry: k for k, entry in enumerate(inputs.stored)}
        uses = [
            (made.output, tuple([place[entry] for entry in made.entries]), made.tensor.rows,
             made.tensor.dtype)
            for made in inputs.made
        ]  # fmt: skip
        read = tuple([number for number, _ in inputs.stored])
        found.setdefault((read, tuple(uses)), []).append(inputs)
    works = []
    for (read, uses), content in found.items():
        tensors = []
        for inputs in content:
            first = inputs.made[0].tensor
            stored = tuple(inputs.stored.values())
            tensors.append(ZooTensor(first.name, first.shape, first.numel, stored))
        groups: dict[tuple[str, ...], int] = {}
        places = [groups.setdefault(tensor.group, len(groups)) for tensor in tensors]
        order = sorted(range(len(tensors)), key=places.__getitem__)
        rows = tuple([checkpoints[number] for number in read])
        zoo = Zoo(rows, None, tuple([tensors[k] for k in order]), (), {})
        ordered = [content[k].made for k in order]
        works.append(
            Work(
                zoo,
                tuple(
                    Use(
                        output, which, tuple([made[k].choice for made in ordered]), rows[:-1],
                        tuple([made[k].tensor.name for made in ordered]), dtype,
                    )
                    for k, (output, which, rows, dtype) in enumerate(uses)
                ),
                seed,
            )
        )  # fmt: skip
    return works


def _inputs_of(plans: Sequence[Plan], checkpoints: list[Checkpoint]) -> list[_Inputs]:
    """What is read together; adds to the checkpoints, whose numbers it has."""
    numbers: dict[int, int] = {}

    def number(checkpoint: Checkpoint) -> int:
        if id(checkpoint) not in numbers:
            numbers[id(checkpoint)] = len(checkpoints)
            checkpoints.append(checkpoint)
        return numbers[id(checkpoint)]

    single: list[_Inputs] = []
    for output, plan in enumerate(plans):
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for tensor in plan.tensors:
            if not tensor.step or not tensor.step.choice:
                continue
            if tensor.rows not in rows_of:
                read = [plan.checkpoints[row] for row in tensor.rows]
                if tensor.diagonals:
                    read += [own for row in tensor.rows if (own := plan.diagonals[row])]
                rows_of[tensor.rows] = [number(checkpoint) for checkpoint in read]
            stored = tensor.stored + tensor.diagonals
            entries = tuple(zip(rows_of[tensor.rows], map(id, stored), strict=True))
            made = _Made(output, tensor, tensor.step.choice, entries)
            single.append(_Inputs(dict(zip(entries, stored, strict=True)), [made]))
    return single if len(plans) == 1 else _joined(single)


def _joined(single: list[_Inputs]) -> list[_Inputs]:
    """Those that read the same, or some of what others read, and need it cut alike."""
    found: list[_Inputs] = []
    homes: dict[tuple, list[_Inputs]] = {}
    kinds: dict[int, tuple[bool, bool]] = {}
    for inputs in sorted(single, key=lambda one: -len(one.stored)):
        (made,) = inputs.made
        choice = made.choice
        if id(choice) not in kinds:
            kinds[id(choice)] = of_whole_model(choice), isinstance(choice.join, ColumnSums)
        kind = *kinds[id(choice)], unit_of(choice, made.tensor.shape)
        homes_of_it = homes.get((made.entries[0], kind), ())
        home = next((h for h in homes_of_it if h.stored.keys() >= inputs.stored.keys()), None)
        if home:
            home.made.append(made)
            continue
        found.append(inputs)
        for entry in inputs.stored:
            homes.setdefault((entry, kind), []).append(inputs)
    return found


def cost_of_chosen(plans: Sequence[Plan], worker: Device, budget: int) -> Cost:
    """Bytes read from files, and held."""
    return cost_of_lanes(lanes_of(works_of(plans), worker, budget))


class ChosenTensors:
    """The passes of all works of some plans, with one progress."""

    def __init__(
        self,
        plans: Sequence[Plan],
        worker: Device,
        budget: int,
        *,
        seed: int,
        allow_non_finite: bool,
    ) -> None:
        works = works_of(plans, seed)
        self._lanes = [
            [Run(work, lane.worker, lane.budget, allow_non_finite) for work in lane.works]
            for lane in lanes_of(works, worker, budget)
        ]
        self._whole: dict[int, Sequence[float]] = {}  # densities of outputs that have thresholds
        for use in (use for work in works for use in work.uses):
            keep = use.choices[0].keep
            if isinstance(keep, Largest) and keep.whole:
                self._whole[use.output] = keep.densities

    @property
    def nbytes(self) -> int:
        """That will be read, of the stream."""
        return sum(run.nbytes for run in chain(*self._lanes))

    def write(self, writers: Sequence[CheckpointWriter], progress: Progress) -> None:
        """A writer for each plan."""
        done, total = 0, self.nbytes

        def follow(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            progress(done, total)

        def sinks_of(run: Run) -> list[FileSink]:
            return [
                FileSink([([(name, 0) for name in use.names], writers[use.output])])
                for use in run.work.uses
            ]

        if all(run.has(sinks_of(run)) for run in chain(*self._lanes)):
            return
        wholes = wholes_of(self._lanes, self._whole, follow) if self._whole else {}

        def written(runs: Sequence[Run], progress: Count) -> None:
            for run in runs:
                own = [wholes.get(use.output) for use in run.work.uses]
                run.write(sinks_of(run), progress, own)

        at_once([partial(written, runs) for runs in self._lanes], follow)
