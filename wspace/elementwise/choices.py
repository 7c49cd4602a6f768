"""What an elementwise method does with a tensor, as data: which elements it keeps, and their join.

Formulas and sources are those of ``wspace.recipes.elementwise``, which makes these.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Everything:
    """Every element."""


@dataclass(frozen=True)
class Largest:
    """Of each model the ``densities[i]`` largest differences, less the ``outliers[i]`` largest.

    Shares of the tensor's ``n`` elements, as counts ``int(share * n)``; outliers give way where
    both do not fit. ``whole``: one threshold for the whole model, equal magnitudes all kept.
    """

    densities: tuple[float, ...]
    outliers: tuple[float, ...] = ()
    whole: bool = False

    def counts(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """How many of the largest are taken, and how many of those are dropped again."""
        taken, dropped = [], []
        for i, density in enumerate(self.densities):
            top = int(self.outliers[i] * n) if self.outliers and density < 1 else 0
            bottom = n - int(density * n) - top if density < 1 else 0
            if bottom < 0:
                top, bottom = top + bottom, 0
            taken.append(n - bottom)
            dropped.append(top)
        return np.array(taken, np.int64), np.array(dropped, np.int64)


@dataclass(frozen=True)
class Drawn:
    """Each element of model ``i`` with chance ``densities[i]``."""

    densities: tuple[float, ...]


@dataclass(frozen=True)
class Ranked:
    """Each element with a chance from ``density - epsilon`` to ``density + epsilon`` by its rank.

    Ranks are those of magnitudes in a line along axis 1; in tensors of one axis, in all of it.
    """

    densities: tuple[float, ...]
    epsilons: tuple[float, ...]


@dataclass(frozen=True)
class Above:
    """Differences whose magnitude is above ``size``."""

    size: float


@dataclass(frozen=True)
class Varied:
    """Where models differ most: the ``share`` of the places that have any variance."""

    share: float


@dataclass(frozen=True)
class Important:
    """Where ``|d|`` times the divergence of its row's softmax from the base's is an outlier."""


Keep = Everything | Largest | Drawn | Ranked | Above | Varied | Important


@dataclass(frozen=True)
class Join:
    """How what is kept becomes a difference from the base; see ``wkernels.masks.Joint``."""

    weights: tuple[float, ...]
    scale: float = 1.0
    elect: Literal["none", "sum", "signs"] = "none"
    weighted_votes: bool = True
    divide: Literal["", "weights", "count", "total"] = ""
    rescale: Literal["", "sums", "chances"] = ""  # to the sum of magnitudes before; by the chance
    by_square: float | None = None  # weights are mean squares; equal where those sum to less
    least: float = 0.0
    majority: bool = False  # what is undecided goes with most of the model
    alone: tuple[float, float, float] | None = None  # r, alpha, epsilon of RAM+


@dataclass(frozen=True)
class Pull:
    """Towards the one model, by at most ``reach`` in each element."""

    reach: float


@dataclass(frozen=True)
class FisherMean:
    """The mean of the models, weighted in each element by their Fisher diagonals; no base."""

    weights: tuple[float, ...]
    floor: float = 0.0


@dataclass(frozen=True)
class ColumnSums:
    """The sum of two models in which each column, along axis 0, has factors of its own.

    ``factors(grams)``: ``[width, 2]`` from the columns' inner products ``[width, 2, 2]``; those of
    differences where there is a base.
    """

    factors: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Choice:
    keep: Keep
    join: Join | Pull | FisherMean | ColumnSums

    @property
    def needs_chances(self) -> bool:
        """Whether what is kept is divided by its chance."""
        return isinstance(self.join, Join) and self.join.rescale == "chances"

    @property
    def densities(self) -> tuple[float, ...] | None:
        return getattr(self.keep, "densities", None)
