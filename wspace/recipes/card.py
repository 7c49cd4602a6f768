"""The model card of an output: what it was made of, and how."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from wspace.derived.models import is_hub_id
from wspace.recipes.plan import Plan
from wspace.recipes.record import names_of
from wspace.recipes.references import ModelReference
from wspace.recipes.report import Report
from wspace.storage.checkpoints import Checkpoint
from wspace.storage.naming import hub_place, public_name

RECIPE = "mergekit_config.yml"
"""The recipe beside the weights, under the name by which tools of the Hub know it."""


def model_card(plan: Plan, title: str, report: Report | None = None) -> str:
    """``README.md``: a YAML header for the Hub, then method, models, recipe and report.

    ``base_model`` of the header are the models of the Hub, by their ids. Of absolute paths, which
    tell of the machine, the last name is given.
    """
    recipe = plan.recipe
    known = names_of(plan)
    ids = [name for pair in zip(plan.references, plan.checkpoints, strict=True)
           for name in _hub_ids(*pair)]  # fmt: skip
    header = ["---", *(["base_model:"] if ids else [])]
    header += [f"- {json.dumps(name, ensure_ascii=False)}" for name in dict.fromkeys(ids)]
    header += ["library_name: transformers", "tags:", "- mergekit", "- merge", "- wspace", "---"]
    lines = [*header, f"# {title}", "", "A merge of other models, made by wspace.", "", "## Method"]
    lines += ["", f"`{recipe.method}`: {_linked(plan.method.source)}", "", "## Models", ""]
    for reference, name in known.items():
        lines.append(f"- {name}{' (the base)' if reference == recipe.base else ''}")
    fence = "`" * (3 + recipe.text.count("```"))
    lines += ["", "## Recipe", "", f"{fence}yaml", recipe.text.rstrip("\n"), fence, ""]
    if report:
        lines += _measured(report)
    text = "\n".join(lines)
    for path in _absolute(plan):
        place = public_name(path) if hub_place(path) else Path(path).name
        whole = rf"(?<![\w./~-]){re.escape(path)}(?![\w./-])"
        text = re.sub(whole, lambda found, place=place: place, text)
    return text


def _hub_ids(reference: ModelReference, checkpoint: Checkpoint) -> Iterator[str]:
    """Of a model and its adapter."""
    if place := hub_place(checkpoint.path):
        yield place.id
    if adapter := reference.adapter:
        place = hub_place(adapter.path)
        if place or is_hub_id(adapter.path):
            yield place.id if place else adapter.path


def _absolute(plan: Plan) -> set[str]:
    """Local paths of the recipe's models, adapters and diagonals that begin at the root."""
    models = [*plan.references, *[r.adapter for r in plan.references if r.adapter]]
    paths = [model.path for model in models]
    paths += [str(diagonal.path) for diagonal in plan.diagonals if diagonal]
    return {path for path in paths if Path(path).is_absolute()}


def _linked(source: str) -> str:
    """A method's source, with its papers as links."""
    words = source.split(" ")
    for k, word in enumerate(words[1:], 1):
        if words[k - 1] == "arXiv":
            number = word.rstrip(",;.")
            words[k] = f"[{number}](https://arxiv.org/abs/{number}){word[len(number) :]}"
    return " ".join(words) or "bytes as they are, or scaled"


def _measured(report: Report) -> list[str]:
    total = report.total
    lines = ["## Measured", "", f"Norm {total.norm:.6g}; NaN or Inf: {total.non_finite}.", ""]
    of = f" (from {report.base})" if report.base else ""
    lines += [f"| model | distance | cosine{of} |", "|---|---|---|"]
    for model, distance in total.distances.items():
        cells = ("-" if v is None else f"{v:.6g}" for v in (distance, total.cosines[model]))
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return [*lines, ""]
