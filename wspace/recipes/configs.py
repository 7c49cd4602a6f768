"""The output's config.json where the number of layers or of tokens changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from wspace.storage.opening import read_object

_COUNTS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_encoder_layers",
    "encoder_layers", "num_decoder_layers", "decoder_layers", "depth",
)  # fmt: skip


class Restacked(NamedTuple):
    """A stack of layers of the donor, and what the output has in its place."""

    stack: str
    n_before: int
    layers: Sequence[tuple[int, int]]  # of each output layer: which model, and its layer there


def read_config(folder: Path) -> dict[str, Any] | None:
    """``config.json`` as an object; None if there is none that can be read."""
    return read_object(folder / "config.json")


def restack(
    config: Mapping[str, Any], change: Restacked, configs: Mapping[int, Mapping[str, Any] | None]
) -> dict[str, Any] | None:
    """The config with the new number of layers; None if no key of it holds the old one.

    Lists of one entry a layer (``layer_types``) are put together from ``configs`` of the models
    that the layers come from. In a config of several parts, the part whose name fits the stack
    (``text_config``) is the one that changes.
    """
    edited = copy.deepcopy(dict(config))
    for path in _parts(edited, change.stack):
        part = _at(edited, path)
        counts = [key for key in _COUNTS if part.get(key) == change.n_before]
        counts = _of_side(counts, change.stack)
        if not counts:
            continue
        for key in counts:
            part[key] = len(change.layers)
        for key, value in list(part.items()):
            if isinstance(value, list) and len(value) == change.n_before and "layer" in key:
                part[key] = _relisted(key, value, path, change, configs)
        return edited
    return None


def resized(config: Mapping[str, Any], n_rows: int) -> dict[str, Any]:
    """The config of a model whose embeddings have so many rows."""
    edited = copy.deepcopy(dict(config))
    text = edited.get("text_config")
    parts = [part for part in (edited, text) if isinstance(part, dict) and "vocab_size" in part]
    for part in parts or [edited]:
        part["vocab_size"] = n_rows
    return edited


def _parts(config: Mapping[str, Any], stack: str) -> list[tuple[str, ...]]:
    """Paths of the sub-configs to look in, the best first."""
    inner = [key for key, value in config.items() if isinstance(value, dict)]
    vision = any(word in stack for word in ("vis", "image", "vit"))
    names = [k for k in inner if ("vision" in k) == vision and k.endswith("_config")]
    nested: list[tuple[str, ...]] = [(name,) for name in names]
    return [*nested, ()] if vision else [(), *nested]


def _of_side(counts: list[str], stack: str) -> list[str]:
    """Of an encoder and a decoder, the keys of the one whose stack it is."""
    decoder = [key for key in counts if "decoder" in key]
    if "decoder" in stack:
        return decoder or counts
    return [key for key in counts if key not in decoder] if "encoder" in stack else counts


def _relisted(key, value, path, change, configs) -> list[Any]:
    result = []
    for model, layer in change.layers:
        given = _at(configs.get(model) or {}, path).get(key)
        entries = given if isinstance(given, list) and layer < len(given) else value
        result.append(entries[layer] if layer < len(entries) else entries[-1])
    return result


def _at(config: Any, path: Sequence[str]) -> Any:
    for key in path:
        config = config.get(key, {}) if isinstance(config, dict) else {}
    return config if isinstance(config, dict) else {}
