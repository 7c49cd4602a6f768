"""What every experiment is given, and the three levels at which the paper asks its questions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from wspace.errors import WspaceError
from wspace.grams import Gram
from wspace.lab.points import Point
from wspace.lab.settings import Experiments
from wspace.modules import ResidentZoo
from wspace.zoo import Zoo


class Evaluates(Protocol):
    """Generalized loss of points: :class:`wspace.lab.evaluation.Evaluator`, or a test's own."""

    def losses(
        self, points: Sequence[Point], task_names: Sequence[str]
    ) -> Sequence[Mapping[str, Any]]: ...


@dataclass(frozen=True)
class Context:
    """A trained zoo and all that an experiment may ask of it."""

    records: Sequence[Mapping[str, Any]]  # of the finished models, in the zoo's order
    zoo: Zoo
    gram: Gram  # with the per-tensor matrices
    resident: ResidentZoo | None  # None: for experiments on the Gram matrix alone
    evaluator: Evaluates | None
    tasks: Mapping[str, Any]  # name -> Task
    settings: Experiments = field(default_factory=Experiments)
    seed: int = 0
    progress: Callable[[str], None] = lambda line: None

    @cached_property
    def task_of(self) -> list[str]:
        return [str(record["task"]) for record in self.records]

    @cached_property
    def family_of(self) -> list[str]:
        return [str(record["family"]) for record in self.records]

    @cached_property
    def family_tasks(self) -> dict[str, list[str]]:
        """Family -> its tasks that have models, in the order of the tasks."""
        family = dict(zip(self.task_of, self.family_of, strict=True))
        found: dict[str, list[str]] = {}
        for name in self.tasks:
            if name in family:
                found.setdefault(family[name], []).append(name)
        return found

    def models_of(self, *tasks: str) -> tuple[int, ...]:
        """Indices of the models that were tuned on these tasks."""
        return tuple(i for i, task in enumerate(self.task_of) if task in tasks)

    def evaluate(self, points: Sequence[Point], tasks: Sequence[str]) -> Losses:
        """Generalized loss and accuracy of every point on every task."""
        if self.evaluator is None:
            raise ValueError("this experiment needs an evaluator; the context has none")
        found = self.evaluator.losses(points, tasks)
        sizes = {name: max(len(self.tasks[name].labels), 2) for name in tasks}
        return Losses(
            loss={name: np.array([float(row[name].loss) for row in found]) for name in tasks},
            accuracy={
                name: np.array([float(row[name].accuracy) for row in found]) for name in tasks
            },
            chance={name: math.log(size) for name, size in sizes.items()},
        )


@dataclass(frozen=True)
class Losses:
    """Losses of some points on some tasks, ``[n_points]`` for each task."""

    loss: dict[str, np.ndarray]
    accuracy: dict[str, np.ndarray]
    chance: dict[str, float]  # log of the number of labels: the loss of knowing nothing

    @cached_property
    def mean(self) -> np.ndarray:
        """The unweighted mean over tasks, as in the paper."""
        return np.mean(list(self.loss.values()), axis=0)

    @cached_property
    def relative(self) -> np.ndarray:
        """Mean of ``loss / log(labels)``: no task outweighs the others by its number of labels."""
        return np.mean([loss / self.chance[name] for name, loss in self.loss.items()], axis=0)

    @cached_property
    def mean_accuracy(self) -> np.ndarray:
        return np.mean(list(self.accuracy.values()), axis=0)

    def part(self, start: int, stop: int | None) -> Losses:
        """Those of some of the points."""
        cut = slice(start, stop)
        return Losses(
            {name: values[cut] for name, values in self.loss.items()},
            {name: values[cut] for name, values in self.accuracy.items()},
            self.chance,
        )

    def table(self, shape: tuple[int, ...] | None = None) -> dict[str, Any]:
        """All numbers, as lists of the given shape."""

        def listed(values: np.ndarray) -> list:
            return (values if shape is None else values.reshape(shape)).tolist()

        return {
            "loss": listed(self.mean),
            "relative_loss": listed(self.relative),
            "accuracy": listed(self.mean_accuracy),
            "tasks": {
                name: {"loss": listed(self.loss[name]), "accuracy": listed(self.accuracy[name])}
                for name in self.loss
            },
        }


