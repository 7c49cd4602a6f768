"""Tensors that a model does not have: which it may do without, and which it has by another name."""

from __future__ import annotations

import re

from wspace.recipes import layers
from wspace.recipes.configs import read_config
from wspace.storage.checkpoints import Checkpoint

_HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.weight$")
_EMBEDDING = re.compile(r"(embed_tokens|embed_in|wte|word_embeddings|shared)\.weight$")


def tied_embedding(checkpoint: Checkpoint, name: str) -> str | None:
    """The name of the embeddings that are a model's head ``name``, which it does not store."""
    if not _HEAD.search(name):
        return None
    if (read_config(checkpoint.folder) or {}).get("tie_word_embeddings") is False:
        return None
    return next((key for key in checkpoint.tensors if _EMBEDDING.search(key)), None)


class Layers:
    """What the layers of a model have."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._stacks = layers.find_stacks(checkpoint.tensors)
        places = (layers.place_of(name, self._stacks) for name in checkpoint.tensors)
        self._held = {(place.stack, place.rest) for place in places if place}

    def must_have(self, name: str) -> bool:
        """Whether the model is damaged if it lacks this: embeddings, and what its layers have.

        What it has in no layer (biases), or what comes after them (heads), it may do without.
        """
        place = layers.place_of(name, self._stacks)
        if place is None:
            return layers.comes_first(name)
        return (place.stack, place.rest) in self._held
