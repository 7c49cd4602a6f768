"""The outputs of a recipe's file: one, or one for each of its documents and its sweeps' values.

A document whose model is the ``name`` of another reads that one's output, and is run after it.
Those that need none of each other are run together, and what they share is read once.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wspace.errors import OutputError
from wspace.recipes.costs import Cost, cost
from wspace.recipes.documents import read_documents
from wspace.recipes.grammar import Recipe, parse_recipe
from wspace.recipes.plan import Plan, models_of, plan_recipe
from wspace.recipes.problems import Problems, RecipeError
from wspace.recipes.record import job_of
from wspace.recipes.references import Models
from wspace.recipes.run import donor_of, merge_recipes
from wspace.recipes.source import MAX_BYTES
from wspace.storage.checkpoints import Checkpoint, StoredTensor, open_checkpoint
from wspace.storage.headers import BITS, TensorRecord
from wspace.storage.opening import read_text, real_path
from wspace.storage.outputs import check_output, check_space
from wspace.storage.partial import is_published
from wspace.stream import Progress
from wspace.team import ALONE, Team


@dataclass(frozen=True)
class Output:
    name: str  # of its folder below the one asked for; empty where it is that one
    recipe: Recipe
    plan: Plan
    reads: tuple[str, ...]  # the outputs that it is made of


@dataclass(frozen=True)
class Outputs:
    """What a file makes, in stages: those of one stage are read for together."""

    stages: tuple[tuple[Output, ...], ...]
    file: str
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Output]:
        return (output for stage in self.stages for output in stage)

    def __len__(self) -> int:
        return sum(map(len, self.stages))

    def cost(self, *, device: str = "auto", memory: int | str = "1GiB") -> Cost:
        """Bytes read and written in all, and held at most at a time."""
        costs = [
            cost(*(output.plan for output in stage), device=device, memory=memory)
            for stage in self.stages
        ]
        return Cost(
            sum(c.read_bytes for c in costs), sum(c.write_bytes for c in costs),
            max(c.memory_bytes for c in costs),
        )  # fmt: skip


def read_outputs(
    path: str | Path,
    problems: Problems,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Outputs:
    """Plan all that a recipe's file makes, from headers alone. Raises RecipeError."""
    try:
        text = read_text(Path(path), MAX_BYTES)
    except OSError as error:
        raise RecipeError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError:
        raise RecipeError([f"{path}: not a text in UTF-8"]) from None
    return plan_outputs(text, problems, include=include, exclude=exclude)


