"""The merge methods that a recipe can name: their parameters, inputs, and coefficients.

A new linear method is a function in ``formulas`` and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np

from wspace.recipes import formulas


class Parameter(NamedTuple):
    name: str
    default: float | None = None  # None: none is needed, or it must be given
    kind: Literal["number", "flag", "count"] = "number"
    required: bool = False


class Numbers(NamedTuple):
    """The effective numbers of a tensor: what its method computes with."""

    each: Mapping[str, tuple[float | None, ...]]  # one for each input that has such a parameter
    overall: Mapping[str, float | None]

    def flag(self, name: str) -> bool:
        return bool(self.overall[name])

    def number(self, name: str) -> float:
        value = self.overall[name]
        assert value is not None
        return value

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(weight for weight in self.each["weight"] if weight is not None)


Base = Literal["input", "first", "origin", "optional origin"]
"""What the base is to a method: one more input; its first row; the origin of all rows; either."""


@dataclass(frozen=True)
class Method:
    """``factors(numbers, gram)`` gives the rows' factors; ``gram`` None asks for those that need
    none, and is answered by None where they do."""

    source: str
    base: Base
    factors: Callable[[Numbers, np.ndarray | None], np.ndarray | None]
    least: int = 1  # inputs, besides the base where it is not one of them
    most: int | None = None
    each: tuple[Parameter, ...] = ()  # a value for each input
    overall: tuple[Parameter, ...] = ()
    idle: tuple[str, ...] = ()  # accepted by mergekit, without effect
    rowwise: Callable[[Numbers], bool] = field(default=lambda numbers: False)

    def takes(self, n_models: int) -> bool:
        """Whether it merges that many models, besides the base where that is not one of them."""
        return self.least <= n_models <= (self.most or n_models)


def _linear(numbers: Numbers, _gram: np.ndarray | None) -> np.ndarray:
    return formulas.linear(numbers.weights, normalize=numbers.flag("normalize"))


def _task_arithmetic(numbers: Numbers, _gram: np.ndarray | None) -> np.ndarray:
    return formulas.task_arithmetic(
        numbers.weights, normalize=numbers.flag("normalize"), scale=numbers.number("lambda")
    )


def _passthrough(numbers: Numbers, _gram: np.ndarray | None) -> np.ndarray:
    (scale,) = numbers.each["scale"]
    return np.array([1.0 if scale is None else scale])


def _slerp(numbers: Numbers, gram: np.ndarray | None) -> np.ndarray | None:
    t = numbers.number("t")
    if t in (0, 1):
        return np.array([1 - t, t])
    return None if gram is None else formulas.slerp(gram, t)


def _nuslerp(numbers: Numbers, gram: np.ndarray | None) -> np.ndarray | None:
    return None if gram is None else formulas.nuslerp(gram, numbers.weights)


def _multislerp(numbers: Numbers, gram: np.ndarray | None) -> np.ndarray | None:
    if len(numbers.weights) == 1:
        return np.array([1.0])
    if gram is None:
        formulas.multislerp(  # refuses weights that sum to 0
            np.zeros((0, len(numbers.weights), len(numbers.weights))), numbers.weights,
            normalize_weights=numbers.flag("normalize_weights"), eps=numbers.number("eps"),
        )  # fmt: skip
        return None
    return formulas.multislerp(
        gram, numbers.weights, normalize_weights=numbers.flag("normalize_weights"),
        eps=numbers.number("eps"),
    )  # fmt: skip


def _karcher(numbers: Numbers, gram: np.ndarray | None) -> np.ndarray | None:
    if gram is None:
        return None
    return formulas.karcher(
        gram, max_iter=int(numbers.number("max_iter")), tol=numbers.number("tol")
    )


def _model_stock(eps: float):
    def factors(_numbers: Numbers, gram: np.ndarray | None) -> np.ndarray | None:
        return None if gram is None else formulas.model_stock(gram, eps=eps)

    return factors


_WEIGHT = Parameter("weight", required=True)
_STOCK = (Parameter("filter_wise", 0, "flag"),)

METHODS: dict[str, Method] = {
    "linear": Method(
        "Model soups, arXiv 2203.05482", "input", _linear, each=(_WEIGHT,),
        overall=(Parameter("normalize", 1, "flag"),),
    ),
    "task_arithmetic": Method(
        "arXiv 2212.04089", "origin", _task_arithmetic, each=(_WEIGHT,),
        overall=(Parameter("normalize", 0, "flag"), Parameter("lambda", 1)),
        idle=("density", "rescale", "int8_mask"),
    ),
    "slerp": Method(
        "Shoemake 1985", "first", _slerp, most=1, overall=(Parameter("t", required=True),)
    ),
    "nuslerp": Method(
        "Shoemake 1985", "optional origin", _nuslerp, least=2, most=2, each=(_WEIGHT,),
        overall=(
            Parameter("nuslerp_flatten", 1, "flag"), Parameter("nuslerp_row_wise", 0, "flag"),
        ),
        rowwise=lambda numbers: not numbers.flag("nuslerp_flatten"),
    ),
    "multislerp": Method(
        "goddard.blog, multislerp", "optional origin", _multislerp, each=(_WEIGHT,),
        overall=(Parameter("normalize_weights", 1, "flag"), Parameter("eps", 1e-8)),
    ),
    "karcher": Method(
        "Karcher 1977; arXiv 2603.04972", "input", _karcher,
        overall=(Parameter("max_iter", 10, "count"), Parameter("tol", 1e-5)),
    ),
    "model_stock": Method(
        "arXiv 2403.19522", "origin", _model_stock(1e-6), least=2, overall=_STOCK,
        rowwise=lambda numbers: numbers.flag("filter_wise"),
    ),
    "model_stock/exact": Method(
        "arXiv 2403.19522", "origin", _model_stock(0.0), least=2, overall=_STOCK,
        rowwise=lambda numbers: numbers.flag("filter_wise"),
    ),
    "passthrough": Method("", "input", _passthrough, most=1, each=(Parameter("scale"),)),
}  # fmt: skip

NOT_YET = frozenset(
    (
        "ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties", "della",
        "della_linear", "sce", "ram", "ramplus_tl", "nearswap", "arcee_fusion", "ties/mergekit",
        "ties/paper", "ties/peft", "dare/paper", "dare/peft", "dare/mergekit", "della/paper",
        "della/mergekit", "sce/exact",
    )
)  # fmt: skip
"""Elementwise methods, known by name."""

OTHERS = frozenset(
    ("density", "gamma", "epsilon", "select_topk", "rescale", "int8_mask", "r", "alpha")
)
"""Parameters of those methods."""
