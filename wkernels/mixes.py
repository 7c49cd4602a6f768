"""Which rows of a mixing matrix are plain copies of one input, bit for bit."""

from __future__ import annotations

import numpy as np

MIXED = -2
BASE = -1


def copied_rows(weights: np.ndarray, *, has_base: bool) -> np.ndarray:
    """For each mix, the input that it equals: an index, ``BASE``, or ``MIXED`` if it is computed.

    A row with a single non-zero weight of 1 is that model; a row of zeros, with a base, is it.
    Computing them would be wrong in the last bits: ``base + 1 * (x - base)`` rounds twice, and
    ``-0 + 0`` is ``+0``.

    ``weights`` is ``[n_mixes, n_models]``; returns int64 ``[n_mixes]``.
    """
    copied = []
    for row in weights.tolist():  # a few numbers, for each chunk: numpy would take longer
        used = [k for k, weight in enumerate(row) if weight]
        if len(used) == 1 and row[used[0]] == 1:
            copied.append(used[0])
        else:
            copied.append(BASE if has_base and not used else MIXED)
    return np.array(copied, np.int64)
