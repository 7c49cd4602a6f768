"""A zoo whose models lie around the weights that are best for their data sets, and its losses.

Nothing is trained and no text is read, so that what every experiment must find is known: the loss
of a task at weights theta is ``|theta - best|^2 / |best - base|^2``.
"""

from dataclasses import dataclass

import torch

import wspace as ws
from tests.zoos import flat, save, state
from wspace.lab.experiments.context import Context
from wspace.lab.points import apply
from wspace.lab.settings import Experiments

SHAPES = {
    "embeddings.word.weight": (40, 8),
    "layer.0.dense.weight": (24, 16),
    "layer.0.dense.bias": (24,),
    "layer.1.dense.weight": (16, 24),
    "layer.1.dense.bias": (16,),
    "norm.weight": (16,),
}
FAMILIES = {"snli": "nli", "mnli": "nli", "sst2": "sentiment", "imdb": "sentiment", "trec": "topic"}
NOISE = 0.5  # of a model, beside the way from the base to its data set's best


@dataclass(frozen=True)
class Task:
    name: str
    labels: tuple = ("no", "yes")


@dataclass(frozen=True)
class Result:
    loss: float
    accuracy: float


class Distance:
    """Loss by the squared distance from the weights that are best for a task."""

    def __init__(self, resident, best, base):
        self.resident, self.best, self.base = resident, best, base
        self.evaluated = 0

    def losses(self, points, task_names):
        found = []
        for point in points:
            theta = flat(apply(point, self.resident))
            row = {}
            for name in task_names:
                best = self.best[name]
                loss = float((theta - best).square().sum() / (best - self.base).square().sum())
                row[name] = Result(loss, 1 / (1 + loss))
                self.evaluated += 1
            found.append(row)
        return found


def moved(origin, seed, step):
    return state(seed, shapes=SHAPES, like=origin, step=step)


def lab_context(root, *, families=FAMILIES, seeds=3, settings=None, **changes):
    """A context over a zoo on disk: ``seeds`` models of each data set."""
    base = state(0, shapes=SHAPES)
    save(root / "base", base)
    best, records, folders = {}, [], []
    for number, (task, family) in enumerate(families.items(), 1):
        kin = moved(base, 1000 + sorted(set(families.values())).index(family), 0.05)
        best[task] = moved(kin, number, 0.05)
        for seed in range(seeds):
            folder = save(root / "models" / f"{task}-{seed}",
                          moved(best[task], 100 * number + seed, 0.05 * NOISE))  # fmt: skip
            folders.append(folder)
            records.append({"name": folder.name, "task": task, "family": family, "seed": seed,
                            "base_rate": 0.5, "test_accuracy": 0.8,
                            "validation_accuracy": 0.8})  # fmt: skip
    zoo = ws.open_zoo(folders, base=root / "base")
    resident = ws.ResidentZoo(zoo)
    named = {name: flat(tensors) for name, tensors in best.items()}
    content = {
        "records": records, "zoo": zoo, "gram": ws.gram(zoo), "resident": resident,
        "evaluator": Distance(resident, named, flat(base)),
        "tasks": {name: Task(name) for name in families},
        "settings": settings or Experiments(),
    }  # fmt: skip
    return Context(**content | changes)


def theta(context, weights):
    """A mix in float64, by hand: ``[n_parameters]``."""
    rows = [flat(ws.ResidentZoo(context.zoo).mix([row])[0]) for row in torch.eye(len(weights))]
    (base,) = ws.ResidentZoo(context.zoo).mix([[0.0] * len(weights)])
    start = flat(base)
    return start + sum(w * (row - start) for w, row in zip(weights, rows, strict=True))
