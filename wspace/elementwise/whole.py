"""Statistics of whole models: one threshold for all tensors, and the sign of most elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wkernels.masks import NOTHING
from wkernels.selection import Selection
from wspace.elementwise.run import Count, Run, Whole
from wspace.profiling import PASS, stage


@stage(PASS)
def whole_of(runs: Sequence[Run], densities: Sequence[float], progress: Count) -> Whole:
    """The thresholds of each model's largest differences, and the sign that most elements elect.

    All tensors of all runs together are one vector of ``P`` elements for each model. Its threshold
    is the ``int(density * P) + 1``-th largest magnitude; all that are as large are kept.
    """
    size = sum(run.numel for run in runs)
    counts = np.array([[int(density * size) + 1 for density in densities]], np.int64)
    found = Selection(counts, np.array([size]), wide=any(run.wide for run in runs))
    for shift, width in found.digits():
        table = np.zeros((1, len(densities), 1 << width), np.int64)
        for run in runs:
            for view in run.views(progress):
                prefix = np.repeat(found.prefix, len(view.slots), axis=0)
                table[0] += run.kernels.digit_counts(view, prefix, shift, width).sum(axis=0)
        found.narrow(table, width)
    bits = np.where(found.all, NOTHING, found.prefix)[0]
    whole = Whole(bits, 1.0)
    balance = 0.0
    for run in runs:
        for view, tables in run.prepared(whole, progress):
            assert tables.joint is not None
            mask, joint = tables.mask.of(view.slots), tables.joint.of(view.slots)
            balance += run.kernels.balance(view, mask, joint)
    return whole._replace(undecided=float(np.sign(balance)))
