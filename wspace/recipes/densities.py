"""What densities leave of a plan's tensors: told, and refused where it is nothing at all."""

from __future__ import annotations

from collections.abc import Sequence

from wspace.elementwise.choices import Largest
from wspace.recipes.grammar import Recipe
from wspace.recipes.problems import Problems
from wspace.recipes.steps import TensorPlan


def check_choices(recipe: Recipe, tensors: Sequence[TensorPlan], problems: Problems) -> None:
    """Raises RecipeError where every tensor would be the base's, or a choice cannot be made."""
    mixed = [tensor for tensor in tensors if tensor.step]
    choosing = [tensor for tensor in mixed if tensor.step and tensor.step.choice]
    pruned = [tensor.name for tensor in choosing if _keeps_nothing(tensor)]
    if pruned and len(pruned) == len([tensor for tensor in mixed if tensor.numel]):
        problems.error(
            recipe.method_line,
            "density prunes all: it keeps no element of any tensor, and the result would be the "
            "base; give a higher density",
        )
    elif pruned:
        more = f" and {len(pruned) - 1} more" if len(pruned) > 1 else ""
        problems.note(f"density keeps no element of {pruned[0]!r}{more}: the base's is written")
    whole = {
        tensor.step.choice.densities
        for tensor in choosing
        if tensor.step and tensor.step.choice and _is_whole(tensor)
    }
    if len(whole) > 1:
        problems.error(
            recipe.method_line,
            f"{recipe.method} has one threshold for each whole model: give each model one density, "
            "without filters or gradients",
        )
    problems.raise_errors()


def _is_whole(tensor: TensorPlan) -> bool:
    choice = tensor.step.choice if tensor.step else None
    return choice is not None and isinstance(choice.keep, Largest) and choice.keep.whole


def _keeps_nothing(tensor: TensorPlan) -> bool:
    choice = tensor.step.choice if tensor.step else None
    if choice is None or choice.densities is None or not tensor.numel:
        return False
    if isinstance(choice.keep, Largest) and not choice.keep.whole:
        taken, dropped = choice.keep.counts(tensor.numel)
        return bool((taken <= dropped).all())
    return all(density <= 0 for density in choice.densities)
