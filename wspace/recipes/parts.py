"""Plans cut into parts: tensors with the same inputs, which make a zoo that is read at once.

Several plans that read the same tensors share their parts, so that those are read once for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np

from wspace.recipes.plan import Plan
from wspace.recipes.steps import Step, TensorPlan
from wspace.storage.checkpoints import Checkpoint, StoredTensor
from wspace.storage.headers import BITS
from wspace.zoo import Zoo, ZooTensor

MATRIX_ROWS = 1 << 14
"""Rows of matrices that are treated as tensors at a time, where each has factors of its own."""


class Use(NamedTuple):
    """What one output makes of a part: its tensors are mixes of some of the part's rows."""

    output: int  # which of the plans
    which: tuple[int, ...]  # of Part.rows; the origin last if ``based``
    based: bool
    dtype: str
    rowwise: bool
    known: bool  # whether the factors are known before anything is read

    @property
    def n(self) -> int:
        """Rows that have a factor."""
        return len(self.which) - self.based


class Shared(NamedTuple):
    """One tensor of each of a part's rows, and what each use makes of them."""

    stored: tuple[StoredTensor, ...]
    made: tuple[TensorPlan, ...]
    factors: tuple[np.ndarray | None, ...]  # None: from the Gram matrix

    @property
    def numel(self) -> int:
        return self.made[0].numel

    @property
    def group(self) -> tuple[str, ...]:
        """That of ``across``."""
        dtypes = [stored.record.dtype for stored in self.stored]
        if [stored for stored in self.stored if stored.derived]:
            dtypes += [stored.written for stored in self.stored]
        return tuple(dtypes)

    @property
    def across(self) -> ZooTensor:
        """It as a zoo's tensor."""
        return ZooTensor(self.made[0].name, self.made[0].shape, self.numel, self.stored)


@dataclass(frozen=True)
class Part:
    """Tensors that are read from the same checkpoints and used alike."""

    rows: tuple[Checkpoint, ...]
    uses: tuple[Use, ...]
    tensors: tuple[Shared, ...]  # by group, as a zoo has them
    groups: tuple[tuple[str, ...], ...]  # of each tensor

    @property
    def asked(self) -> tuple[int, ...]:
        """The rows whose Gram matrices are needed."""
        return tuple(sorted({row for use in self.uses if not use.known for row in use.which}))

    @property
    def rowwise(self) -> bool:
        return self.uses[0].rowwise


Entry = tuple[int, int]
"""A checkpoint's number, and the identity of a tensor of it."""


@dataclass(eq=False)
class _Inputs:
    """Stored tensors that are read together, and their uses."""

    rowwise: bool
    stored: dict[Entry, StoredTensor] = field(default_factory=dict)
    uses: list[tuple[int, TensorPlan, tuple[Entry, ...], np.ndarray | None]] = field(
        default_factory=list
    )


def parts_of(plans: Sequence[Plan]) -> list[Part]:
    """The plans' mixed tensors in parts; models whose factor is zero are not read."""
    numbers: dict[int, int] = {}
    checkpoints: list[Checkpoint] = []
    for plan in plans:
        for checkpoint in plan.checkpoints:
            if id(checkpoint) not in numbers:
                numbers[id(checkpoint)] = len(checkpoints)
                checkpoints.append(checkpoint)
    collected = _Collected(share=len(plans) > 1)
    for output, plan in enumerate(plans):
        of_plan = [numbers[id(checkpoint)] for checkpoint in plan.checkpoints]
        used_of: dict[tuple, tuple[tuple[int, ...] | None, tuple[int, ...], np.ndarray | None]] = {}
        for tensor in plan.tensors:
            step = tensor.step
            if step is None or step.choice:
                continue
            key = id(step), tensor.rows
            if key not in used_of:
                which, factors = _used(step)
                if which is None or len(which) == len(tensor.rows):
                    which = None
                rows = tensor.rows if which is None else [tensor.rows[k] for k in which]
                used_of[key] = which, tuple([of_plan[row] for row in rows]), factors
            which, rows, factors = used_of[key]
            stored = tensor.stored if which is None else tuple([tensor.stored[k] for k in which])
            collected.add(output, tensor, rows, stored, factors)
    return collected.parts(checkpoints)


