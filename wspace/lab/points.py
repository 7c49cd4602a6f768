"""Points of weight space: a mix of a zoo's models, perhaps with a random vector added, or scaled.

    theta = scale * (base + sum_i weights[i] * (theta_i - base) + direction)

A point is a few numbers until :func:`apply` makes its weights; the samplers here return points and
read no bytes. What they need to know of distances comes from the Gram matrix.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias

import torch

from wspace import mixing
from wspace.errors import WspaceError
from wspace.geometry import gram_matrix
from wspace.grams import Gram
from wspace.modules import ResidentZoo

Kind: TypeAlias = Literal["gaussian", "xavier", "xavier-uniform"]


@dataclass(frozen=True)
class Direction:
    """A random vector over all tensors of a zoo, of length ``norm``.

    ``kind``: what the tensors of two or more dimensions are drawn from. "gaussian": every element
    N(0, 1), which makes the direction uniform on the sphere. "xavier": N(0, 2 / (fan_in +
    fan_out)), "xavier-uniform": the same variance; then ``vectors`` says what the 1-D tensors are,
    N(0, 1 / length) or zero. The whole vector is scaled to ``norm`` at the end.

    Each tensor's draw follows from ``seed`` and its name, so the order of the shards plays no part.
    Source: the paper (arXiv 2302.04863), section 3.1 and appendix F.
    """

    seed: int
    norm: float
    kind: Kind = "xavier"
    vectors: Literal["gaussian", "zero"] = "gaussian"

    def draw(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
        """The vector as a state dict, float32 on the CPU. Raises WspaceError if all of it is 0."""
        parts = {name: self._part(name, tuple(shape)) for name, shape in shapes.items()}
        norms = [torch.linalg.vector_norm(part.double()) for part in parts.values()]
        length = math.sqrt(math.fsum(float(norm) ** 2 for norm in norms))
        if length == 0:
            raise WspaceError(
                f"a random direction of kind {self.kind!r} over {len(parts)} tensors is zero; use "
                "vectors='gaussian'"
            )
        return {name: part.mul_(self.norm / length) for name, part in parts.items()}

    def _part(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        if self.kind == "xavier-uniform" and len(shape) > 1:
            # uniform on [-sqrt(3), sqrt(3)] has variance 1
            part = torch.rand(shape, generator=generator).sub_(0.5).mul_(math.sqrt(12))
        else:
            part = torch.randn(shape, generator=generator)
        if self.kind == "gaussian":
            return part
        if len(shape) < 2:
            return part.mul_(0 if self.vectors == "zero" else 1 / math.sqrt(max(part.numel(), 1)))
        window = math.prod(shape[2:])
        return part.mul_(math.sqrt(2 / max((shape[0] + shape[1]) * window, 1)))


@dataclass(frozen=True)
class Point:
    """``scale * (base + sum_i weights[i] * (theta_i - base) + direction)``."""

    weights: tuple[float, ...]  # one for each member of the zoo
    direction: Direction | None = None
    scale: float = 1.0


def points(rows: torch.Tensor) -> list[Point]:
    """A point for each row of mixing weights ``[n_mixes, n]``."""
    return [Point(tuple(row)) for row in rows.tolist()]


def apply(point: Point, resident: ResidentZoo) -> dict[str, torch.Tensor]:
    """The point's weights: a state dict in float32, on the resident zoo's device."""
    (state,) = resident.mix([point.weights], dtype="float32")
    _finish(point, state)
    return state


def apply_into(point: Point, resident: ResidentZoo, module: torch.nn.Module) -> tuple[str, ...]:
    """The point's weights into a module's tensors; returns the names of those that stay."""
    untouched = resident.mix_into(module, [point.weights])
    state = module.state_dict()
    _finish(point, {tensor.name: state[tensor.name] for tensor in resident.zoo.tensors})
    return untouched


def _finish(point: Point, state: dict[str, torch.Tensor]) -> None:
    if point.direction is not None:
        drawn = point.direction.draw({name: tensor.shape for name, tensor in state.items()})
        for name, part in drawn.items():
            state[name].add_(part.to(state[name].device))
    if point.scale != 1:
        for tensor in state.values():
            tensor.mul_(point.scale)


def length(point: Point, resident: ResidentZoo) -> float:
    """``||theta||``, from zero and not from the base: the one length that no Gram matrix holds."""
    parts = [torch.linalg.vector_norm(t.double()) for t in apply(point, resident).values()]
    return math.sqrt(math.fsum(float(part) ** 2 for part in parts))


def line(n: int, pair: tuple[int, int], alphas: Sequence[float]) -> list[Point]:
    """``alpha * theta_a + (1 - alpha) * theta_b``, a point for each alpha.

    Source: the paper, section 5.1.
    """
    return points(mixing.lerp([1 - alpha for alpha in alphas], n, pair=pair))


def extrapolation_alphas(steps: int = 10, limit: float = 32.0) -> list[float]:
    """Alphas outside [0, 1], both sides: ``limit ** (k / (steps - 1))``, and 1 minus each.

    Ascending, ``2 * steps`` of them; 0 and 1 are among them. Source: the paper, section 6.1, whose
    10 steps go from 1 to 32 and from 0 to -31.
    """
    right = [limit ** (k / (steps - 1)) for k in range(steps)]
    return [1 - alpha for alpha in reversed(right)] + right


def vertex(n: int, member: int) -> Point:
    """A model of the zoo."""
    return Point(tuple(float(i == member) for i in range(n)))


def origin(n: int) -> Point:
    """The base."""
    return Point((0.0,) * n)


def centroid(n: int, members: Sequence[int]) -> Point:
    """The plain average of some models of the zoo. Source: the paper, section 7."""
    (row,) = mixing.centroids([i in set(members) for i in range(n)])[-1:].tolist()
    return Point(tuple(row))


def centroid_of_groups(labels: Sequence[str | None]) -> Point:
    """The average of the groups' averages: each group counts the same, whatever its models.

    ``labels``: one for each model; None leaves it out. The paper's start for a target is this with
    the target's own models left out. Source: the paper, section 7.
    """
    groups = sorted({label for label in labels if label is not None})
    if not groups:
        raise WspaceError("a centroid of no models: every one of them is left out")
    sizes = {group: sum(label == group for label in labels) for group in groups}
    return Point(
        tuple(0.0 if label is None else 1 / (len(groups) * sizes[label]) for label in labels)
    )


def hull(
    n: int,
    members: Sequence[int],
    count: int,
    *,
    seed: int = 0,
    law: Literal["dirichlet", "normalised-uniform"] = "dirichlet",
    concentration: float = 1.0,
) -> list[Point]:
    """``count`` points drawn inside the convex hull of some models.

    Dirichlet(1) is uniform on the hull of affinely independent models; "normalised-uniform" draws
    numbers in [0, 1) and divides by their sum, which is more central. Source: the paper, section
    5.2, which does not say which law it used.
    """
    import numpy as np

    draw = np.random.default_rng(seed)
    shape = (count, len(members))
    if law == "dirichlet":
        # gamma draws over their sum are Dirichlet; a row is whole however small its numbers
        drawn = draw.dirichlet([concentration] * len(members), size=count)
    else:
        drawn = draw.random(shape)
    rows = torch.zeros(count, n, dtype=torch.float64)
    rows[:, list(members)] = torch.from_numpy(drawn / drawn.sum(axis=1, keepdims=True))
    return points(rows)


def random_directions(
    center: Point, radius: float, factors: Sequence[float], seeds: Sequence[int], **kind: Any
) -> list[Point]:
    """``center + factor * radius * u``: for each seed a unit vector u, and along it each factor.

    ``kind`` and ``vectors`` as of :class:`Direction`. Source: the paper, appendix F.
    """
    return [
        replace(center, direction=Direction(seed, factor * radius, **kind))
        for seed in seeds
        for factor in factors
    ]


def outward(center: Point, member: Point, gram: Gram, distances: Sequence[float]) -> list[Point]:
    """From the center through a model and on: points at these distances from the center."""
    start, end = (torch.tensor(point.weights, dtype=torch.float64) for point in (center, member))
    step = end - start
    size = float((step @ gram_matrix(gram) @ step).sqrt())
    return points(torch.stack([start + step * (distance / size) for distance in distances]))


def towards_origin(center: Point, norm: float, distances: Sequence[float]) -> list[Point]:
    """``center * (1 - distance / norm)``: towards the zero of weight space.

    ``norm``: the center's own, as :func:`length` gives it. Source: the paper, appendix F.
    """
    return [replace(center, scale=center.scale * (1 - distance / norm)) for distance in distances]


class Plane(NamedTuple):
    """A square grid in the plane of three models, in distances from the first of them."""

    points: list[Point]  # row by row: y outer, x inner
    x: list[float]
    y: list[float]
    corners: list[tuple[float, float]]  # of the three models


def plane(
    gram: Gram, members: tuple[int, int, int], *, grid: int = 9, margin: float = 0.35
) -> Plane:
    """The plane through three models, with ``grid * grid`` points of it.

    The first model is at 0, the second on the x axis, the third at positive y: Gram-Schmidt on the
    two differences, done on inner products alone. ``margin``: how far the grid goes beyond the
    models, as a share of their extent. Raises WspaceError if the three lie on a line.
    Source: Garipov et al., arXiv 1802.10026.
    """
    matrix = gram_matrix(gram)
    rows = torch.zeros(3, len(matrix), dtype=torch.float64)
    rows[[0, 1, 2], list(members)] = 1
    along, across = rows[1] - rows[0], rows[2] - rows[0]
    side = float((along @ matrix @ along).sqrt())
    foot = float(across @ matrix @ along) / (side or 1)
    upright = across - along * (foot / (side or 1))
    height = float((upright @ matrix @ upright).clamp_min(0).sqrt())
    if height <= 1e-6 * side or side == 0:
        names = ", ".join(gram.members[i] for i in members)
        raise WspaceError(f"{names}: these three models lie on a line; a plane needs three corners")
    corners = [(0.0, 0.0), (side, 0.0), (foot, height)]
    x, y = (_axis([corner[axis] for corner in corners], margin, grid) for axis in (0, 1))
    table = [rows[0] + along * (at / side) + upright * (up / height) for up in y for at in x]
    return Plane(points(torch.stack(table)), x, y, corners)


def _axis(values: Sequence[float], margin: float, grid: int) -> list[float]:
    extent = max(values) - min(values)
    first, last = min(values) - margin * extent, max(values) + margin * extent
    return [first + (last - first) * k / (grid - 1) for k in range(grid)]
