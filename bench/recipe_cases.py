"""The recipes that are measured: each method with plain settings, and what it must read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class RecipeCase(NamedTuple):
    method: str
    n_models: int  # besides the base
    base: str  # "": none; "base"; or "model": a model in its place, for methods of two
    reads: int  # how often the inputs must be read at most, the writing pass included
    goal: float | None = None  # times as fast as mergekit, each net of its --help
    weight: float | None = None  # of each model
    parameters: str = ""

    def inputs(self, folder: Path) -> list[Path]:
        """The models that are read, the base first."""
        models = [folder / f"model-{i}" for i in range(4)]
        if self.base == "model":
            return models[: self.n_models + 1]
        return [*([folder / "base"] if self.base else []), *models[: self.n_models]]

    def text(self, folder: Path) -> str:
        inputs = self.inputs(folder)
        own = f", parameters: {{weight: {self.weight}}}" if self.weight is not None else ""
        models = inputs[1:] if self.base else inputs
        lines = [f"merge_method: {self.method}", "dtype: bfloat16", "models:"]
        lines += [f"  - {{model: {model}{own}}}" for model in models]
        if self.base:
            lines.append(f"base_model: {inputs[0]}")
        if self.parameters:
            lines.append(f"parameters: {{{self.parameters}}}")
        return "\n".join(lines) + "\n"


def _consensus(method: str, parameters: str = "density: 0.5", goal: float | None = None):
    return RecipeCase(method, 4, "base", 2, goal, 0.25, parameters)


CASES: Sequence[RecipeCase] = (
    RecipeCase("linear", 4, "", 1, 4, 0.25),
    RecipeCase("task_arithmetic", 4, "base", 1, 4, 0.25),
    RecipeCase("slerp", 1, "model", 2, 5, None, "t: 0.3"),
    RecipeCase("karcher", 4, "", 2, 8),
    RecipeCase("model_stock", 4, "base", 2, 4),
    _consensus("ties", goal=20),
    RecipeCase("nuslerp", 2, "", 2, None, 0.5),
    RecipeCase("multislerp", 4, "", 2, None, 0.25),
    RecipeCase("passthrough", 1, "", 1),
    _consensus("dare_linear"),
    _consensus("dare_ties"),
    _consensus("breadcrumbs", "density: 0.5, gamma: 0.01"),
    _consensus("breadcrumbs_ties", "density: 0.5, gamma: 0.01"),
    _consensus("della", "density: 0.5, epsilon: 0.1"),
    _consensus("della_linear", "density: 0.5, epsilon: 0.1"),
    RecipeCase("sce", 4, "base", 2),
    RecipeCase("ram", 4, "base", 1),
    RecipeCase("ramplus_tl", 4, "base", 2),
    RecipeCase("nearswap", 1, "model", 1, None, None, "t: 0.001"),
    RecipeCase("arcee_fusion", 1, "model", 3),
)
"""Reads: one where the factors are known; one more for Gram matrices, for an order statistic or for
norms; and one more for a second of those that needs the first."""
