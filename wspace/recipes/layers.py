"""Where a model's layers are, from the names of its tensors: no list of architectures.

A *stack* is a prefix with numbered children, ``model.layers`` of ``model.layers.0.mlp.weight``,
whose numbers run from 0 without a gap. Of nested ones (experts in a layer) the outermost counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.)")

_LISTS = {"layers", "layer", "h", "block", "blocks", "resblocks"}
"""What lists of layers are called; others count as one from two layers of four tensors on."""

_FIRST = re.compile(
    r"emb|wte|wpe|shared|patch|cls_token|position|pre_l|register_tokens|mask_token", re.I
)
"""In the names of what comes before the layers; everything else outside them comes after."""


class Place(NamedTuple):
    """A tensor of a layer: ``stack.layer`` and the rest, with its dot."""

    stack: str
    layer: int
    rest: str


def find_stacks(names: Iterable[str]) -> dict[str, int]:
    """The outermost stacks, and how many layers each has."""
    stacks: dict[str, int] = {}
    left = [(names, 0)]
    while left:  # first numbers of all names, then second ones of those that are in no stack yet
        found = {head: own for some, at in left for head, own in _by_number(some, at).items()}
        counts: dict[str, dict[int, int]] = {}
        for head, own in found.items():
            prefix, _, number = head.rpartition(".")
            layers = counts.setdefault(prefix, {})
            layers[int(number)] = layers.get(int(number), 0) + len(own)
        new = {
            prefix: len(layers)
            for prefix, layers in counts.items()
            if max(layers) == len(layers) - 1
            and (
                prefix.rpartition(".")[2] in _LISTS
                or (len(layers) > 1 and min(layers.values()) >= 4)
            )
        }
        stacks |= new
        left = [
            (own, len(head))
            for head, own in found.items()
            if not (prefix := head.rpartition(".")[0]) or prefix not in new
        ]
    return {
        prefix: n
        for prefix, n in stacks.items()
        if not any(prefix.startswith(f"{outer}.") for outer in stacks)
    }


def _by_number(names: Iterable[str], at: int) -> dict[str, list[str]]:
    """Names by their part up to the first number after ``at``; those without one are left out."""
    found: dict[str, list[str]] = {}
    begin, own = None, []
    for name in names:
        if begin is None or not name.startswith(begin):  # names of a layer follow one another
            match = _NUMBER.search(name, at)
            if match is None:
                continue
            begin = name[: match.end() + 1]
            own = found.setdefault(name[: match.end()], [])
        own.append(name)
    return found


def place_of(name: str, stacks: Mapping[str, int]) -> Place | None:
    """Which layer of which stack a tensor belongs to; None of those outside the layers."""
    for match in _NUMBER.finditer(name):
        prefix = name[: match.start()]
        if prefix in stacks:
            return Place(prefix, int(match[1]), name[match.end() :])
    return None


def depths(names: Iterable[str], stacks: Mapping[str, int]) -> Iterator[float]:
    """:func:`depth` of each tensor; 0 outside the layers."""
    if not stacks:
        yield from (0.0 for _ in names)
        return
    begin, t = None, 0.0  # of a layer: its names, with the dot, and its depth
    for name in names:
        if begin is None or not name.startswith(begin):
            place = place_of(name, stacks)
            t = depth(place.layer, stacks[place.stack]) if place else 0.0
            match = _NUMBER.match(name, len(place.stack)) if place else None
            begin = name[: match.end() + 1] if match else None
        yield t


def comes_first(name: str) -> bool:
    """Whether a tensor outside the layers comes before them, as embeddings do."""
    return _FIRST.search(name) is not None


def depth(offset: int, n_layers: int) -> float:
    """Where in a gradient a layer is: 0 for the first, 1 for the last, and for an only one."""
    return offset / (n_layers - 1) if n_layers > 1 else 1.0
