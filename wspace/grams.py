"""The passes whose results are n x n: the Gram matrix, direct distances, and statistics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from wkernels import moments, ops
from wspace.devices import Device, device_named
from wspace.errors import NonFiniteError, WspaceError
from wspace.lora import rank_products
from wspace.passes import TensorSums, sum_over_tensors
from wspace.placement import choose, products_job, statistics_job
from wspace.sizes import parse_bytes
from wspace.storage.fingerprints import digest_of, fingerprint
from wspace.stream import Chunk, Progress
from wspace.team import ADAPTERS_ALONE, ALONE, Team
from wspace.zoo import Zoo, open_zoo

EXACT = 1e-14
"""Error of an inner product from float32 differences and float64 sums, of its two rows' norms."""


@dataclass(frozen=True)
class Gram:
    """Inner products of task vectors: everything that distances and angles are made of."""

    total: torch.Tensor  # float64 [n, n]
    per_tensor: torch.Tensor | None  # float64 [n_tensors, n, n]
    tensors: tuple[str, ...]  # names, in per_tensor's order
    members: tuple[str, ...]  # names of the models
    has_base: bool  # rows are differences from the base; else they are the weights themselves
    left_out: dict[str, str]  # tensors that took no part, and why
    error: float = EXACT  # of an entry, relative to the norms of its two rows


def gram(
    zoo: Zoo,
    *,
    per_tensor: bool = True,
    device: str = "auto",
    memory: int | str = "1GiB",
    allow_non_finite: bool = False,
    progress: Progress | None = None,
    team: Team = ALONE,
) -> Gram:
    """Gram matrix of the task vectors: ``G[i, j] = <theta_i - base, theta_j - base>``.

    One pass over the bytes: each is read once. Without a base the rows are the weights themselves.
    ``per_tensor`` keeps the matrix of every tensor too (``n_tensors * n * n`` doubles). ``memory``
    bounds what the pass holds, results included. ``progress(done, total)`` counts bytes. A ``team``
    of processes divides the parameters (see ``wspace.ranks``), and each returns the same bits.

    Numerics: differences in float32 (float64 where an input is), products and sums in float64; the
    sum over tensors, and over a large tensor's spans of 2**20 elements, in twice float64's
    precision, so that the bits do not depend on the order of tensors, the shard layout, the chunks,
    the threads or the processes.
    Raises NonFiniteError naming a tensor with NaN or Inf, unless allowed; BudgetError; DeviceError.
    """
    worker = device_named(choose(device, products_job(zoo, len(zoo))).name)
    based = zoo.base is not None

    def add(chunk: Chunk, segments: np.ndarray, sums: np.ndarray) -> None:
        worker.products("dot", chunk, segments, sums, based=based)

    def finite(sums: np.ndarray) -> bool:
        return bool(np.isfinite(np.diagonal(sums, axis1=1, axis2=2)).all())

    check = None if allow_non_finite else finite
    if zoo.adapters:
        if team.share.n > 1:
            raise WspaceError(ADAPTERS_ALONE)
        sums = _of_adapters(zoo, parse_bytes(memory), per_tensor, check)
    else:
        what = "Gram matrix"
        sums = _square(zoo, add, worker, memory, per_tensor, what, check, progress, team)
    return gram_from(zoo, sums if per_tensor else sums._replace(per_tensor=None))


def gram_from(zoo: Zoo, sums: TensorSums) -> Gram:
    """Sums of products as a Gram matrix."""
    others = {t.name: f"{t.dtypes[0]} is not floating point" for t in zoo.copied}
    return Gram(
        total=torch.from_numpy(sums.total),
        per_tensor=None if sums.per_tensor is None else torch.from_numpy(sums.per_tensor),
        tensors=tuple(tensor.name for tensor in zoo.tensors),
        members=zoo.names,
        has_base=zoo.has_origin,
        left_out=zoo.left_out | others,
    )


def inputs_of(zoo: Zoo) -> str:
    """A digest of what a Gram matrix follows from: the files, as they are, and the tensors."""
    names = [tensor.name for tensor in zoo.tensors]
    members = [str(member) for member in zoo.members]
    return digest_of(fingerprint({"members": members}, zoo.checkpoints, tensors=names))


