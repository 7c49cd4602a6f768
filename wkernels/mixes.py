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
    used = weights != 0
    single = used.sum(axis=1) == 1
    which = used.argmax(axis=1) if weights.shape[1] else np.zeros(len(weights), np.int64)
    one = single & (weights[np.arange(len(weights)), which] == 1) if weights.size else single
    copied = np.where(one, which, MIXED)
    if has_base:
        copied = np.where(used.any(axis=1), copied, BASE)
    return copied.astype(np.int64)
