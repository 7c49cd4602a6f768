"""The demo: the experiments on rows that come with the package, and a merge; offline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wspace.lab.encoders import HEAD_PATTERNS
from wspace.lab.finetune import Progress
from wspace.lab.report.headlines import headlines
from wspace.lab.settings import load_settings
from wspace.lab.stages import run_experiment
from wspace.merging import merge
from wspace.mixing import centroids
from wspace.zoo import open_zoo


def run_demo(
    folder: Path,
    *,
    device: str = "auto",
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda line: None,
    changes: Sequence[str] = (),
) -> list[str]:
    """Train a small zoo, run every experiment on it, merge it, and write the report.

    ``changes``: of the settings, as :func:`wspace.lab.settings.load_settings` takes them. What is
    finished in ``folder`` is not done again. Returns what was found, a line each.
    """
    settings = load_settings("demo", changes)
    results = run_experiment(settings, folder, device=device, progress=progress, note=note)
    merged = merge_families(results["zoo"], folder)
    return [
        *headlines(results),
        f"The mean of each family's models, to load or go on from: {', '.join(map(str, merged))}.",
    ]


def merge_families(records: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """``merged/<family>``: the mean of each family's models, all written in one read of the zoo."""
    done = [record for record in records if record["status"] == "done"]
    families = sorted({record["family"] for record in done})
    outs = [folder / "merged" / family for family in families]
    lacking = [k for k, out in enumerate(outs) if not out.exists()]
    if lacking:
        members = [folder / "models" / record["name"] for record in done]
        zoo = open_zoo(members, base=folder / "base", exclude=HEAD_PATTERNS)
        labels = [families.index(record["family"]) for record in done]
        merge(zoo, centroids(labels)[lacking], [outs[k] for k in lacking], device="cpu")
    return outs