class _Collected:
    def __init__(self, *, share: bool) -> None:
        self._share = share
        self._alone: dict[tuple, list[Shared]] = {}  # of one plan: nothing to look for
        self._inputs: dict[int, _Inputs] = {}
        self._home: dict[tuple[Entry, bool], _Inputs] = {}

    def add(
        self,
        output: int,
        tensor: TensorPlan,
        rows: tuple[int, ...],
        stored: tuple[StoredTensor, ...],
        factors: np.ndarray | None,
    ) -> None:
        assert tensor.step is not None
        rowwise = tensor.step.rowwise and factors is None
        if not self._share:
            key = (output, rows, tensor.dtype, tensor.step.based, rowwise, factors is None)
            self._alone.setdefault(key, []).append(Shared(stored, (tensor,), (factors,)))
            return
        entries = tuple(zip(rows, map(id, stored), strict=True))
        given = dict(zip(entries, stored, strict=True))
        inputs = self._joined(_Inputs(rowwise), given)
        inputs.stored |= given
        self._home |= dict.fromkeys([(entry, rowwise) for entry in given], inputs)
        inputs.uses.append((output, tensor, entries, factors))

    def _joined(self, new: _Inputs, given: dict[Entry, StoredTensor]) -> _Inputs:
        """What is read together with these already, where checkpoints give the same tensors."""
        self._inputs[id(new)] = new
        for entry in given:
            other = self._home.get((entry, new.rowwise))
            if other is None or other is new:
                continue
            known = {*new.stored, *given}
            if _of_same_rows(known, other.stored) != _of_same_rows(other.stored, known):
                continue
            del self._inputs[id(new)]
            other.stored |= new.stored
            self._home |= dict.fromkeys([(known, new.rowwise) for known in new.stored], other)
            other.uses += new.uses
            new = other
        return new

    def parts(self, checkpoints: Sequence[Checkpoint]) -> list[Part]:
        found: dict[tuple, list[Shared]] = {}
        uses_of: dict[tuple, tuple[Use, ...]] = {}
        for (output, rows, dtype, based, rowwise, measured), tensors in self._alone.items():
            use = Use(output, tuple(range(len(rows))), based, dtype, rowwise, not measured)
            found[rows, (use,)] = tensors
        for inputs in self._inputs.values():
            rows = tuple([row for row, _ in inputs.stored])
            place = {entry: k for k, entry in enumerate(inputs.stored)}
            key = (rows, inputs.rowwise, tuple([_signature(use, place) for use in inputs.uses]))
            if key not in uses_of:
                uses_of[key] = tuple(
                    [
                        Use(output, which, based, dtype, inputs.rowwise, known)
                        for output, which, based, dtype, known in key[2]
                    ]
                )
            uses = uses_of[key]
            shared = Shared(
                tuple(inputs.stored.values()),
                tuple([tensor for _, tensor, _, _ in inputs.uses]),
                tuple([factors for _, _, _, factors in inputs.uses]),
            )
            found.setdefault((rows, uses), []).append(shared)
        parts = []
        for (rows, uses), tensors in found.items():
            groups = [tensor.group for tensor in tensors]
            first = {group: place for place, group in reversed(list(enumerate(groups)))}
            if len(first) > 1:
                order = sorted(range(len(tensors)), key=lambda k: first[groups[k]])
                tensors, groups = [tensors[k] for k in order], [groups[k] for k in order]
            of_rows = tuple([checkpoints[row] for row in rows])
            parts.append(Part(of_rows, uses, tuple(tensors), tuple(groups)))
        return parts


def _of_same_rows(entries: Iterable[Entry], others: Iterable[Entry]) -> set[Entry]:
    """Those of checkpoints that the others are of, too."""
    rows = {row for row, _ in others}
    return {entry for entry in entries if entry[0] in rows}


def _signature(
    use: tuple[int, TensorPlan, tuple[Entry, ...], np.ndarray | None], place: dict[Entry, int]
) -> tuple[int, tuple[int, ...], bool, str, bool]:
    """What a Use is made of."""
    output, tensor, entries, factors = use
    assert tensor.step is not None
    which = tuple([place[entry] for entry in entries])
    return output, which, tensor.step.based, tensor.dtype, factors is not None


def _used(step: Step) -> tuple[tuple[int, ...] | None, np.ndarray | None]:
    """Which rows have a factor that is not zero, and their factors; None where none is known."""
    factors = step.factors
    if factors is None:
        return None, None
    used = np.flatnonzero(factors).tolist()
    if not used and not step.based:
        used = [0]  # zeros of the right shape
    return (*used, *([len(factors)] if step.based else [])), factors[used]


class Batch(NamedTuple):
    """A part's tensors as a zoo; of row-wise ones, some of their rows, each as a tensor."""

    zoo: Zoo
    tensors: Sequence[Shared]  # one for each of the zoo's
    starts: Sequence[int]  # the element of it at which the zoo's starts


def batches_of(part: Part) -> Iterator[Batch]:
    if not part.rowwise:
        tensors = tuple([tensor.across for tensor in part.tensors])
        yield Batch(Zoo(part.rows, None, tensors, (), {}), part.tensors, [0] * len(tensors))
        return
    rows = ((tensor, k) for tensor in part.tensors for k in range(_n_rows(tensor.made[0])))
    while batch := list(islice(rows, MATRIX_ROWS)):
        tensors = tuple(_matrix_row(tensor, k) for tensor, k in batch)
        starts = [k * tensor.made[0].shape[-1] for tensor, k in batch]
        yield Batch(Zoo(part.rows, None, tensors, (), {}), [tensor for tensor, _ in batch], starts)


def _n_rows(tensor: TensorPlan) -> int:
    return tensor.numel // tensor.shape[-1] if tensor.numel else 0


def _matrix_row(tensor: Shared, k: int) -> ZooTensor:
    """Row ``k`` along the last axis, as a tensor of its own."""
    length = tensor.made[0].shape[-1]
    stored = []
    for whole in tensor.stored:
        record, memory = whole.record, whole.memory
        nbytes = length * BITS[record.dtype] // 8
        start = k * nbytes
        if memory is not None:
            memory = memory[start : start + nbytes]
        record = record._replace(shape=(length,), start=record.start + start, nbytes=nbytes)
        stored.append(whole._replace(record=record, memory=memory))
    return ZooTensor(tensor.made[0].name, (length,), length, tuple(stored))


def copies_of(plan: Plan) -> Iterator[Zoo]:
    """Zoos of the tensors that are copied, one for each set of models that has them."""
    found: dict[tuple[int, ...], list[ZooTensor]] = {}
    for t in plan.tensors:
        if t.step is None:
            found.setdefault(t.rows, []).append(ZooTensor(t.name, t.shape, t.numel, t.stored))
    for rows, tensors in found.items():
        yield Zoo(tuple(plan.checkpoints[row] for row in rows), None, (), tuple(tensors), {})
