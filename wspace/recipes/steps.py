"""The tensors of an output, as data: what each is made of, and how."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from wspace.elementwise.choices import Choice
from wspace.recipes.numbers import Numbers
from wspace.storage.checkpoints import StoredTensor


class Step(NamedTuple):
    """What is done to a tensor; tensors with the same numbers share one."""

    numbers: Numbers
    factors: np.ndarray | None  # of the rows without the origin; None: from the Gram matrix
    based: bool  # the last row is the origin
    rowwise: bool  # each row of a matrix has factors of its own
    choice: Choice | None = None  # of elements, where there are no factors


COPY = Step(Numbers({}, {}), np.array([1.0]), based=False, rowwise=False)
"""Of a tensor that one model alone has, where the method needs several."""


class TensorPlan(NamedTuple):
    """One tensor of the output."""

    name: str
    shape: tuple[int, ...]
    numel: int
    dtype: str  # as it is written: a key of headers.BITS
    rows: tuple[int, ...]  # of Plan.checkpoints; the base last where it is the origin
    stored: tuple[StoredTensor, ...]  # one for each row
    inputs: tuple[str, ...] | None  # what the rows' models call it, if not ``name``
    step: Step | None  # None: copied, as it cannot be averaged
    diagonals: tuple[StoredTensor, ...] = ()  # one for each row, where the choice needs them
