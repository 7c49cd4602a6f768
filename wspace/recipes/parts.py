"""Plans cut into parts: tensors with the same inputs, which make a zoo that is read at once.

Several plans that read the same tensors share their parts, so that those are read once for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
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
    of_plans = [[numbers[id(checkpoint)] for checkpoint in plan.checkpoints] for plan in plans]
    if len(plans) == 1:
        return _in_parts(_of_one(plans[0], of_plans[0]), checkpoints)
    collected = _Collected()
    for output, (plan, of_plan) in enumerate(zip(plans, of_plans, strict=True)):
        used_of: dict[tuple, _Used] = {}
        for tensor in plan.tensors:
            step = tensor.step
            if step is None or step.choice:
                continue
            key = id(step), tensor.rows
            if key not in used_of:
                used_of[key] = _used(step, tensor.rows, of_plan)
            collected.add(output, tensor, used_of[key])
    return _in_parts(collected.found(), checkpoints)


Found = dict[tuple[tuple[int, ...], tuple[Use, ...]], list[Shared]]
"""What parts hold, by the numbers of the checkpoints that are read, and the uses."""


def _of_one(plan: Plan, of_plan: Sequence[int]) -> Found:
    """Of a plan alone: there is nothing to look for that others read too."""
    found: Found = {}
    known: dict[tuple, tuple[_Used, tuple[np.ndarray | None], list[Shared]]] = {}
    for tensor in plan.tensors:
        step = tensor.step
        if step is None or step.choice:
            continue
        key = id(step), tensor.rows, tensor.dtype
        if key not in known:
            used = _used(step, tensor.rows, of_plan)
            given = used.factors is not None
            use = Use(0, tuple(range(len(used.rows))), step.based, tensor.dtype,
                      step.rowwise and not given, given)  # fmt: skip
            known[key] = used, (used.factors,), found.setdefault((used.rows, (use,)), [])
        used, factors, tensors = known[key]
        tensors.append(tuple.__new__(Shared, (used.of(tensor), (tensor,), factors)))
    return found


class _Collected:
    """Tensors of several plans, together where they read the same."""

    def __init__(self) -> None:
        self._inputs: dict[int, _Inputs] = {}
        self._home: dict[tuple[Entry, bool], _Inputs] = {}

    def add(self, output: int, tensor: TensorPlan, used: _Used) -> None:
        assert tensor.step is not None
        rowwise = tensor.step.rowwise and used.factors is None
        stored = used.of(tensor)
        entries = tuple(zip(used.rows, map(id, stored), strict=True))
        given = dict(zip(entries, stored, strict=True))
        inputs = self._joined(_Inputs(rowwise), given)
        inputs.stored |= given
        self._home |= dict.fromkeys([(entry, rowwise) for entry in given], inputs)
        inputs.uses.append((output, tensor, entries, used.factors))

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

    def found(self) -> Found:
        found: Found = {}
        uses_of: dict[tuple, tuple[Use, ...]] = {}
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
        return found


def _in_parts(found: Found, checkpoints: Sequence[Checkpoint]) -> list[Part]:
    parts = []
    for (rows, uses), tensors in found.items():
        groups = _groups_of(tensors)
        if len(set(groups)) > 1:
            first = {group: place for place, group in reversed(list(enumerate(groups)))}
            order = sorted(range(len(tensors)), key=lambda k: first[groups[k]])
            tensors, groups = [tensors[k] for k in order], [groups[k] for k in order]
        of_rows = tuple([checkpoints[row] for row in rows])
        parts.append(Part(of_rows, uses, tuple(tensors), tuple(groups)))
    return parts


def _groups_of(tensors: Sequence[Shared]) -> list[tuple[str, ...]]:
    """:attr:`Shared.group` of each of those that have the same rows."""
    columns = list(zip(*[tensor.stored for tensor in tensors], strict=True))
    if any(any(map(attrgetter("derived"), column)) for column in columns):
        return [tensor.group for tensor in tensors]
    dtypes = [[stored.record.dtype for stored in column] for column in columns]
    return list(zip(*dtypes, strict=True))


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


class _Used(NamedTuple):
    """Which of a step's rows have a factor that is not zero."""

    which: tuple[int, ...] | None  # None: all
    rows: tuple[int, ...]  # the numbers of their checkpoints
    factors: np.ndarray | None  # theirs; None: not known before they are read

    def of(self, tensor: TensorPlan) -> tuple[StoredTensor, ...]:
        which = self.which
        return tensor.stored if which is None else tuple([tensor.stored[k] for k in which])


def _used(step: Step, rows: tuple[int, ...], of_plan: Sequence[int]) -> _Used:
    """``rows``: of the plan; ``of_plan``: the number of each of its checkpoints."""
    which, factors = None, step.factors
    if factors is not None:
        used = np.flatnonzero(factors).tolist()
        if not used and not step.based:
            used = [0]  # zeros of the right shape
        if len(used) < len(factors):
            which = (*used, *([len(factors)] if step.based else []))
        factors = factors[used]
    read = rows if which is None else [rows[k] for k in which]
    return _Used(which, tuple([of_plan[row] for row in read]), factors)


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
