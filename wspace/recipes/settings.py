"""Values of parameters: numbers, gradients over the layers, and filters on tensor names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from wspace.recipes.problems import Problems
from wspace.recipes.source import Node


class Condition(NamedTuple):
    """A value for the tensors whose names hold ``filter``; for all tensors if it is None."""

    filter: str | None
    values: tuple[float, ...]  # one number, a gradient of several, or no value


@dataclass(frozen=True)
class Setting:
    """What a recipe gives for one parameter in one place: the first condition that holds counts."""

    conditions: tuple[Condition, ...]
    line: int

    def value(self, name: str, t: float) -> float | None:
        """The number for a tensor at depth ``t`` (0 to 1); None where no condition holds."""
        for condition in self.conditions:
            if condition.filter is None or condition.filter in name:
                return gradient(condition.values, t)
        return None

    @property
    def filters(self) -> frozenset[str]:
        return frozenset(c.filter for c in self.conditions if c.filter is not None)

    @property
    def varies(self) -> bool:
        """Whether the value depends on the layer."""
        return any(len(condition.values) > 1 for condition in self.conditions)


def gradient(values: tuple[float, ...], t: float) -> float | None:
    """``values`` at ``t * (len(values) - 1)``, linear in between; None of no values."""
    if not values:
        return None
    position = t * (len(values) - 1)
    first = min(int(position), len(values) - 1)
    rest = position - first
    if rest == 0:
        return values[first]
    return (1 - rest) * values[first] + rest * values[first + 1]


def parse_setting(node: Node, name: str, problems: Problems) -> Setting | None:
    """A number, a list of numbers, ``{value, filter}``, or a list of those."""
    value, line = node
    if isinstance(value, dict):
        condition = _condition(node, name, problems)
        return Setting((condition,), line) if condition else None
    if isinstance(value, list) and any(isinstance(item.value, dict) for item in value):
        if not all(isinstance(item.value, dict) for item in value):
            problems.error(line, f"{name}: a list holds numbers, or conditions, but not both")
            return None
        conditions = [_condition(item, name, problems) for item in value]
        return Setting(tuple(c for c in conditions if c), line)
    values = _numbers(node, name, problems)
    return None if values is None else Setting((Condition(None, values),), line)


def _condition(node: Node, name: str, problems: Problems) -> Condition | None:
    content: dict[Any, Node] = node.value
    if "sweep" in content:
        problems.error(node.line, f"{name}: expected {{sweep: [value, value, ...]}} and no more")
        return None
    for key in content:
        if key not in ("value", "filter"):
            problems.unknown(key.line, f"key of {name}", key, ("value", "filter"))
    if "value" not in content:
        problems.error(node.line, f"{name}: a condition needs a value")
        return None
    pattern = content.get("filter", Node(None, node.line))
    if pattern.value is not None and not isinstance(pattern.value, str):
        problems.error(pattern.line, f"{name}: filter: expected a part of tensor names")
        return None
    values = _numbers(content["value"], name, problems)
    everything = pattern.value in (None, "*", "")
    return None if values is None else Condition(None if everything else pattern.value, values)


def _numbers(node: Node, name: str, problems: Problems) -> tuple[float, ...] | None:
    items = node.value if isinstance(node.value, list) else [node]
    numbers = [number(item.value) for item in items]
    for item, found in zip(items, numbers, strict=True):
        if found is None or not math.isfinite(found):
            shown = "nothing" if item.value is None else repr(item.value)[:60]
            problems.error(item.line, f"{name}: expected a finite number, found {shown}")
            return None
    return tuple(found for found in numbers if found is not None)


def number(value: object) -> float | None:
    """YAML 1.1 reads ``1e-5`` as a text, and flags are numbers too."""
    if isinstance(value, bool | int | float):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return None
