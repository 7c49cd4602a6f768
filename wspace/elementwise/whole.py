"""Statistics of whole models: one threshold for all tensors, and the sign of most elements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from wkernels.masks import NOTHING
from wkernels.selection import Selection
from wspace.elementwise.choices import Join
from wspace.elementwise.preparing import Whole
from wspace.elementwise.run import Count, Run
from wspace.profiling import PASS, stage


class _Found(NamedTuple):
    """What is found of one output's models, digit by digit."""

    selection: Selection
    digits: Iterator[tuple[int, int]]


@stage(PASS)
def wholes_of(
    runs: Sequence[Run], densities: Mapping[int, Sequence[float]], progress: Count
) -> dict[int, Whole]:
    """The thresholds of each model's largest differences, and the sign that most elements elect.

    All tensors of an output, in all runs, are one vector of ``P`` elements for each model. Its
    threshold is the ``int(density * P) + 1``-th largest magnitude; all that are as large are kept.
    ``densities``: of the outputs that have such thresholds, by their numbers.
    """
    found = {output: _begin(runs, output, own) for output, own in densities.items()}
    while now := {k: d for k, of in found.items() if (d := next(of.digits, None))}:
        tables = {
            k: np.zeros((1, len(densities[k]), 1 << width), np.int64)
            for k, (_, width) in now.items()
        }
        for run in runs:
            outputs = [use.output for use in run.work.uses]
            uses = [use for use, output in enumerate(outputs) if output in now]
            for use, view in run.views(uses, progress) if uses else ():
                k = outputs[use]
                prefix = np.repeat(found[k].selection.prefix, len(view.slots), axis=0)
                tables[k][0] += run.kernels.digit_counts(view, prefix, *now[k]).sum(axis=0)
        for k, (_, width) in now.items():
            found[k].selection.narrow(tables[k], width)
    wholes = {
        k: Whole(np.where(of.selection.all, NOTHING, of.selection.prefix)[0], 1.0)
        for k, of in found.items()
    }
    balances = dict.fromkeys(wholes, 0.0)
    for run in runs:
        of_uses = [wholes.get(use.output) for use in run.work.uses]
        uses = [use for use, whole in enumerate(of_uses) if whole]
        for use, (view, tables, choice) in run.prepared(uses, of_uses, progress) if uses else ():
            assert isinstance(choice.join, Join)
            mask, joint = tables.mask.of(view.slots), tables.joint(choice.join).of(view.slots)
            balances[run.work.uses[use].output] += run.kernels.balance(view, mask, joint)
    return {k: whole._replace(undecided=float(np.sign(balances[k]))) for k, whole in wholes.items()}


def _begin(runs: Sequence[Run], output: int, densities: Sequence[float]) -> _Found:
    own = [(run.work, use) for run in runs for use in run.work.uses if use.output == output]
    size = sum(work.zoo.numel for work, _ in own)
    wide = any(work.wide(use, t) for work, use in own for t in range(len(work.zoo.tensors)))
    counts = np.array([[int(density * size) + 1 for density in densities]], np.int64)
    selection = Selection(counts, np.array([size]), wide=wide)
    return _Found(selection, selection.digits())
