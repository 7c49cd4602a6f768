"""Linear methods as mixing weights: small float64 matrices, made before any byte is read.

Row ``j`` of a ``[n_mixes, n]`` matrix stands for the model
``base + sum_i weights[j, i] * (theta_i - base)``; ``torch.cat`` stacks the rows of several methods
into one pass. Rows may leave the convex hull. Errors are ``ValueError``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from wspace.geometry import gram_matrix
from wspace.grams import Gram

Numbers = float | Sequence[float] | Sequence[Sequence[float]] | np.ndarray | torch.Tensor
Labels = Sequence[int] | Sequence[str] | np.ndarray | torch.Tensor

# Below this angle an arc and its chord agree beyond float64's resolution of the cosine.
PARALLEL_RADIANS = 1e-7
# Closer than this to opposite, the plane of the arc is made of rounding errors.
OPPOSITE_RADIANS = 1e-4


def uniform(n: int) -> torch.Tensor:
    """The plain average, or soup: ``1 / n`` for each of ``n`` models.

    Returns float64 ``[1, n]``. Source: Model soups, arXiv 2203.05482.
    """
    return torch.full((1, _zoo_size(n)), 1 / n, dtype=torch.float64)


def lerp(t: Numbers, n: int = 2, *, pair: tuple[int, int] = (0, 1)) -> torch.Tensor:
    """Points of the line through two models: ``(1 - t) * theta_a + t * theta_b``, a row for each t.

    ``t``: a number or ``[n_mixes]`` numbers; 0 is the first model of ``pair``, 1 the second, and
    values outside [0, 1] extrapolate. ``pair``: their indices in a zoo of ``n``.

    Returns float64 ``[n_mixes, n]``, zero elsewhere. Source: the paper (arXiv 2302.04863), sections
    5.1 and 6.1, whose alpha is ``1 - t``.
    """
    steps = _steps(t)
    return _placed(1 - steps, steps, _zoo_size(n), pair)


def slerp(gram: Gram | torch.Tensor, t: Numbers, *, pair: tuple[int, int] = (0, 1)) -> torch.Tensor:
    """Points of the arc between two task vectors at angle ``a`` (seen from the base)::

        sin((1 - t) a) / sin(a) * tau_first + sin(t a) / sin(a) * tau_second

    The task vectors are not normalised, so the length moves between theirs. ``t`` and ``pair`` as
    in :func:`lerp`; the zoo's size comes from ``gram``, whose rows must be task vectors. The rows
    do not sum to 1: mixing them needs the base.

    Returns float64 ``[n_mixes, n]``. Angles under 1e-7 give :func:`lerp`'s rows, from which the
    arc's differ less there than the cosine's rounding. Raises ValueError where no one arc exists: a
    task vector of zero, or two within 1e-4 of opposite directions; and for a Gram without a base.
    Source: Shoemake 1985; of task vectors, WARP, arXiv 2406.16768.
    """
    steps = _steps(t)
    if isinstance(gram, Gram) and not gram.has_base:
        raise ValueError("slerp turns task vectors, but gram has no base: pass base= to open_zoo")
    matrix = gram_matrix(gram)
    first, second = _pair(pair, len(matrix))
    lengths = {i: math.sqrt(float(matrix[i, i])) for i in (first, second)}
    for i, length in lengths.items():
        if length == 0:
            raise ValueError(
                f"model {i} equals the base: its task vector has no direction, so there is no arc; "
                "use lerp"
            )
    cosine = float(matrix[first, second]) / lengths[first] / lengths[second]
    angle = math.acos(min(1.0, max(-1.0, cosine)))
    if angle < PARALLEL_RADIANS:
        return lerp(steps, len(matrix), pair=(first, second))
    if math.pi - angle < OPPOSITE_RADIANS:
        raise ValueError(
            f"models {first} and {second} point in opposite directions from the base (cosine "
            f"{cosine:.10f}): no single arc joins them; use lerp"
        )
    # math.sin, number by number: a vectorised sine would miss 1 at the ends by its last bit
    sine, at = math.sin(angle), steps.tolist()
    starts = torch.tensor([math.sin((1 - t) * angle) / sine for t in at], dtype=torch.float64)
    ends = torch.tensor([math.sin(t * angle) / sine for t in at], dtype=torch.float64)
    return _placed(starts, ends, len(matrix), (first, second))


def task_arithmetic(n: int, scales: Numbers) -> torch.Tensor:
    """Scaled task vectors added to the base: ``base + sum_i scales[i] * (theta_i - base)``.

    ``scales``: one number for every model, ``[n]`` numbers (one for each model; negative ones
    subtract a task), ``[n_mixes, n]`` for several mixes, or a column ``[n_mixes, 1]`` of numbers
    that each hold for every model.

    Returns float64 ``[n_mixes, n]``. Source: Task arithmetic, arXiv 2212.04089.
    """
    values, n = _finite("scales", scales), _zoo_size(n)
    rows = values if values.ndim == 2 else values.reshape(1, -1)
    columns = (n,) if values.ndim == 1 else (1, n)
    if values.ndim > 2 or not len(rows) or rows.shape[1] not in columns:
        raise ValueError(
            f"scales: expected one number, [{n}] numbers (one for each model), [n_mixes, {n}] or a "
            f"column [n_mixes, 1], got shape {list(values.shape)}"
        )
    return rows.expand(-1, n).clone()


def centroids(labels: Labels) -> torch.Tensor:
    """The plain average of each group of models: ``1 / n_members`` for its members, 0 elsewhere.

    ``labels``: one for each model, numbers or strings. Returns float64 ``[n_groups, n]``, a row for
    each distinct label in ascending order. Source: the paper (arXiv 2302.04863), section 7.
    """
    members, _ = _members(labels)
    return members / members.sum(dim=1, keepdim=True)


def leave_group_out(labels: Labels, *, groups_equally: bool = False) -> torch.Tensor:
    """For each group, the average of all models that are not in it.

    The paper's start for a target dataset: the centroid of models that never saw it. Models count
    equally; with ``groups_equally`` groups do, whatever their number of models.

    ``labels`` as in :func:`centroids`. Returns float64 ``[n_groups, n]``, a row for each label left
    out, ascending. Raises ValueError if there is only one group.
    Source: the paper (arXiv 2302.04863), section 7 and appendix H.
    """
    members, groups = _members(labels)
    if len(members) == 1:
        raise ValueError(
            f"labels: every model is in group {groups[0]!r}; leaving it out leaves none"
        )
    sizes = members.sum(dim=1, keepdim=True)
    # a sum over the others, not total minus own: exact zeros for the group left out
    others = 1 - torch.eye(len(members), dtype=torch.float64)
    if groups_equally:
        return others @ (members / sizes) / (len(members) - 1)
    return others @ members / (members.shape[1] - sizes)


def _finite(name: str, values: Numbers) -> torch.Tensor:
    try:
        numbers = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: expected numbers, got {values!r} ({error})") from None
    if not numbers.isfinite().all():
        raise ValueError(f"{name}: expected finite numbers, got {values!r}")
    return numbers


def _steps(t: Numbers) -> torch.Tensor:
    steps = _finite("t", t)
    if steps.ndim > 1 or not steps.numel():
        raise ValueError(
            "t: expected a number or [n_mixes] numbers, at least one, got shape "
            f"{list(steps.shape)}"
        )
    return steps.reshape(-1)


def _zoo_size(n: int) -> int:
    if n < 1:
        raise ValueError(f"n is {n}: expected the number of models in the zoo, at least 1")
    return n


def _pair(pair: tuple[int, int], n: int) -> tuple[int, int]:
    if len(pair) != 2 or pair[0] == pair[1] or not all(0 <= i < n for i in pair):
        raise ValueError(
            f"pair is {tuple(pair)}, but the zoo has {n} models: expected two different indices "
            f"from 0 to {n - 1}"
        )
    return pair


def _placed(
    first: torch.Tensor, second: torch.Tensor, n: int, pair: tuple[int, int]
) -> torch.Tensor:
    rows = torch.zeros(len(first), n, dtype=torch.float64)
    rows[:, list(_pair(pair, n))] = torch.stack([first, second], dim=1)
    return rows


def _members(labels: Labels) -> tuple[torch.Tensor, list]:
    """1 where a model is in a group, ``[n_groups, n]``, and the groups' labels, ascending."""
    try:
        plain = [x.item() if isinstance(x, torch.Tensor | np.generic) else x for x in labels]
        distinct = set(plain)
        if any(label != label for label in distinct):
            raise TypeError("NaN is no label")
        groups = sorted(distinct)
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"labels: expected a number or string for each model ({error})") from None
    if not groups:
        raise ValueError("labels: expected one for each model, got none")
    inside = [[label == group for label in plain] for group in groups]
    return torch.tensor(inside, dtype=torch.float64), groups
