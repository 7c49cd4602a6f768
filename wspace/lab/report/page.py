"""report.html: one file that needs nothing else, and the figures beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wspace.lab.records import write_text
from wspace.lab.report.comparison import comparison
from wspace.lab.report.formats import counted, seconds
from wspace.lab.report.headlines import headlines
from wspace.lab.report.style import CSS
from wspace.lab.report.tables import Table, tables
from wspace.lab.report.words import findings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "zoo": "The zoo",
    "clusters": "Do models cluster by what they were trained on?",
    "lines": "Between two models, and beyond them",
    "regions": "Inside a region, on its corners, outside",
    "edges": "Where a region ends",
    "efficient": "The centre as a start for BitFit",
    "sizes": "Does the number of training rows matter?",
}
EXPLAINED = {
    "zoo": "Each model starts from the same base; its seed draws the head and orders the rows.",
    "clusters": "Only weights are looked at: each model's difference from the base, all of it "
    "one vector. The groups are found from inner products of these vectors.",
    "lines": "A point on the line through two models mixes their weights. Its loss is that of a "
    "new linear head, fitted on the frozen encoder's features and judged on test rows.",
    "regions": "In: models tuned alike. In': random points of their convex hull. Ex: models "
    "tuned on other data, or random vectors as long as theirs. P_B(A, B) is the chance that a "
    "point of A has a loss no greater than one of B, with a 95 % bootstrap interval.",
    "edges": "From the centre of one data set's models outwards: in random directions, through "
    "the models, and towards zero.",
    "efficient": "BitFit trains biases and a new head alone. It starts from the pretrained "
    "model, or from the mean of models that never saw the target.",
    "sizes": "One model for each data set and number of rows.",
}

PARTS = ("mix", "features", "probe")  # of an evaluation


def write_report(results: Mapping[str, Any], folder: Path) -> Path:
    """``report.html`` and ``figures/*.svg, *.png`` of a results folder; returns the page's path.

    ``results``: what results.json holds. Stages that were not run are left out, and said to be.
    """
    drawn = draw(results, folder / "figures")
    path = folder / "report.html"
    write_text(path, page(results, drawn))
    return path


def draw(results: Mapping[str, Any], folder: Path) -> dict[str, dict[str, tuple[str, str]]]:
    """Saves every figure; returns ``stage -> name -> (title, svg element)``."""
    from wspace.lab.report import clusters, starts, walks
    from wspace.lab.report.drawing import save, style

    stages = {
        "zoo": clusters.zoo,
        "clusters": clusters.clusters,
        "lines": walks.lines,
        "regions": walks.regions,
        "edges": walks.edges,
        "efficient": starts.efficient,
        "sizes": starts.sizes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.*"):  # of an earlier run, perhaps of stages that are no more
        old.unlink()
    drawn = {}
    with style():
        for stage, make in stages.items():
            if results.get(stage):
                figures: dict[str, Figure] = make(results[stage])
                drawn[stage] = {
                    name: (figure.axes[0].get_title(loc="left"), save(figure, name, folder))
                    for name, figure in figures.items()
                }
    return drawn


def page(results: Mapping[str, Any], drawn: Mapping[str, Mapping[str, tuple[str, str]]]) -> str:
    """The whole page as HTML."""
    name = escape(str(results["name"]))
    said, shown = findings(results), tables(results)
    stages = [stage for stage in TITLES if stage in said]
    parts = [
        f"<h1>{name}</h1>",
        f'<p class="lead">{escape(_lead(results))}</p>',
        _found(results),
        _compared(results),
        *(_stage(stage, said[stage], drawn.get(stage, {}), shown[stage]) for stage in stages),
        _made(results, [stage for stage in TITLES if stage not in said]),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{name}: regions in weight space</title>\n<style>{CSS}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(part for part in parts if part)}</main>\n</body>\n</html>\n"
    )


def _lead(results: Mapping[str, Any]) -> str:
    machine = results["machine"]
    where = machine.get("gpu") or f"{machine['cores']} cores of {machine['processor']}"
    spent = seconds(sum(results["timings"].values()))
    return (
        f"Models fine-tuned from {results['settings']['base']}, seen as points of weight space. "
        f"Made in {spent} on {where}."
    )


def _found(results: Mapping[str, Any]) -> str:
    items = headlines(results)
    return f"<section><h2>What was found</h2>{_list(items)}</section>" if items else ""


def _compared(results: Mapping[str, Any]) -> str:
    claims = comparison(results)
    if not claims:
        return ""
    rows = [
        [claim.claim, claim.paper, claim.here, "yes" if claim.agrees else "no"] for claim in claims
    ]
    agreeing = sum(claim.agrees for claim in claims)
    table = Table(
        "Each claim of the paper that was looked at", ("claim", "paper", "here", "same direction"),
        rows,
    )  # fmt: skip
    return (
        "<section><h2>Beside the paper</h2><p>The paper is Gueta et al., Knowledge is a Region in "
        "Weight Space for Fine-tuned Language Models, arXiv 2302.04863: RoBERTa-base and 36 data "
        "sets. Values of other models and data cannot be compared, directions can: "
        f"{agreeing} of {counted(len(claims), 'claim')} point the paper's way here.</p>"
        f"{_table(table)}</section>"
    )


def _stage(
    stage: str, said: list[str], drawn: Mapping[str, tuple[str, str]], shown: list[Table]
) -> str:
    figures = "".join(
        f'<figure id="{escape(name)}" role="img" aria-label="{escape(title)}">{svg}</figure>'
        for name, (title, svg) in drawn.items()
    )
    grid = f'<div class="figures">{figures}</div>' if figures else ""
    return (
        f'<section id="{stage}"><h2>{escape(TITLES[stage])}</h2>'
        f'<p class="explained">{escape(EXPLAINED[stage])}</p>{_list(said)}{grid}'
        f"{''.join(map(_table, shown))}</section>"
    )


def _made(results: Mapping[str, Any], lacking: list[str]) -> str:
    """How it was made: what did not take part, times, versions, settings."""
    notes = [f"Not run: {TITLES[stage]}" for stage in lacking]
    for stage in TITLES:
        found = results.get(stage)
        if isinstance(found, Mapping):
            notes += [f"Left out of {stage}: {k} ({why})" for k, why in found["left_out"].items()]
    left = (results.get("geometry") or {}).get("left_out", {})
    notes += [f"No part of any task vector: {name} ({why})" for name, why in left.items()]
    rows = [[stage, seconds(spent)] for stage, spent in results["timings"].items()]
    times = Table("Time of each stage", ("stage", "time"), rows)
    rows = [
        [stage, f"{spent['forward_passes']:,}", *(f"{spent[k]:.1f} s" for k in PARTS)]
        for stage, spent in results.get("evaluation", {}).items()
    ]
    parts = Table("Of it, evaluating points", ("stage", "points x data sets", *PARTS), rows)
    shown = _table(parts) if rows else ""
    facts = {**results["versions"], **results["machine"]}
    made = Table("Versions and machine", ("what", "which"), [[k, str(v)] for k, v in facts.items()])
    settings = escape(json.dumps(results["settings"], indent=1, ensure_ascii=False))
    return (
        f'<section id="made"><h2>How it was made</h2>{_list(notes)}{_table(times)}{shown}'
        f"{_table(made)}<details><summary>All settings</summary><pre>{settings}</pre></details>"
        "</section>"
    )


def _list(items: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>" if items else ""


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    return (
        f'<h3>{escape(table.title)}</h3><div class="table"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(text: str) -> str:
    kind = ' class="n"' if re.match(r"[-+–]?[\d.]|–$", text) else ""
    return f"<td{kind}>{escape(text)}</td>"
