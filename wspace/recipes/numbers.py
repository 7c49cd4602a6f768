"""The parameters of methods, and the numbers that a tensor has of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple


class Parameter(NamedTuple):
    name: str
    default: float | None = None  # None: none is needed, or it must be given
    kind: Literal["number", "flag", "count"] = "number"
    required: bool = False
    least: float = -math.inf
    most: float = math.inf


class Numbers(NamedTuple):
    """The effective numbers of a tensor: what its method computes with."""

    each: Mapping[str, tuple[float | None, ...]]  # one for each input that has such a parameter
    overall: Mapping[str, float | None]
    n: int = 1  # inputs, besides the origin

    def flag(self, name: str) -> bool:
        return bool(self.overall[name])

    def number(self, name: str) -> float:
        value = self.overall[name]
        assert value is not None
        return value

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(weight for weight in self.each["weight"] if weight is not None)
