"""The model card of an output: what it was made of, and how."""

from __future__ import annotations

import json

from wspace.recipes.plan import Plan
from wspace.recipes.report import Report

RECIPE = "mergekit_config.yml"
"""The recipe beside the weights, under the name by which tools of the Hub know it."""


def model_card(plan: Plan, title: str, report: Report | None = None) -> str:
    """``README.md``: a YAML header for the Hub, then method, models, recipe and report."""
    recipe = plan.recipe
    names = [str(reference) for reference in plan.references]
    base = str(recipe.base) if recipe.base else None
    header = ["---", "base_model:"]
    header += [f"- {json.dumps(name, ensure_ascii=False)}" for name in names]
    header += ["library_name: transformers", "tags:", "- mergekit", "- merge", "- wspace", "---"]
    lines = [*header, f"# {title}", "", "A merge of other models, made by wspace.", "", "## Method"]
    lines += ["", f"`{recipe.method}`: {_linked(plan.method.source)}", "", "## Models", ""]
    lines += [f"- {name}{' (the base)' if name == base else ''}" for name in names]
    fence = "`" * (3 + recipe.text.count("```"))
    lines += ["", "## Recipe", "", f"{fence}yaml", recipe.text.rstrip("\n"), fence, ""]
    if report:
        lines += _measured(report)
    return "\n".join(lines)


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