def plan_outputs(
    text: str, problems: Problems, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Outputs:
    """:func:`read_outputs` of a file's text."""
    with _uncollected():
        return _planned(text, problems, include, exclude)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the garbage collector, which would look again and again through millions of records
    that all stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _planned(
    text: str, problems: Problems, include: Sequence[str], exclude: Sequence[str]
) -> Outputs:
    recipes = _named(text, problems)
    stages = _staged(recipes, problems)
    promised: dict[str, Checkpoint] = {}
    models = Models(promised)
    planned: list[tuple[Output, ...]] = []
    with ExitStack() as stack:
        for stage in stages:
            outputs = []
            for name, reads in stage.items():
                if any(other not in promised for other in reads):
                    continue  # of what is wrong there, this says nothing new
                recipe = recipes[name]
                try:
                    plan = plan_recipe(recipe, problems, include, exclude, models)
                except RecipeError:
                    if not problems.errors:
                        raise
                    continue
                promised[name] = _promised(plan, name, stack)
                outputs.append(Output(name, recipe, plan, reads))
            planned.append(tuple(outputs))
    problems.raise_errors()
    return Outputs(tuple(planned), problems.file, tuple(include), tuple(exclude))


def _named(text: str, problems: Problems) -> dict[str, Recipe]:
    """Every recipe by the name of its output, in the file's order."""
    documents = read_documents(text, problems)
    recipes: dict[str, Recipe] = {}
    for number, variants in enumerate(documents, 1):
        for variant in variants:
            try:
                recipe = parse_recipe(variant.text, problems)
            except RecipeError:
                if not problems.errors:  # not YAML, and said so in its own words
                    raise
                continue
            last = number == len(documents) and all(r.name for r in recipes.values())
            own = recipe.name or ("final" if last else f"recipe-{number}")
            name = "/".join(filter(None, [own if len(documents) > 1 else "", variant.label]))
            if name in recipes:
                problems.error(recipe.line, f"two outputs are called {name!r}")
            recipes[name] = recipe
    for name, recipe in recipes.items():
        if any(other.startswith(f"{name}/") for other in recipes):
            problems.error(recipe.line, f"the output {name!r} would hold another one")
    if not recipes:
        problems.raise_errors()
    return recipes


def _staged(recipes: Mapping[str, Recipe], problems: Problems) -> list[dict[str, tuple[str, ...]]]:
    """Names, and which others each reads, in an order in which they can be made."""
    folders = {name.rpartition("/")[0] for name in recipes} - {""}
    reads: dict[str, tuple[str, ...]] = {}
    for name, recipe in recipes.items():
        found = []
        for reference, line in models_of(recipe).items():
            if reference.path in recipes and reference.path:
                found.append(reference.path)
            elif reference.path in folders and not Path(reference.path).exists():
                several = [other for other in recipes if other.startswith(f"{reference.path}/")]
                problems.error(
                    line, f"{reference.path} is {len(several)} outputs, such as {several[0]}: name "
                    "one of them"
                )  # fmt: skip
        reads[name] = tuple(found)
    stages: list[dict[str, tuple[str, ...]]] = []
    made: set[str] = set()
    while len(made) < len(recipes):
        stage = {k: r for k, r in reads.items() if k not in made and made.issuperset(r)}
        if not stage:
            name = next(name for name in recipes if name not in made)
            circle = [name]
            while circle.count(circle[-1]) < 2:
                circle.append(next(other for other in reads[circle[-1]] if other not in made))
            circle = circle[circle.index(circle[-1]) :]
            problems.error(
                recipes[circle[0]].line, f"recipes read each other's outputs: {' <- '.join(circle)}"
            )
            problems.raise_errors()
        stages.append(stage)
        made.update(stage)
    return stages


def _promised(plan: Plan, name: str, stack: ExitStack) -> Checkpoint:
    """A plan's output as a checkpoint, before it is there."""
    folder = stack.enter_context(donor_of(plan)).folder
    tensors: dict[str, StoredTensor] = {}
    start = 0
    for tensor in plan.tensors:
        nbytes = tensor.numel * BITS[tensor.dtype] // 8
        record = TensorRecord(tensor.dtype, tensor.shape, start, nbytes)
        tensors[tensor.name] = StoredTensor(record, 0)
        start += nbytes
    return Checkpoint(folder, (folder / "model.safetensors",), tensors, title=name)


def places_of(outputs: Outputs, given: Sequence[str]) -> list[Path]:
    """A path for each output: as many as there are; or one, that of a folder for all of them.

    In one with ``{}``, that stands for the output's name.
    """
    names = [output.name for output in outputs]
    if len(given) == len(names):
        return [Path(path) for path in given]
    if len(given) > 1:
        raise OutputError(
            f"{len(given)} outputs given for {len(names)} ({', '.join(names[:4])}"
            f"{', ...' if len(names) > 4 else ''}): give one for each, or one folder for all"
        )
    pattern = given[0] if "{}" in given[0] else f"{given[0].rstrip('/')}/{{}}"
    return [Path(pattern.replace("{}", name)) for name in names]


def merge_outputs(
    outputs: Outputs,
    places: Sequence[Path],
    *,
    progress: Progress | None = None,
    team: Team = ALONE,
    **options: Any,
) -> list[Path]:
    """Make every output; options are those of :func:`wspace.recipes.merge_recipes`.

    What is complete when a later stage fails stays, and is not made again by the same command.
    """
    if not team.meets and len(outputs.stages) > 1:
        raise OutputError(
            f"{outputs.file}: some outputs are made of others, for which ranges cannot wait: run "
            "it without --range"
        )
    made = _published(outputs, places, options)
    if len(made) == len(outputs):
        if not team.meets:  # by the other shares and an earlier run of this one
            return list(places)
        made = {}
    resolved = [real_path(path) for path in places]
    place_of = dict(zip((output.name for output in outputs), places, strict=True))
    for output, path in zip(outputs, places, strict=True):
        if output.name not in made:
            check_output(path, output.plan.checkpoints)
        if resolved.count(real_path(path)) > 1:
            raise OutputError(f"{path}: two outputs have this path")
        if any(other in real_path(path).parents for other in resolved):
            raise OutputError(f"{path}: lies inside another output")
    left = [output for output in outputs if output.name not in made]
    if team.share.index == 0:
        check_space(
            [place_of[output.name] for output in left], sum(output.plan.nbytes for output in left)
        )
    for stage in outputs.stages:
        models = Models(made)
        left = [output for output in stage if output.name not in made]
        plans = [_plan(output, outputs, models) for output in left]
        paths = [place_of[output.name] for output in left]
        merge_recipes(plans, paths, progress=progress, team=team, **options)
        if team.meets:
            made |= {o.name: open_checkpoint(path) for o, path in zip(left, paths, strict=True)}
    return list(places)


def _plan(output: Output, outputs: Outputs, models: Models) -> Plan:
    """The plan with the outputs that it reads, once they are there."""
    if not output.reads:
        return output.plan
    problems = Problems(outputs.file)
    return plan_recipe(output.recipe, problems, outputs.include, outputs.exclude, models)


def _published(
    outputs: Outputs, places: Sequence[Path], options: Mapping[str, Any]
) -> dict[str, Checkpoint]:
    """What an earlier run of the same command has made."""
    made: dict[str, Checkpoint] = {}
    for output, path in zip(outputs, places, strict=True):
        if path.exists() and all(name in made for name in output.reads):
            plan = _plan(output, outputs, Models(made))
            if is_published(path, job_of(plan, **options)):
                made[output.name] = open_checkpoint(path)
    return made
