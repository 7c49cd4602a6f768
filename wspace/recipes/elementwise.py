"""The methods that choose elements, as data: from a tensor's numbers to what is kept and joined.

``d_i = x_i - x_0`` for the models, ``x_0`` the base. Names after a slash are variants: what the
paper says, or what peft or mergekit computes, where one name stands for several algorithms.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

from wspace.elementwise.choices import (
    Above,
    Choice,
    ColumnSums,
    Drawn,
    Everything,
    FisherMean,
    Important,
    Join,
    Keep,
    Largest,
    Pull,
    Ranked,
    Varied,
)
from wspace.recipes import formulas
from wspace.recipes.numbers import Numbers

Choose = Callable[[Numbers], Choice]
Columns = Callable[[Numbers], Choice | None]


def _densities(numbers: Numbers) -> tuple[float, ...]:
    return _given(numbers, "density")


def _given(numbers: Numbers, name: str) -> tuple[float, ...]:
    return tuple([value for value in numbers.each[name] if value is not None])


def _trimmed(numbers: Numbers) -> Keep:
    return Largest(_densities(numbers))


def _drawn(numbers: Numbers) -> Keep:
    return Drawn(_densities(numbers))


def _without_outliers(numbers: Numbers) -> Keep:
    return Largest(_densities(numbers), _given(numbers, "gamma"))


def _ranked(numbers: Numbers) -> Keep:
    densities, epsilons = _densities(numbers), _given(numbers, "epsilon")
    for density, epsilon in zip(densities, epsilons, strict=True):
        if 0 < density < 1 and not (density - epsilon > 0 and density + epsilon < 1):
            raise ValueError(
                f"density {density:g} with epsilon {epsilon:g}: chances of {density - epsilon:g} "
                f"to {density + epsilon:g} must lie between 0 and 1; give a smaller epsilon"
            )
    return Ranked(densities, epsilons)


def _divisor(numbers: Numbers, consensus: bool) -> Literal["", "weights", "total"]:
    """What ``normalize`` divides by: the weights of what agrees, or all of them."""
    if not numbers.flag("normalize"):
        return ""
    return "weights" if consensus else "total"


def task_vectors(keep: Callable[[Numbers], Keep], *, consensus: bool) -> Choose:
    """``x_0 + lambda * sum_i w_i d_i / D`` of what is kept, as mergekit joins it.

    Without consensus ``D = sum_i w_i`` if ``normalize``, else 1. With it, only terms with the sign
    of ``sum_i w_i d_i`` count (+ where that is 0), and ``D`` is the sum of their weights. With
    ``rescale``, what is kept of a tensor has the sum of magnitudes that it had before.
    Sources: TIES, arXiv 2306.01708; DARE, 2311.03099; breadcrumbs, 2312.06795; DELLA, 2406.11617.
    """

    def choose(numbers: Numbers) -> Choice:
        join = Join(
            numbers.weights, scale=numbers.number("lambda"), elect="sum" if consensus else "none",
            divide=_divisor(numbers, consensus), rescale="sums" if numbers.flag("rescale") else "",
        )  # fmt: skip
        return Choice(keep(numbers), join)

    return choose


def ties_paper(numbers: Numbers) -> Choice:
    """One threshold for each whole model; the sign of the plain sum; the mean of what agrees.

    Where the sum is 0, the sign that most elements of the model elect. Source: the code of arXiv
    2306.01708.
    """
    densities = _densities(numbers)
    join = Join(
        (1.0,) * len(densities), scale=numbers.number("lambda"), elect="sum", weighted_votes=False,
        divide="count", majority=True,
    )  # fmt: skip
    return Choice(Largest(densities, whole=True), join)


def peft(keep: Callable[[Numbers], Keep], *, rescale: Literal["", "chances"] = "") -> Choose:
    """``sum_i w_i d_i`` over the terms that agree, divided by how many they are, as in peft.

    The sign is that of the plain sum, or of the sum of signs with ``frequency``. On differences of
    weights, not on the factors of adapters.
    """

    def choose(numbers: Numbers) -> Choice:
        join = Join(
            numbers.weights, scale=numbers.number("lambda"),
            elect="signs" if numbers.flag("frequency") else "sum", weighted_votes=False,
            divide="count", rescale=rescale,
        )  # fmt: skip
        return Choice(keep(numbers), join)

    return choose


def unbiased(keep: Callable[[Numbers], Keep], *, consensus: bool) -> Choose:
    """What is kept is divided by its own chance, so that the mean of many draws is ``d_i``.

    Sources: DARE, arXiv 2311.03099; DELLA, arXiv 2406.11617.
    """

    def choose(numbers: Numbers) -> Choice:
        join = Join(
            numbers.weights, scale=numbers.number("lambda"), elect="sum" if consensus else "none",
            divide=_divisor(numbers, consensus), rescale="chances",
        )  # fmt: skip
        return Choice(keep(numbers), join)

    return choose


def sce(guard: float) -> Choose:
    """The places that vary most; weights by mean square; the mean of what has the elected sign.

    ``guard``: mergekit's bound for sums of mean squares and of weights. Source: arXiv 2408.07990.
    """

    def choose(numbers: Numbers) -> Choice:
        ones = (1.0,) * numbers.n
        join = Join(
            ones, elect="sum", weighted_votes=False, divide="weights", by_square=guard, least=guard
        )
        return Choice(Varied(numbers.number("select_topk")), join)

    return choose


def ram(numbers: Numbers) -> Choice:
    """The mean of the differences that are above ``epsilon``. Source: arXiv 2601.13572."""
    keep = Above(numbers.number("epsilon"))
    return Choice(keep, Join((1.0,) * numbers.n, divide="count"))


def ram_plus(numbers: Numbers) -> Choice:
    """:func:`ram`, where what one model alone changed is scaled up by how much it shares.

    Its factor: ``1 + r * clip(S / max(Q, epsilon), 0, alpha)`` with the model's ``S`` shared and
    ``Q`` unique active places in the tensor.
    """
    epsilon = numbers.number("epsilon")
    alone = (numbers.number("r"), numbers.number("alpha"), epsilon)
    return Choice(Above(epsilon), Join((1.0,) * numbers.n, divide="count", alone=alone))


def nearswap(numbers: Numbers) -> Choice:
    """``u x_1 + (1 - u) x_0`` with ``u = clip(t / max(|d|, 1e-6), 0, 1)``.

    Source: the model card of QuartetAnemoi-70B.
    """
    return Choice(Everything(), Pull(numbers.number("t")))


def arcee_fusion(_numbers: Numbers) -> Choice:
    """``x_1`` where its importance is at least ``median + 1.5 (Q3 - Q1)``, else ``x_0``.

    Importance: ``|d|`` times the divergence of the row's softmax from the base's. Quantiles are
    exact, at index ``int(share * (n - 1))``. Source: Arcee's notes on mergekit 0.1.
    """
    return Choice(Important(), Join((1.0,)))


def fisher(numbers: Numbers) -> Choice:
    """``sum_i w_i F_i x_i / sum_i w_i F_i`` in each element, ``F_i`` the models' diagonals.

    ``F_i`` is at least ``epsilon``; where no model has any, the mean by ``w_i`` alone. Source:
    arXiv 2111.09832.
    """
    return Choice(Everything(), FisherMean(_given(numbers, "weight"), numbers.number("epsilon")))


def nuslerp_of_columns(numbers: Numbers) -> Choice | None:
    """An arc for each column of a matrix, along axis 0 as it is stored, where that is asked for."""
    if numbers.flag("nuslerp_flatten") or not numbers.flag("nuslerp_row_wise"):
        return None
    return Choice(Everything(), ColumnSums(partial(formulas.nuslerp, weights=numbers.weights)))


TRIMMED, DRAWN, OUTLIERS, RANKED = _trimmed, _drawn, _without_outliers, _ranked


def keeps_all(numbers: Numbers) -> bool:
    """Whether no element is left out by its density."""
    return all(density >= 1 for density in _densities(numbers))
