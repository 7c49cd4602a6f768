"""Groups of models, from the Gram matrix alone: k-means in kernel form, and spectral clustering."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch

from wspace.geometry.metrics import cosines, directions, gram_matrix, squared_distances
from wspace.grams import Gram

# Of the largest squared norm: smaller leads decide nothing, so that ties fall alike everywhere.
TIE = 1e-12
MAX_ITERATIONS = 10_000


class Clusters(NamedTuple):
    """A partition of the zoo into ``k`` groups, none empty."""

    labels: torch.Tensor  # int64 [n]; numbered 0 to k - 1 in order of first appearance
    weights: torch.Tensor  # float64 [k, n]; mixing weights of each group's plain average
    inertia: float  # sum of squared distances to the centroids, in the space clustered in
    iterations: int  # of the restart that was kept


def kmeans(
    gram: Gram | torch.Tensor, k: int, *, seed: int = 0, restarts: int = 10, normalize: bool = False
) -> Clusters:
    """Groups with the least sum of squared distances to their averages, as far as restarts find it.

    Lloyd's iteration from greedy k-means++ starts, the best of ``restarts``. Where it stops,
    Hartigan's moves of one model at a time go on. Task vectors need them: they are nearly
    orthogonal, so that each is nearest to the centroid it is part of, and Lloyd alone never moves.
    A distance to a centroid needs no centroid: ``d(i, c)^2 = mean_j d_ij^2 - mean_jl d_jl^2 / 2``
    over its members. With ``normalize`` the task vectors are first scaled to length 1, which
    clusters by angle (those of zero stay zero); the weights returned are still plain averages.

    Copies of a model are parted only where ``k`` exceeds the number of distinct models. Sums run in
    a fixed order, and leads below 1e-12 of the largest squared norm decide nothing: one ``seed``
    gives the same clusters on every machine. Raises ValueError for ``k`` out of range.
    """
    points = directions(gram) if normalize else gram_matrix(gram)
    return _cluster(points, k, seed, restarts)


def spectral_clustering(
    gram: Gram | torch.Tensor,
    k: int,
    *,
    seed: int = 0,
    restarts: int = 10,
    affinity: Literal["clipped", "shifted"] = "clipped",
) -> Clusters:
    """Groups that cosine similarity connects: k-means on the ``k`` lowest Laplacian eigenvectors.

    Affinity ``A_ij = max(cos_ij, 0)`` ("clipped") or ``(1 + cos_ij) / 2`` ("shifted"), without the
    diagonal; Laplacian ``1 - D^-1/2 A D^-1/2``; the rows of ``D^-1/2 U`` are clustered, as in
    scikit-learn's SpectralClustering. A model with no affinity to any other is a component of its
    own. With more components than ``k`` the eigenvectors, and so the groups, are not unique.

    ``inertia`` is that of the rows clustered. Raises ValueError for ``k`` out of range.
    Source: the paper (arXiv 2302.04863), section 4, which does not say which affinity it used.
    """
    similar = cosines(gram)
    _check_count(k, len(similar))
    if affinity not in ("clipped", "shifted"):
        raise ValueError(f"affinity is {affinity!r}: expected 'clipped' or 'shifted'")
    linked = similar.clamp_min(0) if affinity == "clipped" else (1 + similar) / 2
    linked.fill_diagonal_(0)
    degrees = linked.sum(dim=1)
    roots = torch.where(degrees > 0, degrees, 1).sqrt()
    laplacian = torch.diag((degrees > 0).double()) - linked / (roots[:, None] * roots)
    rows = torch.linalg.eigh(laplacian).eigenvectors[:, :k] / roots[:, None]
    return _cluster(rows @ rows.T, k, seed, restarts)


def _check_count(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}, but the zoo has {n} models: choose 1 to {n}")


def _cluster(points: torch.Tensor, k: int, seed: int, restarts: int) -> Clusters:
    _check_count(k, len(points))
    if restarts < 1:
        raise ValueError(f"restarts is {restarts}: expected 1 or more")
    tie = TIE * float(points.diagonal().max())
    squared = squared_distances(points)
    generator = torch.Generator().manual_seed(seed)
    best, least, iterations = torch.zeros(0), math.inf, 0
    for _ in range(restarts):
        starts = _plus_plus(squared, k, tie, generator)
        labels, steps = _settled(squared, k, tie, starts)
        inertia = _inertia(squared, labels, k)
        if inertia < least - tie:
            best, least, iterations = labels, inertia, steps
    numbers = {label: number for number, label in enumerate(dict.fromkeys(best.tolist()))}
    labels = torch.tensor([numbers[label] for label in best.tolist()])
    members = torch.nn.functional.one_hot(labels, k).T.double()
    return Clusters(labels, members / members.sum(dim=1, keepdim=True), least, iterations)


def _settled(
    squared: torch.Tensor, k: int, tie: float, starts: list[int]
) -> tuple[torch.Tensor, int]:
    """Labels that no model gains by leaving, and the number of iterations."""
    labels = _filled(squared, _first_least(squared[:, starts], tie), k, tie)
    for iteration in range(1, MAX_ITERATIONS + 1):
        to_centroids = _to_centroids(squared, labels, k)
        own = to_centroids.gather(1, labels[:, None])[:, 0]
        moving = to_centroids.amin(dim=1) < own - tie
        if moving.any():
            nearest = _first_least(to_centroids, tie)
            labels = _filled(squared, torch.where(moving, nearest, labels), k, tie)
            continue
        # what leaving saves and joining costs once the centroids have followed
        sizes = labels.bincount(minlength=k).double()
        others = sizes[labels] - 1
        saved = torch.where(others > 0, own * sizes[labels] / others, 0)
        cost = (to_centroids * sizes / (sizes + 1)).scatter(1, labels[:, None], math.inf)
        gain = saved - cost.amin(dim=1)
        if gain.max() <= tie:
            return labels, iteration
        model = _first_least(-gain, tie)
        labels[model] = _first_least(cost[model], tie)
    return labels, MAX_ITERATIONS


def _first_least(values: torch.Tensor, tie: float) -> torch.Tensor:
    """Index of the first value along the last axis that is least, or above it by rounding only."""
    return (values <= values.amin(dim=-1, keepdim=True) + tie).byte().argmax(dim=-1)


def _plus_plus(squared: torch.Tensor, k: int, tie: float, generator: torch.Generator) -> list[int]:
    """Greedy k-means++: of some models drawn by squared distance, the one that leaves the least."""

    def draw(count: int) -> torch.Tensor:
        return torch.rand(count, generator=generator, dtype=torch.float64)

    n = len(squared)
    starts = [int(draw(1) * n)]
    nearest = squared[starts[0]]
    for _ in range(1, k):
        summed = nearest.cumsum(dim=0)
        # right: never a model at distance 0, which adds nothing to the running sum
        drawn = torch.searchsorted(summed, draw(2 + int(math.log(k))) * summed[-1], right=True)
        drawn = drawn.clamp_max(n - 1)
        remaining = torch.minimum(nearest, squared[drawn])
        starts.append(int(drawn[_first_least(remaining.cumsum(dim=1)[:, -1], tie)]))
        nearest = torch.minimum(nearest, squared[starts[-1]])
    return starts


def _filled(squared: torch.Tensor, labels: torch.Tensor, k: int, tie: float) -> torch.Tensor:
    """Each empty cluster takes the model that is farthest from the centroid of its own."""
    labels = labels.clone()
    for cluster in range(k):
        sizes = labels.bincount(minlength=k)
        if not sizes[cluster]:
            own = _to_centroids(squared, labels, k).gather(1, labels[:, None])[:, 0]
            labels[_first_least(torch.where(sizes[labels] > 1, -own, math.inf), tie)] = cluster
    return labels


def _sums(squared: torch.Tensor, labels: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared distances summed over each cluster's members ``[k, n]``, and its pairs ``[k]``."""
    # index_add: one fixed order of additions, whatever the threads or the vector width
    sums = squared.new_zeros(k, len(squared)).index_add_(0, labels, squared)
    within = sums.gather(0, labels[None])[0]
    return sums, squared.new_zeros(k).index_add_(0, labels, within)


def _to_centroids(squared: torch.Tensor, labels: torch.Tensor, k: int) -> torch.Tensor:
    """Squared distances ``[n, k]``; for an empty cluster 0, a value nobody may use."""
    sums, pairs = _sums(squared, labels, k)
    sizes = labels.bincount(minlength=k).clamp_min(1).double()
    return (sums / sizes[:, None] - (pairs / (2 * sizes * sizes))[:, None]).T


def _inertia(squared: torch.Tensor, labels: torch.Tensor, k: int) -> float:
    _, pairs = _sums(squared, labels, k)
    return math.fsum((pairs / (2 * labels.bincount(minlength=k))).tolist())
