"""From modules and slices to output tensors: which tensors of which models make each."""

from __future__ import annotations

from collections.abc import Sequence

from wspace.recipes import layers
from wspace.recipes.configs import Restacked
from wspace.recipes.grammar import Module
from wspace.recipes.problems import Problems
from wspace.recipes.scopes import Scope
from wspace.recipes.tensors import Tensors


class Assembly:
    """Adds the tensors of ``modules`` to ``tensors``; ``restacked``: the stacks that changed."""

    def __init__(self, tensors: Tensors, modules: Sequence[Module], problems: Problems) -> None:
        self.restacked: list[Restacked] = []
        self._tensors, self._modules, self._problems = tensors, modules, problems
        self._references, self._checkpoints = tensors.references, tensors.checkpoints
        self._stacks: dict[int, dict[str, int]] = {}

    def add_module(self, module: Module, scopes: Sequence[Scope]) -> None:
        if module.whole:
            self._add_models(module, scopes[0])
        else:
            self._add_slices(module, scopes)

    def _models_of(self, scope: Scope) -> tuple[int, ...]:
        return tuple(self._references.index(source.model) for source in scope.rows)

    def _stacks_of(self, model: int) -> dict[str, int]:
        if model not in self._stacks:
            self._stacks[model] = layers.find_stacks(self._checkpoints[model].tensors)
        return self._stacks[model]

    def _names(self, module: Module, models: Sequence[int]) -> list[str]:
        """The names that any of the models has and that belong to the module: the first's first."""
        first = self._checkpoints[models[0]].tensors
        names = list(first)
        known = set(first)
        for model in models[1:]:
            tensors = self._checkpoints[model].tensors
            if tensors is not first and tensors.keys() != known:
                names += [name for name in tensors if name not in known]
                known.update(tensors)
        if len(self._modules) == 1:
            return names
        return [name for name in names if self._module_of(name) is module]

    def _module_of(self, name: str) -> Module:
        """That whose name is part of the tensor's; else ``default``; else the first."""
        modules = self._modules
        parts = name.split(".")
        fitting = [module for module in modules if module.name in parts]
        return (fitting or [m for m in modules if m.name == "default"] or modules)[0]

    def _add_models(self, module: Module, scope: Scope) -> None:
        models = self._models_of(scope)
        stacks = self._stacks_of(models[0]) if scope.varies else {}
        names = self._names(module, models)
        self._tensors.add_all(scope, models, names, layers.depths(names, stacks))

    def _add_slices(self, module: Module, scopes: Sequence[Scope]) -> None:
        stack = self._stack(module, scopes)
        if stack is None:
            return
        first, last = scopes[0], scopes[-1]
        self._add_outside(module, first, stack, before=True)
        n_layers = 0
        origins = []
        for scope in scopes:
            models = self._models_of(scope)
            ranges = [source.layers or (0, 0) for source in scope.rows]
            n = ranges[0][1] - ranges[0][0]
            main = scope.slice.sources[0]
            origins += [
                (self._references.index(main.model), layer)
                for layer in range(*(main.layers or (0, 0)))
            ]
            tables = [self._layers(model, stack) for model in models]
            for offset in range(n):
                numbers = [start + offset for start, _ in ranges]
                rests = dict.fromkeys(
                    rest for table, k in zip(tables, numbers, strict=True) for rest in table[k]
                )
                for rest in rests:
                    inputs = tuple(f"{_child(stack, k)}{rest}" for k in numbers)
                    output = f"{_child(stack, n_layers + offset)}{rest}"
                    self._tensors.add(scope, models, output, inputs, layers.depth(offset, n))
            n_layers += n
        self._add_outside(module, last, stack, before=False)
        n_before = self._stacks_of(self._tensors.donor).get(stack, 0)
        self.restacked.append(Restacked(stack, n_before, origins))

    def _add_outside(self, module: Module, scope: Scope, stack: str, *, before: bool) -> None:
        """The tensors that are in no layer, and come before or after them."""
        models = self._models_of(scope)
        for name in self._names(module, models):
            outside = layers.place_of(name, {stack: 1}) is None
            if outside and layers.comes_first(name) == before:
                self._tensors.add(scope, models, name, None, 0.0)

    def _layers(self, model: int, stack: str) -> list[list[str]]:
        """What each layer of a stack holds: names after the layer's number."""
        found: list[list[str]] = [[] for _ in range(self._stacks_of(model)[stack])]
        for name in self._checkpoints[model].tensors:
            place = layers.place_of(name, {stack: 1})
            if place:
                found[place.layer].append(place.rest)
        return found

    def _stack(self, module: Module, scopes: Sequence[Scope]) -> str | None:
        """The stack that the slices cut, after a check of every layer_range against it."""
        main = self._references.index(scopes[0].rows[0].model)
        stacks = self._stacks_of(main)
        fitting = [s for s in stacks if module.name == "default" or module.name in s.split(".")]
        if len(fitting) != 1:
            found = ", ".join(f"{s} ({n} layers)" for s, n in stacks.items()) or "none"
            self._problems.error(
                module.line,
                f"slices need one list of layers in the tensors' names; {self._references[main]} "
                f"has: {found}" + ("; name its parts under modules" if len(stacks) > 1 else ""),
            )
            return None
        (stack,) = fitting
        good = True
        for scope in scopes:
            spans = set()
            for source in scope.slice.sources:
                model = self._references.index(source.model)
                n = self._stacks_of(model).get(stack, 0)
                first, end = source.layers or (0, 0)
                spans.add(end - first)
                if end > n:
                    self._problems.error(
                        source.line, f"layer_range [{first}, {end}]: {source.model} has {n} layers"
                    )
                    good = False
            if len(spans) > 1:
                self._problems.error(
                    scope.slice.line, "the sources of a slice must have equally many layers"
                )
                good = False
        return stack if good else None


def _child(stack: str, index: int) -> str:
    return f"{stack}.{index}" if stack else str(index)
