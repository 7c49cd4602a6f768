"""Do models cluster by what they were trained on? Everything here follows from the Gram matrix.

Source: the paper (arXiv 2302.04863), section 4, Figure 2, Table 1, appendix D.
"""

from __future__ import annotations

import contextlib
import fnmatch
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from wspace import geometry
from wspace.errors import WspaceError
from wspace.grams import gram
from wspace.lab.experiments.context import Context
from wspace.lab.records import plain
from wspace.lab.statistics import cluster_scores, spread

# Above it t-SNE's exact gradient, whose bits do not depend on the threads, takes too long.
EXACT_TSNE = 400

SPLITS = ("validation", "test")


def run(context: Context) -> dict[str, Any]:
    """Clusters of the models by data set and by family, in every way the paper names and some more.

    Returns ``runs`` (one for each question, metric and method), the ``cosines`` within and between
    groups, ``per_layer`` and ``per_tensor`` scores, and the models that took no part.
    """
    settings = context.settings.clusters
    assert settings is not None
    kept, left_out = _kept(context)
    tasks = [context.task_of[i] for i in kept]
    families = [context.family_of[i] for i in kept]
    names = [context.gram.members[i] for i in kept]
    tensors = [
        k
        for k, name in enumerate(context.gram.tensors)
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in settings.exclude)
    ]
    centred = _part(_total(context, tensors), kept)
    context.progress("clusters: one more read, for cosines of the weights themselves")
    raw = _part(gram(replace(context.zoo, base=None), per_tensor=False).total, kept)
    with _one_thread():
        runs, skipped = _runs(context, centred, raw, (names, tasks, families))
        layers = _layers(context, tensors, kept, tasks, settings.seed)
    chosen = {context.gram.tensors[k] for k in tensors}
    return plain(
        {
            "runs": runs,
            "affinities_agree": _affinities_agree(runs),
            "cosines": _contrast(geometry.cosines(centred), tasks, families),
            "raw_cosines": _contrast(geometry.cosines(raw), tasks, families),
            "norms": _by_group(geometry.norms(centred).tolist(), tasks),
            **layers,
            "left_out": left_out | skipped,
            "tensors_left_out": sorted(set(context.gram.tensors) - chosen),
        }
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """On n x n numbers threads wait for each other longer than they work."""
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)


def _runs(
    context: Context, centred: torch.Tensor, raw: torch.Tensor, known: tuple[list[str], ...]
) -> tuple[list[dict], dict[str, str]]:
    """A result for each question, metric and method, and why some questions are not asked."""
    settings = context.settings.clusters
    assert settings is not None
    names, tasks, families = known
    questions, skipped = _questions(context, tasks, families)
    runs = []
    for question, members, truth in questions:
        context.progress(f"clusters: {question}, {len(members)} models")
        shared = {
            "name": question,
            "k": len(set(truth)),
            "members": [names[i] for i in members],
            "tasks": [tasks[i] for i in members],
            "families": [families[i] for i in members],
            "truth": truth,
            "seed": settings.seed,
        }
        chosen = _part(centred, members)
        found = _labelled(chosen, _part(raw, members), len(set(truth)), settings)
        for number, ((metric, method, affinity), labels, linkage) in enumerate(found):
            how = {"metric": metric, "method": method, "affinity": affinity}
            result = {"labels": labels, "scores": cluster_scores(labels, truth)}
            # the paper's own way comes first, and has the pictures
            picture = {"embedding": _embedding(chosen, settings)} if number == 0 else {}
            tree = {"linkage": linkage} if linkage is not None else {}
            runs.append(shared | how | result | picture | tree)
    return runs, skipped


def _kept(context: Context) -> tuple[list[int], dict[str, str]]:
    """Models that learned something, and why the others are left out."""
    settings = context.settings.clusters
    assert settings is not None
    left_out = {}
    for i, record in enumerate(context.records):
        # a test split may be shifted from train: validation counts as well
        reached, chance = max(record[f"{split}_accuracy"] for split in SPLITS), record["base_rate"]
        if reached <= chance and not settings.keep_below_base_rate:
            left_out[context.gram.members[i]] = (
                f"accuracy {reached:.3f} does not beat {chance:.3f}, of always the commonest label"
            )
    kept = [i for i, name in enumerate(context.gram.members) if name not in left_out]
    if len(kept) < 2:
        raise WspaceError(
            f"clusters: {len(kept)} of {len(context.records)} models beat the base rate; set "
            "experiments.clusters.keep_below_base_rate to cluster the others too"
        )
    return kept, left_out


