"""The Fisher diagonals that a recipe gives to its models: checkpoints of the same tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from wspace.errors import WspaceError
from wspace.recipes.grammar import Recipe, Source
from wspace.recipes.methods import Method
from wspace.recipes.problems import Problems
from wspace.recipes.references import ModelReference, Models
from wspace.storage.checkpoints import Checkpoint, StoredTensor
from wspace.storage.headers import KERNEL_NAMES


class Diagonals:
    """Those of each model, and what is wrong with them."""

    def __init__(
        self, given: Mapping[ModelReference, tuple[ModelReference, Checkpoint]], problems: Problems
    ) -> None:
        self._given, self._problems = given, problems
        self._lacking: dict[ModelReference, list[str]] = {}

    def checkpoints(self, models: Sequence[ModelReference]) -> tuple[Checkpoint | None, ...]:
        """One for each; None of a model that is not merged."""
        return tuple([self._given[m][1] if m in self._given else None for m in models])

    def find(
        self, models: Sequence[ModelReference], names: Sequence[str], shape: tuple[int, ...]
    ) -> tuple[StoredTensor, ...] | None:
        """Those of one tensor, by what each model calls it; None if something is wrong."""
        found = []
        for model, name in zip(models, names, strict=True):
            reference, checkpoint = self._given[model]
            stored = checkpoint.find(name)
            if stored is None:
                self._lacking.setdefault(reference, []).append(name)
                continue
            if stored.record.shape != shape:
                self._wrong(reference, name, f"shape {list(stored.record.shape)}", f"{list(shape)}")
            elif stored.record.dtype not in KERNEL_NAMES:
                self._wrong(reference, name, f"type {stored.record.dtype}", "floating point")
            else:
                found.append(stored)
        return tuple(found) if len(found) == len(models) else None

    def _wrong(self, reference: ModelReference, name: str, found: str, expected: str) -> None:
        self._problems.error(
            None, f"fisher {reference}: tensor {name!r} has {found}; expected {expected}"
        )

    def report_problems(self) -> None:
        for reference, names in self._lacking.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            self._problems.error(
                None,
                f"fisher {reference} has no tensor {names[0]!r}{more}; leave it out with "
                f"--exclude '{names[0]}'",
            )


def open_diagonals(
    recipe: Recipe, method: Method, models: Models, problems: Problems
) -> Diagonals | None:
    """None if the method needs none; raises RecipeError if not every model has its own."""
    parts = [part for module in recipe.modules for part in module.slices]
    sources = [source for part in parts for source in part.sources]
    if not method.diagonals:
        for source in sources:
            if source.fisher:
                problems.warn(source.line, f"fisher has no effect in {recipe.method}")
        return None
    if recipe.tokenizer:
        problems.error(
            recipe.method_line,
            "fisher with a tokenizer key: rows of diagonals are not brought into another order; "
            "merge models of one vocabulary",
        )
    given: dict[ModelReference, Source] = {}
    for source in sources:
        known = given.setdefault(source.model, source)
        if source.fisher is None:
            problems.error(
                source.line,
                f"{source.model} has no fisher; give its diagonals with fisher: PATH, a checkpoint "
                "of the same tensors",
            )
        elif known.fisher != source.fisher:
            problems.error(
                source.line, f"{source.model} has two fishers, {known.fisher} and {source.fisher}"
            )
    whole = any(module.whole for module in recipe.modules)
    if whole and recipe.base and recipe.base not in given:
        problems.error(
            recipe.base_line,
            f"{recipe.base} is base_model, which fisher merges as one more model: list it among "
            "the models with its fisher, or leave it out",
        )
    opened = {}
    for model, source in given.items():
        try:
            if source.fisher:
                opened[model] = (source.fisher, models.open(source.fisher))
        except WspaceError as error:
            problems.error(source.line, f"fisher: {error}")
    problems.raise_errors()
    return Diagonals(opened, problems)
