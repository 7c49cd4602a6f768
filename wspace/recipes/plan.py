"""A recipe as a plan: for every output tensor, from which inputs, and with which numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wspace.errors import WspaceError
from wspace.recipes.assembly import Assembly
from wspace.recipes.configs import Restacked, read_config, resized, restack
from wspace.recipes.densities import check_choices
from wspace.recipes.diagonals import open_diagonals
from wspace.recipes.grammar import Recipe
from wspace.recipes.methods import METHODS, Method
from wspace.recipes.problems import Problems, nearest
from wspace.recipes.references import ModelReference, Models
from wspace.recipes.scopes import Scope, check_parameters, scope_of
from wspace.recipes.steps import TensorPlan
from wspace.recipes.templates import BUILT_IN, most_frequent, with_template
from wspace.recipes.tensors import Tensors
from wspace.recipes.vocabulary import Vocabulary, realign
from wspace.recipes.vocabulary_checks import check_special, warn_of_tokenizers
from wspace.storage.checkpoints import Checkpoint
from wspace.storage.headers import BITS, CODES, KERNEL_NAMES


@dataclass(frozen=True)
class Plan:
    recipe: Recipe
    method: Method
    references: tuple[ModelReference, ...]
    checkpoints: tuple[Checkpoint, ...]
    donor: int  # of checkpoints: whose config and tokenizer the output has
    tensors: tuple[TensorPlan, ...]
    left_out: dict[str, str]
    config: dict[str, Any] | None  # the donor's, if it had to be edited
    tokenizer: Checkpoint  # whose tokenizer files the output has
    files: dict[str, str | None]  # of those, the ones that differ; None: not there
    diagonals: tuple[
        Checkpoint | None, ...
    ] = ()  # of each of checkpoints, where the method needs them

    @property
    def nbytes(self) -> int:
        """Of the output."""
        return sum(tensor.numel * BITS[tensor.dtype] // 8 for tensor in self.tensors)

    @property
    def dtype(self) -> str | None:
        """The type of the weights, as the config shall have it: that of most elements."""
        elements: dict[str, int] = {}
        for tensor in self.tensors:
            if tensor.step:
                elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.numel
        return KERNEL_NAMES[max(elements, key=elements.__getitem__)] if elements else None


def plan_recipe(
    recipe: Recipe,
    problems: Problems,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    models: Models | None = None,
) -> Plan:
    """Open the models, headers only, and plan every tensor; raises RecipeError with all problems.

    ``include`` / ``exclude``: patterns of output names; what they leave out is not written.
    ``models`` opens them.
    """
    method = _method(recipe, problems)
    if method:
        check_parameters(recipe, method, problems)
    models = models or Models()
    opened = _open(recipe, models, problems)
    if method is None or not recipe.complete:
        problems.raise_errors()
    assert method is not None
    scopes: list[list[Scope]] = []
    for module in recipe.modules:
        found = [scope_of(recipe, module, part, method, problems) for part in module.slices]
        scopes.append([scope for scope in found if scope])
        if len(scopes[-1]) < len(found) or len(opened) < len(models_of(recipe)):
            problems.raise_errors()
    donor = list(opened).index(recipe.base or scopes[0][0].slice.sources[0].model)
    diagonals = open_diagonals(recipe, method, models, problems)
    vocabulary = None
    if recipe.tokenizer:
        vocabulary = realign(recipe.tokenizer, opened, models, recipe.base, problems)
        if vocabulary is None:
            problems.raise_errors()
    opened = vocabulary.models if vocabulary else opened
    collected = Tensors(recipe, method, opened, donor, problems, include, exclude, diagonals)
    if vocabulary and vocabulary.untied:
        collected.untied = True
        problems.note("a head is written that some models have only as their embeddings (tied)")
    assembly = Assembly(collected, recipe.modules, problems)
    for module, of_module in zip(recipe.modules, scopes, strict=True):
        assembly.add_module(module, of_module)
    collected.report_problems()
    tensors = tuple(collected.planned)
    problems.raise_errors()
    if not any(tensor.step for tensor in tensors):
        problems.error(None, "no floating-point tensor is left to merge")
        problems.raise_errors()
    _note_dtypes(recipe, tensors, problems)
    check_choices(recipe, tensors, problems)
    if recipe.method == "slerp":
        problems.note(
            "where two tensors' cosine is above 0.9995 (fine-tunes that moved by less than about "
            "2 %), slerp is a straight line"
        )
    config = _config(collected, assembly.restacked, vocabulary, problems)
    checkpoints = tuple(opened.values())
    if vocabulary is None:
        warn_of_tokenizers(opened, problems)
    else:
        check_special(checkpoints[donor], vocabulary, collected.references[donor], problems)
    owner = vocabulary.owner if vocabulary else checkpoints[donor]
    files = dict(vocabulary.files) if vocabulary else {}
    files |= _template(recipe, opened, owner, files, problems)
    return Plan(
        recipe, method, tuple(opened), checkpoints, donor, tensors, collected.left_out, config,
        owner, files, diagonals.checkpoints(tuple(opened)) if diagonals else (),
    )  # fmt: skip


def _method(recipe: Recipe, problems: Problems) -> Method | None:
    method = METHODS.get(recipe.method)
    if method is None:
        near = nearest(recipe.method, METHODS)
        hint = f"did you mean {near}?" if near else f"known: {', '.join(METHODS)}"
        text = f"merge_method {recipe.method!r} is unknown; {hint}"
        problems.error(recipe.method_line, text)
    return method


def models_of(recipe: Recipe) -> dict[ModelReference, int]:
    """Every model once, in the order in which the recipe lists them, and where it does."""
    lines: dict[ModelReference, int] = {}
    for part in (part for module in recipe.modules for part in module.slices):
        for source in part.sources:
            lines.setdefault(source.model, source.line)
        if part.base:
            lines.setdefault(part.base, part.line)
    if recipe.base:
        lines.setdefault(recipe.base, recipe.base_line)
    return lines


def _open(recipe: Recipe, models: Models, problems: Problems) -> dict[ModelReference, Checkpoint]:
    opened = {}
    for reference, line in models_of(recipe).items():
        try:
            opened[reference] = models.open(reference)
        except WspaceError as error:
            problems.error(line, str(error))
    return opened


def _note_dtypes(recipe: Recipe, tensors: Sequence[TensorPlan], problems: Problems) -> None:
    mixed = [tensor for tensor in tensors if tensor.step]
    written = {tensor.dtype for tensor in mixed}
    if len(written) > 1:
        names = ", ".join(sorted(KERNEL_NAMES[dtype] for dtype in written))
        problems.note(f"the output has several types ({names}); choose one with dtype")
    if recipe.dtype:
        bits = BITS[CODES[recipe.dtype]]
        if any(BITS[s.record.dtype] > bits for tensor in mixed for s in tensor.stored):
            problems.note(
                f"dtype {recipe.dtype}: inputs are read as they are and rounded once, when "
                "written; mergekit rounds them when it loads them"
            )


def _template(
    recipe: Recipe,
    models: Mapping[ModelReference, Checkpoint],
    owner: Checkpoint,
    edited: Mapping[str, str | None],
    problems: Problems,
) -> dict[str, str]:
    """The files that hold the chat template that the recipe asks for."""
    asked = recipe.chat_template
    if asked is None:
        return {}
    template = BUILT_IN.get(asked, asked)
    if asked == "auto":
        found = most_frequent([checkpoint.folder for checkpoint in models.values()])
        if found is None:
            problems.warn(None, "chat_template: auto: no model has one; none is set")
            return {}
        template = found
    return with_template(owner.folder, template, edited)


def _config(
    tensors: Tensors,
    restacked: Sequence[Restacked],
    vocabulary: Vocabulary | None,
    problems: Problems,
) -> dict[str, Any] | None:
    """The donor's config, if it has to differ."""
    donor, references, checkpoints = tensors.donor, tensors.references, tensors.checkpoints
    original = read_config(checkpoints[donor].folder)
    if original is None:
        return None
    edited = original
    if references[donor].architecture:
        edited = edited | {"architectures": [references[donor].architecture]}
    if tensors.untied:
        edited = edited | {"tie_word_embeddings": False}
    if vocabulary:
        edited = resized(edited, vocabulary.n_rows)
    used = {model for change in restacked for model, _ in change.layers}
    configs = {model: read_config(checkpoints[model].folder) for model in sorted(used)}
    for change in restacked:
        changed = restack(edited, change, configs)
        if changed is None:
            problems.warn(
                None,
                f"config.json of {references[donor]} has no number of layers that is "
                f"{change.n_before}: set it to {len(change.layers)} yourself",
            )
        edited = changed or edited
    return None if edited == original else edited