def _total(context: Context, tensors: Sequence[int]) -> torch.Tensor:
    if len(tensors) == len(context.gram.tensors):
        return context.gram.total
    if not tensors or context.gram.per_tensor is None:
        raise WspaceError("clusters: experiments.clusters.exclude leaves no tensor")
    return context.gram.per_tensor[list(tensors)].sum(dim=0)


def _part(matrix: torch.Tensor, members: Sequence[int]) -> torch.Tensor:
    chosen = torch.tensor(list(members))
    return matrix[..., chosen, :][..., chosen]


def _questions(
    context: Context, tasks: list[str], families: list[str]
) -> tuple[list[tuple[str, list[int], list[str]]], dict[str, str]]:
    """What is to be found from the weights: name, models, and the groups they are in."""
    settings = context.settings.clusters
    assert settings is not None
    skipped, asked = {}, []
    if len(set(tasks)) in (1, len(tasks)):
        skipped["same-dataset"] = "it takes two data sets, and one of two models"
    else:
        asked.append(("same-dataset", list(range(len(tasks))), tasks))
    known = list(dict.fromkeys(families))
    for chosen in settings.families or (tuple(known),):
        for family in chosen:
            if family not in known:
                raise WspaceError(
                    f"clusters: no model of the family {family!r} is in the zoo; there are "
                    f"{', '.join(known)}"
                )
        members = [i for i, family in enumerate(families) if family in chosen]
        name = f"families-{len(chosen)}"
        number = sum(other.startswith(name) for other, _, _ in asked)
        name += f"-{number + 1}" if number else ""
        if len(chosen) in (1, len(members)):
            skipped[name] = "it takes two families, and one of two models"
        else:
            asked.append((name, members, [families[i] for i in members]))
    return asked, skipped


def _labelled(centred, raw, k: int, settings) -> list[tuple[tuple, list[int], list | None]]:
    """Clusters by every metric and method; the paper's own first."""
    seed = settings.seed
    first = "clipped" if settings.affinity == "positive" else "shifted"
    second = "shifted" if first == "clipped" else "clipped"
    named = {"clipped": "positive", "shifted": "shifted"}
    found: list[tuple[tuple, list[int], list | None]] = []
    for metric, matrix in (("cosine", centred), ("raw", raw)):
        for affinity in (first, second):
            labels = geometry.spectral_clustering(matrix, k, seed=seed, affinity=affinity).labels
            found.append(((metric, "spectral", named[affinity]), labels.tolist(), None))
    points = {
        "cosine": geometry.directions(centred),
        "euclidean": geometry.gram_matrix(centred),
        "raw": geometry.directions(raw),
    }
    found.append(
        (("euclidean", "spectral", "gaussian"), _gaussian(points["euclidean"], k, seed), None)
    )
    for metric, matrix in points.items():
        labels = geometry.kmeans(matrix, k, seed=seed).labels.tolist()
        found.append(((metric, "kmeans", None), labels, None))
        linkage, labels = _ward(matrix, k)
        found.append(((metric, "ward", None), labels, linkage if metric == "cosine" else None))
    return found


def _gaussian(matrix: torch.Tensor, k: int, seed: int) -> list[int]:
    """Spectral clustering of ``exp(-d^2 / 2 s^2)``, s the median distance."""
    from sklearn.cluster import SpectralClustering

    distances = geometry.distances(matrix).numpy()
    middle = np.median(distances[np.triu_indices(len(distances), 1)])
    affinity = np.exp(-0.5 * (distances / (middle or 1)) ** 2)
    model = SpectralClustering(k, affinity="precomputed", random_state=seed)
    return model.fit_predict(affinity).tolist()


