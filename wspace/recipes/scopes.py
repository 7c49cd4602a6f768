"""Which value of a parameter counts for a tensor: of its model, slice, module, or the recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from wspace.recipes.grammar import Module, Parameters, Recipe, Slice, Source
from wspace.recipes.methods import IDLE, METHODS, Method
from wspace.recipes.numbers import Numbers, Parameter
from wspace.recipes.problems import Problems
from wspace.recipes.references import ModelReference
from wspace.recipes.settings import Setting

Chain = tuple[Setting, ...]
"""Where a value may come from, innermost first; the first place that gives one counts."""


@dataclass(frozen=True)
class Scope:
    """What one slice merges, in the order of its method's rows, and with which settings."""

    slice: Slice
    rows: tuple[Source, ...]  # with an origin, that is the last row
    based: bool
    each: tuple[tuple[Parameter, tuple[tuple[int, Chain], ...]], ...]  # a row's number, its chain
    overall: tuple[tuple[Parameter, Chain], ...]
    filters: tuple[str, ...]
    varies: bool  # whether a value depends on the layer

    @property
    def n_own(self) -> int:
        """Models besides the origin."""
        return len(self.rows) - self.based

    def only(self, which: tuple[int, ...]) -> Scope | None:
        """The same for some of the rows; None if the origin is not one of them."""
        if self.based and len(self.rows) - 1 not in which:
            return None
        place = {row: k for k, row in enumerate(which)}
        each = tuple(
            (parameter, tuple((place[row], chain) for row, chain in chains if row in place))
            for parameter, chains in self.each
        )
        return replace(self, rows=tuple([self.rows[row] for row in which]), each=each)

    def numbers(
        self, inputs: Sequence[str], output: str, t: float, problems: Problems
    ) -> Numbers | None:
        """The effective numbers of a tensor; ``inputs``: what it is called in each row's model."""
        each: dict[str, tuple[float | None, ...]] = {}
        overall: dict[str, float | None] = {}
        complete = True
        for parameter, chains in self.each:
            values = []
            for row, chain in chains:
                value = _first(chain, inputs[row], t, parameter)
                if value is None and parameter.required:
                    source = self.rows[row]
                    problems.error(
                        source.line,
                        f"{source.model} has no {parameter.name} for tensor {inputs[row]!r}",
                        f"no {parameter.name} in {source.model}",
                    )
                    complete = False
                values.append(value)
            each[parameter.name] = tuple(values)
        for parameter, chain in self.overall:
            value = _first(chain, output, t, parameter)
            if value is None and parameter.required:
                text = f"no {parameter.name} for tensor {output!r}"
                problems.error(self.slice.line, text, f"no {parameter.name}")
                complete = False
            overall[parameter.name] = value
        return Numbers(each, overall, self.n_own) if complete else None


def _first(chain: Chain, name: str, t: float, parameter: Parameter) -> float | None:
    for setting in chain:
        value = setting.value(name, t)
        if value is not None:
            break
    else:
        value = parameter.default
    if value is None or parameter.kind == "number":
        return value
    return float(bool(value)) if parameter.kind == "flag" else float(int(value))


def scope_of(
    recipe: Recipe, module: Module, part: Slice, method: Method, problems: Problems
) -> Scope | None:
    """The rows and settings of one slice; None, with the problem told, if it cannot be merged."""
    base = part.base or recipe.base
    sources = list(part.sources)
    listed = any(source.model == base for source in sources)
    if base and not listed and module.whole:
        sources.append(Source(base, recipe.base_line))
        if method.base == "input" and recipe.method != "passthrough":
            problems.note(
                f"{base} is base_model, which {recipe.method} has no use for: it is merged as one "
                "more input"
            )
    role = method.base
    if role == "optional origin":
        role = "origin" if base else "input"
    if role != "input" and base is None:
        problems.error(recipe.method_line, f"{recipe.method} needs a base_model")
        return None
    own = [s for s in sources if role == "input" or s.model != base]
    origin = [s for s in sources if role != "input" and s.model == base]
    if role != "input" and not origin:
        problems.error(part.line, f"{recipe.method} needs {base}, the base, among the sources")
        return None
    if not method.takes(len(own)):
        expected = f"{method.least}" if method.least == method.most else f"{method.least} or more"
        besides = "" if role == "input" else " besides the base"
        problems.error(
            part.line, f"{recipe.method} takes {expected} models{besides}, found {len(own)}"
        )
        return None
    rows = (*origin, *own) if role == "first" else (*own, *origin)
    outer = (part.parameters, module.parameters, recipe.parameters)
    numbered = [(rows.index(source), source) for source in own]
    each = tuple(
        (
            parameter,
            tuple((k, _chain(parameter, (s.parameters, *outer))) for k, s in numbered),
        )
        for parameter in method.each
    )
    overall = tuple((parameter, _chain(parameter, outer)) for parameter in method.overall)
    settings = [s for _, chains in each for _, chain in chains for s in chain]
    settings += [s for _, chain in overall for s in chain]
    return Scope(
        slice=part,
        rows=rows,
        based=role == "origin",
        each=each,
        overall=overall,
        filters=tuple(sorted({f for setting in settings for f in setting.filters})),
        varies=any(setting.varies for setting in settings),
    )


def _chain(parameter: Parameter, places: Iterable[Parameters]) -> Chain:
    return tuple(place[parameter.name] for place in places if parameter.name in place)


def check_parameters(recipe: Recipe, method: Method, problems: Problems) -> None:
    """Say which parameters mean nothing, or nothing where they stand."""
    each = {parameter.name: parameter for parameter in method.each}
    overall = {parameter.name: parameter for parameter in method.overall}
    elsewhere = {p.name for other in METHODS.values() for p in (*other.each, *other.overall)}

    def check(parameters: Mapping[str, Setting], of_model: ModelReference | None) -> None:
        for name, setting in parameters.items():
            if name in each or (name in overall and not of_model):
                _check_range((each | overall)[name], setting, problems)
                continue
            if name in overall:
                text = f"{name} is a number of the whole merge: it has no effect in one model"
                problems.warn(setting.line, text)
            elif name in method.idle or name in elsewhere or name in IDLE:
                problems.warn(setting.line, f"{name} has no effect in {recipe.method}")
            else:
                problems.unknown(setting.line, "parameter", name, sorted({*each, *overall}))

    check(recipe.parameters, None)
    for module in recipe.modules:
        check(module.parameters, None)
        for part in module.slices:
            check(part.parameters, None)
            for source in part.sources:
                check(source.parameters, source.model)


def _check_range(parameter: Parameter, setting: Setting, problems: Problems) -> None:
    least, most = parameter.least, parameter.most
    for value in (value for condition in setting.conditions for value in condition.values):
        if not least <= value <= most:
            bounds = f"{least:g} to {most:g}" if most < math.inf else f"{least:g} or more"
            problems.error(setting.line, f"{parameter.name} {value:g}: expected {bounds}")
