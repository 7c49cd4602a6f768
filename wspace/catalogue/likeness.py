"""Near-duplicates and likely parents of a model, and duplicates among all, from the store alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from wkernels.sketches import ERROR
from wspace.catalogue.estimates import (
    EXPLAINED,
    MIXED,
    Origins,
    close_pairs,
    distances,
    origins,
)
from wspace.catalogue.layouts import shared
from wspace.catalogue.store import Entry

WITHIN = 1e-4
"""Of a model's norm: nearer than this is a near-duplicate."""

RELATED = 0.5
"""Of a model's norm: models further apart than this were not tuned from one another."""

LARGEST_WEIGHT = 1.05
"""Of a mix. ``q = a / 2 + b / 2`` and ``a = 2 q - b`` say the same: of models on one plane, the one
that has no weight beyond 1 in terms of the others is taken for the mix."""

ROUNDING = {"F64": 0.0, "F32": 0.0, "F16": 2.0**-12, "BF16": 2.0**-9, "F8_E4M3": 2.0**-5,
            "F8_E5M2": 2.0**-4}  # fmt: skip
"""How far rounding to a type moves a model, at most about, of its norm: half a unit in the last
place of every element."""

Sketches = Callable[[Sequence[Entry], str], list[np.ndarray]]
"""Entries' sketches of ``all`` tensors or of the ``layers``."""


class Relative(NamedTuple):
    """A model that another was compared with."""

    path: str
    relation: str  # identical, near-duplicate, parent, child, sibling; or nothing
    distance: float  # estimated: standard deviation 0.28 % of it
    relative: float  # the same, of the norm of the model in question
    cosine: float  # of both models' differences from the parent or nearest; NaN for that one
    weight: float  # in the mix that the model is; NaN if it is none, or this has no part in it
    equal: int  # tensors that are the same, bit for bit
    tensors: int  # that both have, by name and shape


@dataclass(frozen=True)
class Likeness:
    """What a catalogue knows of a model's relatives, nearest first."""

    model: str
    compared: str  # "all" tensors; or the "layers", if others differ between the models
    candidates: int  # models that could be compared
    explained: float  # share of the squared distance to its nearest part that the best mix does
    relatives: tuple[Relative, ...]
    error: float = ERROR / 2  # standard deviation of a distance, of itself

    @property
    def parents(self) -> tuple[Relative, ...]:
        return tuple([relative for relative in self.relatives if relative.relation == "parent"])


class Duplicates(NamedTuple):
    """Models that are the same or nearly; distances are from the first."""

    first: str
    others: tuple[Relative, ...]


def comparable(entry: Entry, others: Sequence[Entry]) -> tuple[str, list[Entry]]:
    """What ``entry`` can be compared in, and with whom.

    All tensors, if those that have its layers have all its other tensors too; else the layers.
    """
    layout = entry.layout
    group = [
        other
        for other in others
        if other.problem is None
        and (
            other.layout.family == layout.family
            or (layout.layers and other.layout.layers == layout.layers)
        )
    ]
    alike = all(other.layout.family == layout.family for other in group)
    return "all" if alike else "layers", group


def likeness(
    entry: Entry, others: Sequence[Entry], sketches: Sketches, *, n: int, within: float
) -> Likeness:
    """``n`` relatives of a model, and all of the models that it is a mix of."""
    compared, group = comparable(entry, [other for other in others if other.path != entry.path])
    if not group:
        return Likeness(entry.path, compared, 0, np.nan, ())
    *rows, row = sketches([*group, entry], compared)
    apart, norm = distances(rows, row), entry.norm(compared)
    relations = [""] * len(group)
    for k, other in enumerate(group):
        if other.content == entry.content:
            relations[k], apart[k] = "identical", 0.0
        elif apart[k] <= limit(entry, other, within) * norm:
            relations[k] = "near-duplicate"
    origin = _find_origin(rows, row, apart, norm, relations)
    cosines, weights = np.full((2, len(group)), np.nan)
    explained = np.nan
    if origin is not None:
        cosines, explained = origin.cosines, origin.explained
        for k, weight in origin.weights.items():
            weights[k] = weight
    order = sorted(range(len(group)), key=lambda k: (apart[k], group[k].path))
    listed = order[:n] + [k for k in order[n:] if not np.isnan(weights[k])]
    relatives = [
        Relative(
            group[k].path, relations[k], float(apart[k]), float(apart[k] / norm) if norm else 0.0,
            float(cosines[k]), float(weights[k]), *_equal(entry, group[k]),
        )
        for k in listed
    ]  # fmt: skip
    return Likeness(entry.path, compared, len(group), explained, tuple(relatives))


