"""Where a model's layers are, from the names of its tensors: no list of architectures.

A *stack* is a prefix with numbered children, ``model.layers`` of ``model.layers.0.mlp.weight``,
whose numbers run from 0 without a gap. Of nested ones (experts in a layer) the outermost counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
    counts: dict[str, dict[int, int]] = {}
    for name in names:
        for match in _NUMBER.finditer(name):
            layers = counts.setdefault(name[: match.start()], {})
            index = int(match[1])
            layers[index] = layers.get(index, 0) + 1
    stacks = {
        prefix: len(layers)
        for prefix, layers in counts.items()
        if max(layers) == len(layers) - 1
        and (prefix.rpartition(".")[2] in _LISTS or (len(layers) > 1 and min(layers.values()) >= 4))
    }
    return {
        prefix: n
        for prefix, n in stacks.items()
        if not any(prefix.startswith(f"{outer}.") for outer in stacks)
    }


def place_of(name: str, stacks: Mapping[str, int]) -> Place | None:
    """Which layer of which stack a tensor belongs to; None of those outside the layers."""
    for match in _NUMBER.finditer(name):
        prefix = name[: match.start()]
        if prefix in stacks:
            return Place(prefix, int(match[1]), name[match.end() :])
    return None


def comes_first(name: str) -> bool:
    """Whether a tensor outside the layers comes before them, as embeddings do."""
    return _FIRST.search(name) is not None


def depth(offset: int, n_layers: int) -> float:
    """Where in a gradient a layer is: 0 for the first, 1 for the last, and for an only one."""
    return offset / (n_layers - 1) if n_layers > 1 else 1.0
