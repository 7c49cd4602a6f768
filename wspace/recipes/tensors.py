"""The output's tensors: inputs found by name and compared, and the numbers of each."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Sequence

from wspace.recipes.diagonals import Diagonals
from wspace.recipes.grammar import Recipe
from wspace.recipes.lacking import Layers, tied_embedding
from wspace.recipes.methods import Method
from wspace.recipes.numbers import Numbers
from wspace.recipes.problems import Problems
from wspace.recipes.references import ModelReference
from wspace.recipes.scopes import Scope
from wspace.recipes.shapes import differing_shapes
from wspace.recipes.steps import COPY, Step, TensorPlan
from wspace.storage.checkpoints import Checkpoint, StoredTensor
from wspace.storage.headers import BITS, CODES, KERNEL_NAMES

Find = Callable[[str], StoredTensor | None]


class Tensors:
    """Collects tensors, and what is wrong with them."""

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        models: dict[ModelReference, Checkpoint],
        donor: int,
        problems: Problems,
        include: Sequence[str],
        exclude: Sequence[str],
        diagonals: Diagonals | None,
    ) -> None:
        self.planned: list[TensorPlan] = []
        self.left_out: dict[str, str] = {}
        self.untied = False  # whether a head is written that an input has only as its embeddings
        self._recipe, self._method, self._problems = recipe, method, problems
        self.references, self.checkpoints = tuple(models), tuple(models.values())
        self.donor = donor
        self._include, self._exclude = include, exclude
        self._diagonals = diagonals
        self._lacking: dict[tuple[int, int], list[str]] = {}  # has, has not: names
        self._absent: dict[int, list[str]] = {}  # has not, and need not have: names
        self._parts: dict[tuple[int, tuple[int, ...]], Scope | None] = {}
        self._of_layers: dict[int, Layers] = {}
        self._steps: dict[tuple, Step | None] = {}
        self._finds: dict[tuple[int, ...], list[Find]] = {}
        self._types: dict[tuple, str | None] = {}
        dtype = recipe.out_dtype or recipe.dtype
        self._dtype = CODES[dtype] if dtype else None

    def add(
        self,
        scope: Scope,
        models: tuple[int, ...],
        output: str,
        inputs: tuple[str, ...] | None,
        t: float,
    ) -> None:
        reason = self._unwanted(output) if self._include or self._exclude else None
        if reason:
            self.left_out[output] = reason
            return
        finds = self._finds_of(models)
        if inputs is None:
            found = [find(output) for find in finds]
        else:
            found = [find(name) for find, name in zip(finds, inputs, strict=True)]
        if not all(found):
            found = [
                tensor or self._tied(k, output) for k, tensor in zip(models, found, strict=True)
            ]
        stored = tuple([tensor for tensor in found if tensor])
        if len(stored) < len(models):
            self._add_incomplete(scope, models, found, output, inputs, t)
        else:
            self._add_found(scope, models, stored, output, inputs, t)

    def add_all(
        self, scope: Scope, models: tuple[int, ...], names: Sequence[str], ts: Iterable[float]
    ) -> None:
        """:meth:`add` of tensors that have one name in all models and the output.

        Those that are in all models like one before are added in short.
        """
        checkpoints = [self.checkpoints[model] for model in models]
        special = self._include or self._exclude or self._diagonals
        if special or any(checkpoint.aliases for checkpoint in checkpoints):
            for name, t in zip(names, ts, strict=True):
                self.add(scope, models, name, None, t)
            return
        columns = {id(c.tensors): list(map(c.tensors.get, names)) for c in checkpoints}
        rows = zip(*[columns[id(c.tensors)] for c in checkpoints], strict=True)
        first, *others = map(_kinds, columns.values())
        kinds = zip(first, *[column for column in others if column != first], strict=True)
        known: dict[tuple, tuple[tuple[int, ...], int, str, Step | None]] = {}
        planned = self.planned
        for name, t, stored, kind in zip(names, ts, rows, kinds, strict=True):
            matches = tuple([f in name for f in scope.filters]) if scope.filters else ()
            key = t, kind, matches
            if key in known:
                shape, numel, dtype, step = known[key]
                made = (name, shape, numel, dtype, models, stored, None, step, ())
                planned.append(tuple.__new__(TensorPlan, made))
                continue
            before = len(planned)
            self.add(scope, models, name, None, t)
            if len(planned) > before and None not in kind:
                known[key] = (
                    planned[-1].shape,
                    planned[-1].numel,
                    planned[-1].dtype,
                    planned[-1].step,
                )

    def _finds_of(self, models: tuple[int, ...]) -> list[Find]:
        """How each model's tensors are found."""
        if models not in self._finds:
            checkpoints = [self.checkpoints[model] for model in models]
            self._finds[models] = [c.find if c.aliases else c.tensors.get for c in checkpoints]
        return self._finds[models]

    def _add_found(
        self,
        scope: Scope,
        models: tuple[int, ...],
        stored: tuple[StoredTensor, ...],
        output: str,
        inputs: tuple[str, ...] | None,
        t: float,
        copy: bool = False,
    ) -> None:
        shape = stored[0].record.shape
        dtypes = tuple([s.record.dtype if s.derived is None else s.written for s in stored])
        for tensor in stored:
            if tensor.record.shape != shape:
                references = [self.references[model] for model in models]
                self._problems.error(None, differing_shapes(references, stored, output))
                return
        key = (id(scope), models, dtypes)
        if key not in self._types:
            self._types[key] = self._written(models, dtypes)
        dtype = self._types[key]
        if dtype is None:
            self._report_types(models, dtypes, output)
            return
        step = None
        if dtype in KERNEL_NAMES:
            step = COPY if copy else self._step(scope, models, inputs, output, t, len(shape))
            if step is None:
                return
        diagonals = ()
        if self._diagonals and step and step.choice:
            references = [self.references[model] for model in models]
            names = inputs or (output,) * len(models)
            diagonals = self._diagonals.find(references, names, shape)
            if diagonals is None:
                return
        self.planned.append(
            TensorPlan(
                output, shape, math.prod(shape), dtype, models, stored, inputs, step, diagonals
            )
        )

    def _unwanted(self, name: str) -> str | None:
        if self._include and not _matches(name, self._include):
            return "not included by " + " ".join(self._include)
        if self._exclude and _matches(name, self._exclude):
            return "excluded by " + " ".join(self._exclude)
        return None

    def _step(
        self, scope: Scope, models: Sequence[int], inputs: tuple[str, ...] | None, output: str,
        t: float, n_axes: int,
    ) -> Step | None:  # fmt: skip
        matches: tuple = ()
        if scope.filters:
            asked = (*(inputs or ()), output)
            matches = tuple([f in name for name in asked for f in scope.filters])
        key = (id(scope), t if scope.varies else 0, matches, n_axes > 1)
        if key not in self._steps:
            names = inputs or (output,) * len(models)
            numbers = scope.numbers(names, output, t, self._problems)
            self._steps[key] = numbers and self._made(scope, numbers, output, n_axes)
        return self._steps[key]

    def _made(self, scope: Scope, numbers: Numbers, output: str, n_axes: int) -> Step | None:
        choice = None
        try:
            factors = self._method.factors(numbers, None)
            if factors is None and n_axes > 1:
                choice = self._method.columns(numbers)
            if factors is None and self._method.choose:
                choice = self._method.choose(numbers)
        except ValueError as error:
            line = self._recipe.method_line
            text = f"{self._recipe.method}, tensor {output!r}: {error}"
            self._problems.error(line, text, str(error))
            return None
        rowwise = n_axes > 1 and self._method.rowwise(numbers)
        return Step(numbers, factors, scope.based, rowwise and factors is None, choice)

    def _written(self, models: Sequence[int], dtypes: Sequence[str]) -> str | None:
        """The type that is written: the recipe's; else the donor's, else the first row's."""
        floats = {dtype in KERNEL_NAMES for dtype in dtypes}
        if floats == {False}:
            return dtypes[0] if len(set(dtypes)) == 1 else None
        if floats == {True, False}:
            return None
        if self._dtype:
            return self._dtype
        given = dtypes[models.index(self.donor)] if self.donor in models else dtypes[0]
        return "BF16" if BITS[given] == 8 else given

    def _tied(self, model: int, name: str) -> StoredTensor | None:
        """The embeddings of a model, for a head that it does not store because they are it."""
        checkpoint = self.checkpoints[model]
        embedding = tied_embedding(checkpoint, name)
        if embedding is None:
            return None
        if not self.untied:
            self._problems.note(
                f"{name!r} is written: {self.references[model]} has it as its {embedding!r} (tied)"
            )
        self.untied = True
        return checkpoint.tensors[embedding]

    def _add_incomplete(
        self,
        scope: Scope,
        models: Sequence[int],
        found: Sequence[StoredTensor | None],
        output: str,
        inputs: tuple[str, ...] | None,
        t: float,
    ) -> None:
        """What some models lack: made of those that have it, where a model may lack it."""
        have = tuple([k for k, tensor in enumerate(found) if tensor])
        lack = [k for k, tensor in enumerate(found) if tensor is None]
        names = inputs or (output,) * len(models)
        stored = tuple([tensor for tensor in found if tensor])
        some = tuple([models[k] for k in have])
        called = inputs and tuple([inputs[k] for k in have])
        buffer = all(tensor.record.dtype not in KERNEL_NAMES for tensor in stored)
        part = self._part(scope, have)
        merged = buffer or (part is not None and self._method.takes(part.n_own))
        single = len(have) == 1 and part is not None
        damaged = not buffer and any(self._layers_of(models[k]).must_have(names[k]) for k in lack)
        if damaged or not (merged or single):
            for k in lack:
                pair = (models[have[0]], models[k])
                self._lacking.setdefault(pair, []).append(names[k])
            return
        if not buffer:
            for k in lack:
                self._absent.setdefault(models[k], []).append(names[k])
        self._add_found(part or scope, some, stored, output, called, t, single and not merged)

    def _part(self, scope: Scope, which: tuple[int, ...]) -> Scope | None:
        """The scope of those rows that have a tensor; None if its origin is not one of them."""
        key = (id(scope), which)
        if key not in self._parts:
            self._parts[key] = scope.only(which)
        return self._parts[key]

    def _layers_of(self, model: int) -> Layers:
        if model not in self._of_layers:
            self._of_layers[model] = Layers(self.checkpoints[model])
        return self._of_layers[model]

    def _report_types(self, models: Sequence[int], dtypes: Sequence[str], output: str) -> None:
        kinds = [dtype if dtype not in KERNEL_NAMES else "float" for dtype in dtypes]
        k = next(k for k, kind in enumerate(kinds) if kind != kinds[0])
        self._problems.error(
            None,
            f"tensor {output!r} is {dtypes[0]} in {self.references[models[0]]} and {dtypes[k]} in "
            f"{self.references[models[k]]}; leave it out with --exclude '{output}'",
        )

    def report_problems(self) -> None:
        """Tensors that some models lack, a line for each pair of models."""
        if self._diagonals:
            self._diagonals.report_problems()
        for (has, lacks), names in self._lacking.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self._problems.error(
                None,
                f"{self.references[lacks]} has no tensor {names[0]!r}{more}, which "
                f"{self.references[has]} has; leave it out with --exclude '{names[0]}'",
            )
        for lacks, names in self._absent.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            reference, n = self.references[lacks], len(self.checkpoints[lacks].tensors)
            if len(names) > n:
                self._problems.error(
                    None,
                    f"{reference} has {n} tensors, and none of {len(names)} that others have, such "
                    f"as {names[0]!r}: it is another kind of model",
                )
                continue
            self._problems.warn(
                None,
                f"{reference} has no tensor {names[0]!r}{more}: merged from the models that do",
            )


def _kinds(column: Iterable[StoredTensor | None]) -> list[tuple[str, tuple[int, ...]] | None]:
    """Type and shape of each tensor; None of one that is not there, or is computed."""
    return [None if s is None or s.derived is not None else s.record[:2] for s in column]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