def _find_origin(
    rows: Sequence[np.ndarray], row: np.ndarray, apart: np.ndarray, norm: float,
    relations: list[str],
) -> Origins | None:  # fmt: skip
    """Of the rows without a relation, those that the model was made from; tells their relations.

    Of what is returned, ``cosines`` are of all rows, and ``weights`` those of a mix, or none.
    """
    while True:
        which = np.flatnonzero([not relation for relation in relations])
        if not len(which) or apart[which].min() > RELATED * norm:
            return None
        found = origins([rows[k] for k in which.tolist()], row, apart[which], RELATED * norm)
        mix = {int(which[k]): w for k, w in found.weights.items()}
        accepted = found.explained >= EXPLAINED and 1 < len(mix) <= MIXED
        largest = max(mix, key=lambda k: abs(mix[k]))
        if not accepted or abs(mix[largest]) <= LARGEST_WEIGHT:
            break
        relations[largest] = "child"  # a mix that the model is part of
    for k in found.children:
        relations[which[k]] = "child"
    origin = int(which[found.origin])
    if accepted:
        for k in mix:
            relations[k] = "parent"
    elif found.parent is not None:
        relations[origin] = "parent"
    elif not relations[origin]:
        relations[origin] = "sibling"
    cosines = np.full(len(rows), np.nan)
    cosines[which] = found.cosines
    cosines[origin] = np.nan
    return found._replace(cosines=cosines, weights=mix if accepted else {})


def limit(one: Entry, other: Entry, within: float) -> float:
    """How near two models are to be near-duplicates: nearer than rounding, if types differ."""
    if one.dtype == other.dtype:
        return within
    return max(within, ROUNDING.get(one.dtype, 0.0), ROUNDING.get(other.dtype, 0.0))


def _equal(one: Entry, other: Entry) -> tuple[int, int]:
    """Tensors of two models that are the same, and that both have."""
    mine, its = shared(one.layout, other.layout)
    if isinstance(mine, range):
        same = (one.hashes == other.hashes).all(axis=1)
    else:
        same = (one.hashes[mine] == other.hashes[its]).all(axis=1)
    return int(same.sum()), len(mine)


def duplicates(entries: Sequence[Entry], sketches: Sketches, *, within: float) -> list[Duplicates]:
    """Groups of models that are as near as that to the first of them, by path."""
    families: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.path):
        if entry.problem is None:
            families.setdefault(entry.layout.family, []).append(entry)
    found = []
    for group in families.values():
        found += _in_family(group, sketches, within)
    return sorted(found, key=lambda group: group.first)


def _in_family(group: list[Entry], sketches: Sketches, within: float) -> list[Duplicates]:
    rows = sketches(group, "all")
    norms = np.array([entry.norm("all") for entry in group])
    kinds = sorted({entry.dtype for entry in group})
    examples = {entry.dtype: entry for entry in group}
    limits = np.array([[limit(examples[a], examples[b], within) for b in kinds] for a in kinds])
    numbers = np.array([kinds.index(entry.dtype) for entry in group])
    near = close_pairs(rows, limits * norms.max(initial=0), numbers)
    taken: set[int] = set()
    found = []
    for i, candidates in enumerate(near):
        later = [j for j in candidates if j not in taken]
        if i in taken or not later:
            continue
        apart = distances([rows[j] for j in later], rows[i])
        others = []
        for j, distance in zip(later, apart.tolist(), strict=True):
            same = group[i].content == group[j].content
            if same or distance <= limits[numbers[i], numbers[j]] * norms[i]:
                taken.add(j)
                others.append(_duplicate(group[i], group[j], 0.0 if same else distance, norms[i]))
        if others:
            found.append(Duplicates(group[i].path, tuple(others)))
    return found


def _duplicate(one: Entry, other: Entry, distance: float, norm: float) -> Relative:
    relation = "near-duplicate" if distance else "identical"
    relative = float(distance / norm) if norm else 0.0
    return Relative(other.path, relation, distance, relative, np.nan, np.nan, *_equal(one, other))
