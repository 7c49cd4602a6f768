"""Statistics of whole models: one threshold for all tensors, and the sign of most elements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np

from wkernels.masks import NOTHING
from wkernels.selection import Selection
from wspace.elementwise.choices import Join
from wspace.elementwise.lanes import Count, at_once
from wspace.elementwise.preparing import Whole
from wspace.elementwise.run import Run


class _Found(NamedTuple):
    """What is found of one output's models, digit by digit."""

    selection: Selection
    digits: Iterator[tuple[int, int]]


def wholes_of(
    lanes: Sequence[Sequence[Run]], densities: Mapping[int, Sequence[float]], progress: Count
) -> dict[int, Whole]:
    """The thresholds of each model's largest differences, and the sign that most elements elect.

    All tensors of an output, in the runs of all lanes, are one vector of ``P`` elements for each
    model. Its threshold is the ``int(density * P) + 1``-th largest magnitude; all that are as large
    are kept. ``densities``: of the outputs that have such thresholds, by their numbers.
    """
    found = {output: _begin([*chain(*lanes)], output, own) for output, own in densities.items()}
    while now := {k: d for k, of in found.items() if (d := next(of.digits, None))}:
        counts = at_once([partial(_counted, runs, found, now) for runs in lanes], progress)
        for k, (_, width) in now.items():
            found[k].selection.narrow(np.sum([of_lane[k] for of_lane in counts], axis=0), width)
    wholes = {
        k: Whole(np.where(of.selection.all, NOTHING, of.selection.prefix)[0], 1.0)
        for k, of in found.items()
    }
    balances = at_once([partial(_balances, runs, wholes) for runs in lanes], progress)
    return {
        k: whole._replace(undecided=float(np.sign(sum(of_lane[k] for of_lane in balances))))
        for k, whole in wholes.items()
    }


def _counted(
    runs: Sequence[Run],
    found: Mapping[int, _Found],
    now: Mapping[int, tuple[int, int]],
    progress: Count,
) -> dict[int, np.ndarray]:
    """Digits of each output's models, in some runs."""
    tables = {
        k: np.zeros((1, found[k].selection.prefix.size, 1 << width), np.int64)
        for k, (_, width) in now.items()
    }
    for run in runs:
        outputs = [use.output for use in run.work.uses]
        uses = [use for use, output in enumerate(outputs) if output in now]
        for use, view in run.views(uses, progress) if uses else ():
            k = outputs[use]
            prefix = np.repeat(found[k].selection.prefix, len(view.slots), axis=0)
            tables[k][0] += run.kernels.digit_counts(view, prefix, *now[k]).sum(axis=0)
    return tables


def _balances(
    runs: Sequence[Run], wholes: Mapping[int, Whole], progress: Count
) -> dict[int, float]:
    """Sums of each output's elected signs, in some runs."""
    balances = dict.fromkeys(wholes, 0.0)
    for run in runs:
        of_uses = [wholes.get(use.output) for use in run.work.uses]
        uses = [use for use, whole in enumerate(of_uses) if whole]
        for use, (view, tables, choice) in run.prepared(uses, of_uses, progress) if uses else ():
            assert isinstance(choice.join, Join)
            mask, joint = tables.mask.of(view.slots), tables.joint(choice.join).of(view.slots)
            balances[run.work.uses[use].output] += run.kernels.balance(view, mask, joint)
    return balances


def _begin(runs: Sequence[Run], output: int, densities: Sequence[float]) -> _Found:
    own = [(run.work, use) for run in runs for use in run.work.uses if use.output == output]
    size = sum(work.zoo.numel for work, _ in own)
    wide = any(work.wide(use, t) for work, use in own for t in range(len(work.zoo.tensors)))
    counts = np.array([[int(density * size) + 1 for density in densities]], np.int64)
    selection = Selection(counts, np.array([size]), wide=wide)
    return _Found(selection, selection.digits())