def _ward(matrix: torch.Tensor, k: int) -> tuple[list, list[int]]:
    """Ward's tree of points with these inner products, and its k groups."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    tree = linkage(squareform(geometry.distances(matrix).numpy(), checks=False), "ward")
    return tree.tolist(), (fcluster(tree, k, "maxclust") - 1).tolist()


def _embedding(matrix: torch.Tensor, settings) -> dict[str, Any]:
    """Two-dimensional pictures of the cosine distances: t-SNE and metric MDS."""
    from sklearn.manifold import TSNE, smacof

    distances = (1 - geometry.cosines(matrix)).clamp_min(0).numpy()
    np.fill_diagonal(distances, 0)
    n = len(distances)
    # classical scaling to start from: the stress then falls from there to one place
    values, vectors = np.linalg.eigh(geometry.directions(matrix).numpy())
    start = vectors[:, -2:] * np.sqrt(np.clip(values[-2:], 1e-12, None))
    flat = np.asarray(smacof(distances, init=start, n_init=1, random_state=settings.seed)[0])
    found: dict[str, Any] = {"mds": flat}
    perplexity = settings.perplexity or min(30.0, n / 4)
    if n >= 4 and 1 <= perplexity < n:
        model = TSNE(
            metric="precomputed", init="random", perplexity=perplexity,
            random_state=settings.seed, method="exact" if n <= EXACT_TSNE else "barnes_hut",
        )  # fmt: skip
        found |= {"tsne": model.fit_transform(distances), "perplexity": perplexity}
    return found


def _affinities_agree(runs: list[dict]) -> dict[str, bool]:
    """For each question, whether both affinities made of cosines find the same groups."""
    pairs: dict[str, list[list[int]]] = {}
    for found in runs:
        if found["metric"] == "cosine" and found["method"] == "spectral":
            pairs.setdefault(found["name"], []).append(found["labels"])
    return {name: first == second for name, (first, second) in pairs.items()}


def _contrast(cosines: torch.Tensor, tasks: list[str], families: list[str]) -> dict[str, Any]:
    """Cosines of pairs of models: of one data set, of one family, and of two families."""
    rows, columns = np.triu_indices(len(tasks), 1)
    same_task = np.array([tasks[i] == tasks[j] for i, j in zip(rows, columns, strict=True)])
    same_family = np.array([families[i] == families[j] for i, j in zip(rows, columns, strict=True)])
    values = cosines.numpy()[rows, columns]
    groups = {
        "same-dataset": values[same_task],
        "same-family": values[same_family & ~same_task],
        "across": values[~same_family],
    }
    return {name: spread(group) for name, group in groups.items() if len(group)}


def _by_group(values: Sequence[float], groups: Sequence[str]) -> dict[str, Any]:
    return {
        group: spread([v for v, g in zip(values, groups, strict=True) if g == group])
        for group in dict.fromkeys(groups)
    }


def layer_of(name: str) -> str:
    """The layer a tensor is in: a number, or the part of the model before or after the layers."""
    number = re.search(r"\.(\d+)\.", name)
    if number:
        return number.group(1)
    return "embeddings" if "embed" in name else "other"


def _layers(context: Context, tensors, kept, tasks, seed: int) -> dict[str, Any]:
    """How well single layers, and single tensors, tell data sets apart."""
    per_tensor = context.gram.per_tensor
    if per_tensor is None or len(set(tasks)) in (1, len(tasks)):
        return {"per_layer": [], "per_tensor": []}
    names = context.gram.tensors
    layers: dict[str, list[int]] = {}
    for k in tensors:
        layers.setdefault(layer_of(names[k]), []).append(k)
    order = sorted(layers, key=lambda name: (name == "other", name.isdigit(), _number(name)))
    context.progress(f"clusters: {len(layers)} layers, {len(tensors)} tensors")
    return {
        "per_layer": [
            {"layer": name, "tensors": len(layers[name])}
            | _apart(_part(per_tensor[layers[name]].sum(dim=0), kept), tasks, seed)
            for name in order
        ],
        "per_tensor": [
            {"tensor": names[k], "layer": layer_of(names[k])}
            | _apart(_part(per_tensor[k], kept), tasks, seed)
            for k in tensors
        ],
    }


def _number(name: str) -> int:
    return int(name) if name.isdigit() else 0


def _apart(matrix: torch.Tensor, tasks: list[str], seed: int) -> dict[str, Any]:
    """Scores of one part of the model; ``share`` is its part of the squared task vectors."""
    labels = geometry.spectral_clustering(matrix, len(set(tasks)), seed=seed, restarts=3).labels
    scores = cluster_scores(labels.tolist(), tasks)
    contrast = _contrast(geometry.cosines(matrix), tasks, tasks)
    return {
        "accuracy": scores["majority"]["accuracy"],
        "ari": scores["ari"],
        "same": contrast["same-dataset"]["mean"] if "same-dataset" in contrast else math.nan,
        "across": contrast["across"]["mean"],
        "square": float(matrix.diagonal().mean()),
    }