@dataclass(frozen=True)
class Level:
    """One level of granularity. Source: the paper (arXiv 2302.04863), sections 2.3 and 3."""

    name: str  # same-dataset, same-task or general
    title: str
    members: tuple[int, ...]  # In: the models fine-tuned alike
    pairs: tuple[tuple[int, int], ...]  # whose lines are walked
    pair_title: str
    tasks: tuple[str, ...]  # the loss is the mean over these
    exterior: tuple[int, ...] | None  # Ex: other models; None: the base plus random vectors

    def heading(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "pair_title": self.pair_title,
            "tasks": list(self.tasks),
        }


def levels(context: Context) -> tuple[list[Level], dict[str, str]]:
    """The levels that the zoo has models for, and why the others are left out.

    A level whose data set or family the settings name must have its models: WspaceError says
    which group has too few. One that nothing names is made of the first data sets that will do.
    """
    made = [_same_dataset(context), _same_task(context), _general(context)]
    left_out = {name: why for name, why in made if isinstance(why, str)}
    return [level for _, level in made if isinstance(level, Level)], left_out


def _same_dataset(context: Context) -> tuple[str, Level | str]:
    name, chosen = "same-dataset", context.settings.levels.dataset
    if chosen is None:
        several = [task for task in context.tasks if len(context.models_of(task)) > 1]
        if not several:
            return name, "no data set has two models; raise finetune.seeds"
        chosen = several[0]
    members = _members(context, name, chosen)
    if len(members) < 2:
        raise WspaceError(
            f"level {name}: {chosen!r} has 1 model; a spread needs at least 2, so raise "
            "finetune.seeds"
        )
    exterior = tuple(i for i in range(len(context.zoo)) if i not in members)
    pairs = tuple(itertools.combinations(members, 2))
    title = f"{len(members)} models of {chosen}"
    pairs_of = f"{chosen} with {chosen}"
    return name, Level(name, title, members, pairs, pairs_of, (chosen,), exterior)


def _same_task(context: Context) -> tuple[str, Level | str]:
    name, wanted = "same-task", context.settings.levels
    chosen = wanted.family
    if chosen is None:
        several = [family for family, tasks in context.family_tasks.items() if len(tasks) > 1]
        if not several:
            return name, "no family has models of two data sets"
        chosen = several[0]
    tasks = context.family_tasks.get(chosen, [])
    if len(tasks) < 2:
        known = ", ".join(context.family_tasks)
        raise WspaceError(
            f"level {name}: the family {chosen!r} has models of {len(tasks)} data sets; it takes "
            f"at least 2 (families here: {known})"
        )
    first, second = wanted.family_pair or tasks[:2]
    return name, Level(
        name=name,
        title=f"the {chosen} family",
        members=context.models_of(*tasks),
        pairs=_crossed(context, name, first, second),
        pair_title=f"{first} with {second}",
        tasks=tuple(task for task in tasks if task not in wanted.family_without),
        exterior=tuple(i for i, family in enumerate(context.family_of) if family != chosen),
    )


def _general(context: Context) -> tuple[str, Level | str]:
    name, wanted = "general", context.settings.levels
    families = list(context.family_tasks.values())
    if not wanted.general_pair and len(families) < 2:
        return name, "all models are of one family"
    first, second = wanted.general_pair or (families[0][0], families[1][0])
    tasks = wanted.general_tasks or tuple(task for tasks in families for task in tasks)
    members = context.models_of(*tasks)
    return name, Level(
        name=name,
        title=f"all {len(tasks)} data sets",
        members=members,
        pairs=_crossed(context, name, first, second),
        pair_title=f"{first} with {second}",
        tasks=tasks,
        exterior=None,
    )


def _members(context: Context, level: str, task: str) -> tuple[int, ...]:
    members = context.models_of(task)
    if not members:
        raise WspaceError(f"level {level}: no finished model of {task!r} is in the zoo")
    return members


def _crossed(context: Context, level: str, first: str, second: str) -> tuple[tuple[int, int], ...]:
    starts, ends = (_members(context, level, task) for task in (first, second))
    return tuple(itertools.product(starts, ends))


def balanced(context: Context, members: Sequence[int], count: int | None) -> tuple[int, ...]:
    """At most ``count`` of some models, in turn from each data set."""
    if count is None or count >= len(members):
        return tuple(members)
    seen: dict[str, int] = {}
    turns = []
    for i in members:
        task = context.task_of[i]
        turns.append((seen.get(task, 0), i))
        seen[task] = seen.get(task, 0) + 1
    return tuple(sorted(i for _, i in sorted(turns)[:count]))
