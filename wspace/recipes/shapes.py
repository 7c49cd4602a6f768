"""What is said of models whose tensors of one name have different shapes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from wspace.recipes.references import ModelReference
from wspace.storage.checkpoints import StoredTensor

_VOCABULARY = re.compile(r"emb|wte|shared|lm_head")
_POSITION = re.compile(r"pos|wpe")


def differing_shapes(
    references: Sequence[ModelReference], stored: Sequence[StoredTensor], output: str
) -> str:
    """The first two models that differ, in words; ``stored``: the tensor of each."""
    shapes = [tensor.record.shape for tensor in stored]
    k = next(k for k, shape in enumerate(shapes) if shape != shapes[0])
    a, b = references[0], references[k]
    vocabulary = _VOCABULARY.search(output) and not _POSITION.search(output)
    if vocabulary and shapes[0][1:] == shapes[k][1:]:
        return (
            f"vocabularies differ: {output!r} has {shapes[0][0]} rows in {a} and "
            f"{shapes[k][0]} in {b}; add tokenizer_source: union (the tokens of all), or "
            "tokenizer_source: base (those of the base), and rows are brought into one order"
        )
    return (
        f"tensor {output!r} has shape {list(shapes[0])} in {a} and {list(shapes[k])} in {b}; "
        f"leave it out with --exclude '{output}'"
    )
