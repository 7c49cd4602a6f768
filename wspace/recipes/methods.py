"""The merge methods that a recipe can name: their parameters, inputs, and coefficients.

A new linear method is a function in ``formulas`` and an entry here; a new one that chooses elements
is a function in ``elementwise`` and an entry here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from wspace.recipes import elementwise, formulas
from wspace.recipes.numbers import Numbers, Parameter

Base = Literal["input", "first", "origin", "optional origin"]
"""What the base is to a method: one more input; its first row; the origin of all rows; either."""


@dataclass(frozen=True)
class Method:
    """``factors(numbers, gram)`` gives the rows' factors; ``gram`` None asks for those that need
    none, and is answered by None where they do. ``choose(numbers)``: what a method does that
    chooses elements, where its factors are None; ``columns(numbers)``: what is done to the columns
    of matrices, if they are asked for."""

    source: str
    base: Base
    factors: Callable[[Numbers, np.ndarray | None], np.ndarray | None]
    least: int = 1  # inputs, besides the base where it is not one of them
    most: int | None = None
    each: tuple[Parameter, ...] = ()  # a value for each input
    overall: tuple[Parameter, ...] = ()
    idle: tuple[str, ...] = ()  # accepted by mergekit, without effect
    rowwise: Callable[[Numbers], bool] = field(default=lambda numbers: False)
    choose: elementwise.Choose | None = None
    columns: elementwise.Columns = field(default=lambda numbers: None)
    diagonals: bool = False  # whether each model needs its Fisher diagonals

    def takes(self, n_models: int) -> bool:
        """Whether it merges that many models, besides the base where that is not one of them."""
        return self.least <= n_models <= (self.most or n_models)


def _linear(numbers: Numbers, _gram: np.ndarray | None) -> np.ndarray:
    return formulas.linear(numbers.weights, normalize=numbers.flag("normalize"))


def _fisher(numbers: Numbers, _gram: np.ndarray | None) -> np.ndarray | None:
    if not any(numbers.weights):
        raise ValueError("the weights are all 0; give others")
    return np.array([1.0]) if len(numbers.weights) == 1 else None


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


def _geometric_median(numbers: Numbers, gram: np.ndarray | None) -> np.ndarray | None:
    if gram is None:
        return None
    return formulas.geometric_median(
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
        columns=elementwise.nuslerp_of_columns,
    ),
    "multislerp": Method(
        "goddard.blog, multislerp", "optional origin", _multislerp, each=(_WEIGHT,),
        overall=(Parameter("normalize_weights", 1, "flag"), Parameter("eps", 1e-8)),
    ),
    "karcher": Method(
        "Karcher 1977; arXiv 2603.04972", "input", _karcher,
        overall=(Parameter("max_iter", 10, "count"), Parameter("tol", 1e-5)),
    ),
    "geometric_median": Method(
        "Weiszfeld 1937; RFA, arXiv 1912.13445", "optional origin", _geometric_median,
        overall=(Parameter("max_iter", 1000, "count"), Parameter("tol", 1e-9)),
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

_DENSITY = Parameter("density", 1, least=0, most=1)
_GAMMA = Parameter("gamma", 0.01, least=0, most=1)
_SPREAD = Parameter("epsilon", 0.15, least=0, most=1)
_LAMBDA = Parameter("lambda", 1)
_TASKS = (_WEIGHT, _DENSITY)


def _flags(*, normalize: bool, rescale: bool | None = None) -> tuple[Parameter, ...]:
    flags = [Parameter("normalize", normalize, "flag")]
    if rescale is not None:
        flags.append(Parameter("rescale", rescale, "flag"))
    return (*flags, _LAMBDA)


def _plain(consensus: bool):
    """The factors where all elements are kept, and no election can leave one out."""

    def factors(numbers: Numbers, _gram: np.ndarray | None) -> np.ndarray | None:
        if not elementwise.keeps_all(numbers) or (consensus and len(numbers.weights) > 1):
            return None
        return _task_arithmetic(numbers, None)

    return factors


def _chosen(_numbers: Numbers, _gram: np.ndarray | None) -> None:
    return None


def _tasks(
    source: str, choose: Callable[..., elementwise.Choose], keep, overall: tuple[Parameter, ...],
    *more: Parameter, consensus: bool,
) -> Method:  # fmt: skip
    return Method(
        source, "origin", _plain(consensus), each=(*_TASKS, *more), overall=overall,
        idle=("int8_mask",), choose=choose(keep, consensus=consensus),
    )  # fmt: skip


_TIES, _DARE = "TIES, arXiv 2306.01708", "DARE, arXiv 2311.03099"
_CRUMBS, _DELLA = "Model breadcrumbs, arXiv 2312.06795", "DELLA, arXiv 2406.11617"
_VECTORS, _UNBIASED = elementwise.task_vectors, elementwise.unbiased
_PEFT = (Parameter("frequency", 0, "flag"), _LAMBDA)
_RAM = (Parameter("epsilon", 1e-5, least=0),)

METHODS |= {
    "ties": _tasks(
        _TIES, _VECTORS, elementwise.TRIMMED, _flags(normalize=True, rescale=False),
        consensus=True,
    ),
    "ties/paper": Method(
        _TIES, "origin", _chosen, each=(_DENSITY,), overall=(_LAMBDA,),
        choose=elementwise.ties_paper,
    ),
    "ties/peft": Method(
        _TIES, "origin", _chosen, each=_TASKS, overall=_PEFT,
        choose=elementwise.peft(elementwise.TRIMMED),
    ),
    "dare_linear": _tasks(
        _DARE, _VECTORS, elementwise.DRAWN, _flags(normalize=False, rescale=True),
        consensus=False,
    ),
    "dare_ties": _tasks(
        _DARE, _VECTORS, elementwise.DRAWN, _flags(normalize=False, rescale=True), consensus=True
    ),
    "dare/paper": _tasks(
        _DARE, _UNBIASED, elementwise.DRAWN, _flags(normalize=False), consensus=False
    ),
    "dare/peft": Method(
        _DARE, "origin", _chosen, each=_TASKS, overall=_PEFT,
        choose=elementwise.peft(elementwise.DRAWN, rescale="chances"),
    ),
    "breadcrumbs": _tasks(
        _CRUMBS, _VECTORS, elementwise.OUTLIERS, _flags(normalize=False, rescale=False), _GAMMA,
        consensus=False,
    ),
    "breadcrumbs_ties": _tasks(
        _CRUMBS, _VECTORS, elementwise.OUTLIERS, _flags(normalize=False, rescale=False), _GAMMA,
        consensus=True,
    ),
    "della": _tasks(
        _DELLA, _VECTORS, elementwise.RANKED, _flags(normalize=True, rescale=True), _SPREAD,
        consensus=True,
    ),
    "della_linear": _tasks(
        _DELLA, _VECTORS, elementwise.RANKED, _flags(normalize=False, rescale=True), _SPREAD,
        consensus=False,
    ),
    "della/paper": _tasks(
        _DELLA, _UNBIASED, elementwise.RANKED, _flags(normalize=True), _SPREAD, consensus=True
    ),
    "sce": Method(
        "FuseChat, arXiv 2408.07990", "origin", _chosen,
        overall=(Parameter("select_topk", 1, least=0, most=1),), idle=("int8_mask",),
        choose=elementwise.sce(1e-6),
    ),
    "sce/exact": Method(
        "FuseChat, arXiv 2408.07990", "origin", _chosen,
        overall=(Parameter("select_topk", 1, least=0, most=1),), choose=elementwise.sce(0.0),
    ),
    "ram": Method(
        "RAM, arXiv 2601.13572", "origin", _chosen, overall=_RAM, choose=elementwise.ram
    ),
    "ramplus_tl": Method(
        "RAM, arXiv 2601.13572", "origin", _chosen,
        overall=(Parameter("r", 0.1), Parameter("alpha", 0.2, least=0), *_RAM),
        choose=elementwise.ram_plus,
    ),
    "nearswap": Method(
        "model card of QuartetAnemoi-70B", "origin", _chosen, most=1,
        overall=(Parameter("t", required=True),), choose=elementwise.nearswap,
    ),
    "fisher": Method(
        "Fisher-weighted averaging, arXiv 2111.09832", "input", _fisher,
        each=(Parameter("weight", 1, least=0),), overall=(Parameter("epsilon", 0, least=0),),
        choose=elementwise.fisher, diagonals=True,
    ),
    "arcee_fusion": Method(
        "Arcee, mergekit 0.1", "origin", _chosen, most=1, choose=elementwise.arcee_fusion
    ),
}  # fmt: skip
METHODS |= {
    "ties/mergekit": METHODS["ties"],
    "dare/mergekit": METHODS["dare_linear"],
    "della/mergekit": METHODS["della"],
}

IDLE = frozenset(("int8_mask",))
"""Parameters that have no effect in any method."""
