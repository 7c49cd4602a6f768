"""Zoos and commands for budgets of memory: see ``bench.budgets`` and ``tests/test_budgets.py``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MIB = 1 << 20
WIDTH = 1024
DISTINCT = 4
"""Models with weights of their own; more are links to them."""

METHODS = {
    "linear": {"weight": 0.3},
    "slerp": {"t": 0.4},
    "model_stock": {},
    "ties": {"weight": 0.3, "density": 0.4},
    "dare_ties": {"weight": 0.3, "density": 0.4},
    "breadcrumbs": {"weight": 0.3, "density": 0.4, "gamma": 0.01},
    "della": {"weight": 0.3, "density": 0.4, "epsilon": 0.1},
    "sce": {"select_topk": 0.3},
    "arcee_fusion": {},
}
"""Of recipes, and the parameters of each of their models."""


def shapes(mebibytes: int) -> dict[str, tuple[int, ...]]:
    """Of a model of so many MiB in bfloat16, half of them in one tensor."""
    rows = mebibytes * MIB // 2 // WIDTH
    layers = {f"model.layers.{k}.mlp.weight": (rows // 16, WIDTH) for k in range(8)}
    norms = {f"model.layers.{k}.norm.weight": (WIDTH,) for k in range(8)}
    return {"model.embed_tokens.weight": (rows // 2, WIDTH), **layers, **norms}


def make_zoo(folder: Path, n: int, mebibytes: int) -> Path:
    """``base`` and ``run-0 ...``: fine-tunes of it, of random weights in bfloat16."""
    base = np.random.default_rng(0).standard_normal(mebibytes * MIB // 2 + 8 * WIDTH, np.float32)
    _write_dense(folder / "base", base, mebibytes)
    for k in range(n):
        model = folder / f"run-{k}"
        if k >= DISTINCT:
            model.mkdir()
            os.link(folder / f"run-{k % DISTINCT}" / FILE, model / FILE)
            continue
        step = np.random.default_rng(k + 1).standard_normal(len(base), np.float32)
        _write_dense(model, base + np.float32(0.02) * step, mebibytes)
    return folder


FILE = "model.safetensors"


def _write_dense(folder: Path, values: np.ndarray, mebibytes: int) -> None:
    folder.mkdir(parents=True)
    with (folder / FILE).open("wb") as file:
        file.write(_header(shapes(mebibytes)))
        file.write(np.ascontiguousarray(values.view(np.uint16)[1::2]).data)


def write_sparse(folder: Path, shapes: Mapping[str, Sequence[int]]) -> Path:
    """A model of zeros in bfloat16 that takes no room on the disk."""
    folder.mkdir(parents=True)
    header = _header(shapes)
    size = len(header) + sum(2 * int(np.prod(shape)) for shape in shapes.values())
    with (folder / FILE).open("wb") as file:
        file.write(header)
        file.truncate(size)
    return folder


def sparse_zoo(folder: Path, n: int, shapes: Mapping[str, Sequence[int]]) -> Path:
    """``base`` and ``run-0 ...`` of zeros."""
    for name in ("base", *(f"run-{k}" for k in range(n))):
        write_sparse(folder / name, shapes)
    return folder


def _header(shapes: Mapping[str, Sequence[int]]) -> bytes:
    entries: dict[str, Any] = {}
    position = 0
    for name, shape in shapes.items():
        end = position + 2 * int(np.prod(shape))
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 4096)
    return len(text).to_bytes(8, "little") + text


def recipe(method: str, zoo: Path, n: int) -> str:
    """A recipe's text; slerp and arcee_fusion take two models."""
    models = [zoo / f"run-{k}" for k in range(n)]
    if method in ("slerp", "arcee_fusion"):
        models = [zoo / "base", models[0]]
    numbers = METHODS[method]
    listed = [{"model": str(model), "parameters": numbers} for model in models]
    content: dict[str, Any] = {"merge_method": method, "models": listed}
    if method != "linear":
        content["base_model"] = str(zoo / "base")
    if method in ("slerp", "sce"):
        content["parameters"] = numbers
        content["models"] = [{"model": str(model)} for model in models]
    return json.dumps(content)


def commands(zoo: Path, n: int, work: Path) -> Iterator[tuple[str, list[object]]]:
    """Every command over a zoo of ``n`` models, by its name, which is its output's, too.

    Recipes are written to ``work``.
    """
    models: list[object] = [zoo / f"run-{k}" for k in range(n)]
    based = [*models, "--base", zoo / "base"]
    yield "statistics", ["inspect", *based, "--statistics"]
    yield "distances", ["distances", *based]
    yield "cluster", ["cluster", *based, "-k", "2"]
    weights = ",".join([str(1 / n)] * n)
    yield "merge", [
        "merge", *based, "--uniform", "--weights", weights, "-o", "merge", "-o", "merge-2",
    ]  # fmt: skip
    for method in METHODS:
        path = work / f"{method}.yml"
        path.write_text(recipe(method, zoo, n))
        yield method, ["merge", path, "-o", method]
    yield "index", ["index", zoo, "--store", "index"]


def warming(folder: Path) -> list[list[object]]:
    """Commands that between them use every kernel that those of other zoos do; in a new folder."""
    zoo = make_zoo(folder / "zoo", 2, 1)
    found = dict(commands(zoo, 2, folder))
    warm = [within(command, 1 << 30) for command in found.values()]
    warm.append(["verify", "merge"])
    # more models have other kernels, and so have tensors that are cut
    more = make_zoo(folder / "more" / "zoo", 6, 8)
    for name, command in commands(more, 6, folder / "more"):
        outputs = (name, f"{name}-2")
        parts = [f"parts/{word}" if word in outputs else word for word in command[1:]]
        warm.append(within([command[0], *parts], 6 * MIB))
    return warm


def within(command: Sequence[object], budget: int) -> list[object]:
    """The command with its budget, and without notes."""
    return [*command, "--memory", budget, "--quiet"]