def pairwise_distances(
    zoo: Zoo,
    *,
    metric: str = "l2",
    device: str = "auto",
    memory: int | str = "1GiB",
    progress: Progress | None = None,
    team: Team = ALONE,
) -> torch.Tensor:
    """Distances between all members by direct difference, in one pass: float64 ``[n, n]``.

    ``l2``: the Euclidean distance. ``l1``: the mean absolute difference of their weights. The base
    plays no part, so pairs much closer to each other than to the base are exact too; that is what
    :func:`refine` uses it for.
    """
    if metric not in ("l1", "l2"):
        raise ValueError(f"metric: expected 'l1' or 'l2', got {metric!r}")
    worker = device_named(choose(device, products_job(zoo, len(zoo))).name)

    def add(chunk: Chunk, segments: np.ndarray, sums: np.ndarray) -> None:
        worker.products(metric, chunk, segments, sums, based=False)

    total = _square(zoo, add, worker, memory, False, "distances", None, progress, team).total
    return torch.from_numpy(np.sqrt(total) if metric == "l2" else total / zoo.numel)


def refine(
    distances: torch.Tensor,
    gram: Gram,
    zoo: Zoo,
    *,
    memory: int | str = "1GiB",
    team: Team = ALONE,
) -> torch.Tensor:
    """Euclidean distances with those of near-duplicates recomputed by direct difference.

    Reads only the models that have a close neighbour, and nothing if none has: squared distances
    below ``1e4 * gram.error`` of the two squared norms (1e-10 of an exact matrix, in which 0 is 0).
    What is kept has about four right digits.
    """
    close = ops.close_pairs(gram.total, error=gram.error)
    if gram.error <= EXACT:  # else what is 0 may have been lost
        close &= distances > 0
    involved = torch.nonzero(close.any(dim=1)).flatten().tolist()
    if not involved:
        return distances
    patterns = {name.replace("[", "[[]") for name in gram.left_out if name in zoo.left_out}
    part = open_zoo([zoo.members[i] for i in involved], exclude=sorted(patterns))
    exact = pairwise_distances(part, memory=memory, team=team)
    refined = distances.clone()
    for a, i in enumerate(involved):
        for b, j in enumerate(involved):
            if close[i, j]:
                refined[i, j] = exact[a, b]
    return refined


@dataclass(frozen=True)
class Statistics:
    """Statistics of each member (and the base, last), float64: ``[n]``, or ``[n_tensors, n]``.

    NaN and Inf are left out of all but their count.
    """

    norm: np.ndarray
    mean: np.ndarray
    max_abs: np.ndarray
    kurtosis: np.ndarray  # 3 for a normal distribution
    non_finite: np.ndarray  # how many elements are NaN or Inf
    changed: np.ndarray  # share of elements that differ from the base (NaN without one)


def statistics(
    zoo: Zoo,
    *,
    per_tensor: bool = False,
    device: str = "auto",
    memory: int | str = "1GiB",
    progress: Progress | None = None,
) -> Statistics:
    """Norm, mean, max |x|, kurtosis, NaN/Inf count and share changed, of all models in one read."""
    worker = device_named(choose(device, statistics_job(zoo)).name)
    n = len(zoo.checkpoints)

    def add(chunk: Chunk, segments: np.ndarray, sums: np.ndarray) -> None:
        worker.row_moments(chunk, segments, sums, based=zoo.base is not None)

    sums = sum_over_tensors(
        zoo, range(n), (n, moments.N), add, worker=worker, budget=parse_bytes(memory), keep=True,
        what="statistics", progress=progress,
    )  # fmt: skip
    assert sums.per_tensor is not None
    has_base = zoo.base is not None
    if per_tensor:
        tables = [
            moments.statistics(table, tensor.numel, has_base=has_base)
            for table, tensor in zip(sums.per_tensor, zoo.tensors, strict=True)
        ]
        return Statistics(*(np.stack(columns) for columns in zip(*tables, strict=True)))
    total = sums.total
    total[:, moments.MAX_ABS] = sums.per_tensor[:, :, moments.MAX_ABS].max(axis=0)
    return Statistics(*moments.statistics(total, zoo.numel, has_base=has_base))


def _of_adapters(zoo: Zoo, budget: int, keep: bool, check) -> TensorSums:
    """The same of adapters alone, from their factors."""
    products = rank_products(zoo, budget)
    if check and not check(products):
        raise NonFiniteError(
            f"an adapter of {', '.join(zoo.names[:3])}{' ...' if len(zoo) > 3 else ''} has NaN or "
            "Inf; allow it with --allow-non-finite"
        )
    return TensorSums(products if keep else None, products.sum(axis=0))


def _square(
    zoo: Zoo, add, worker: Device, memory, keep, what, check, progress, team: Team
) -> TensorSums:
    if team.share.n > 1:
        team.agree("input files (names, sizes, times of change, headers)", inputs_of(zoo))
    # the base is read only where it is the origin
    rows = range(len(zoo.checkpoints) if what == "Gram matrix" else len(zoo))
    return sum_over_tensors(
        zoo, rows, (len(zoo), len(zoo)), add, worker=worker, budget=parse_bytes(memory), keep=keep,
        what=what, check=check, progress=progress, additive=True, team=team,
    )  # fmt: skip
