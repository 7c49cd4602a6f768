"""An experiment from its settings to its report: stages that each leave a file, and go on from it.

<out>/settings.json        what the zoo here was made with
<out>/base, models/        plain folders of weights, each model's record.json beside it
<out>/cache/               losses and BitFit runs, a line each
<out>/<stage>.json         what a stage found
<out>/results.json, report.html, figures/
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from wspace import geometry
from wspace.lab.data import overlaps
from wspace.lab.experiments import clusters, edges, efficient, lines, regions, sizes
from wspace.lab.finetune import Progress
from wspace.lab.laboratory import Lab, StageError
from wspace.lab.records import versions, write_json
from wspace.lab.settings import Settings, digest

STAGES = (
    "finetune", "geometry", "clusters", "lines", "regions", "edges", "efficient", "sizes", "report",
)  # fmt: skip
EXPERIMENTS = {"clusters": clusters, "lines": lines, "regions": regions, "edges": edges}


def run_experiment(
    settings: Settings,
    folder: Path,
    *,
    device: str = "auto",
    only: Sequence[str] = (),
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run the stages that are not finished yet (of ``only``, or all); returns the results so far.

    A stage whose file was made with the same settings is not run again, and a changed setting of
    one experiment runs that one alone. Raises StageError for a folder whose zoo has other settings
    or for a stage that does not exist; what is finished stays whatever interrupts.
    """
    chosen = check_stages(only)
    claim(settings, folder)
    lab = Lab(settings, folder, device, progress, note)
    for stage in STAGES:
        if stage not in chosen or stage == "report":
            continue
        if stage in STAGES[2:] and getattr(settings.experiments, stage) is None:
            continue
        if read_stage(folder, stage, stage_hash(settings, stage)) is not None:
            note(f"{stage}: finished before")
            continue
        started = time.perf_counter()
        found = _run(lab, stage)
        seconds = time.perf_counter() - started
        if stage == "finetune":  # what all runs together took that trained its models
            seconds = sum(record["seconds"] for record in found)
        content = {
            "hash": stage_hash(settings, stage), "seconds": seconds,
            "evaluation": lab.evaluation_seconds(), "result": found,
        }  # fmt: skip
        write_json(folder / f"{stage}.json", content)
        note(f"{stage}: {seconds:.0f} s")
    results = gather(lab)
    write_json(folder / "results.json", results)
    if "report" in chosen:
        from wspace.lab.report import write_report

        write_report(results, folder)
    return results


def check_stages(only: Sequence[str]) -> tuple[str, ...]:
    for stage in only:
        if stage not in STAGES:
            raise StageError(f"no stage {stage!r}; known: {', '.join(STAGES)}")
    return tuple(only) or STAGES


def zoo_settings(settings: Settings) -> dict[str, Any]:
    """What the models follow from."""
    content = asdict(settings)
    return {key: content[key] for key in ("base", "pooling", "bf16", "seed", "tasks", "finetune")}


def stage_hash(settings: Settings, stage: str) -> str:
    """What a stage's result follows from, besides the data."""
    parts: list[Any] = [zoo_settings(settings)]
    if stage in STAGES[2:-1]:
        experiments = asdict(settings.experiments)
        parts += [experiments[stage], experiments["levels"], asdict(settings.probe)]
    return digest(parts)


def claim(settings: Settings, folder: Path) -> None:
    """Mark a new results folder as this zoo's, or check that it is."""
    if not claimed(settings, folder):
        write_json(folder / "settings.json", zoo_settings(settings))


def claimed(settings: Settings, folder: Path) -> bool:
    """Whether the folder is this zoo's; False for a new one.

    Raises StageError for another's, naming the first setting that differs.
    """
    path, wanted = folder / "settings.json", json.loads(json.dumps(zoo_settings(settings)))
    if path.exists():
        difference = _difference(json.loads(path.read_text(encoding="utf-8")), wanted)
        if difference:
            raise StageError(
                f"{folder}: results of another experiment ({difference}); choose another folder, "
                "or remove it first"
            )
    elif folder.exists() and any(folder.iterdir()):
        raise StageError(f"{folder}: not empty, and no results of an experiment; choose another")
    return path.exists()


def read_stage(folder: Path, stage: str, wanted: str | None = None) -> dict[str, Any] | None:
    """What a stage left, or None where it left nothing or was made with other settings."""
    path = folder / f"{stage}.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return None if wanted is not None and found["hash"] != wanted else found


def gather(lab: Lab) -> dict[str, Any]:
    """Everything that the finished stages found, as results.json has it."""
    settings, folder = lab.settings, lab.folder
    stages = {name: read_stage(folder, name, stage_hash(settings, name)) for name in STAGES[:-1]}
    found = {name: stage["result"] for name, stage in stages.items() if stage}
    return {
        "name": settings.name,
        # of the data's folder the name alone: results are shown to others
        "settings": asdict(settings) | {"data": settings.data and Path(settings.data).name},
        "versions": versions(),
        "machine": machine(),
        "overlaps": overlaps(lab.tasks),
        "zoo": found.pop("finetune", []),
        **found,
        "timings": {name: stage["seconds"] for name, stage in stages.items() if stage},
        # of a stage's seconds: mixing weights, forward passes, fitting heads
        "evaluation": {
            name: stage["evaluation"]
            for name, stage in stages.items()
            if stage and stage["evaluation"]
        },
    }


def machine() -> dict[str, Any]:
    """What the figures of time depend on."""
    found: dict[str, Any] = {
        "system": platform.platform(terse=True),
        "processor": torch.cpu.get_capabilities().get("cpu_name") or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _run(lab: Lab, stage: str) -> Any:
    if stage == "finetune":
        return lab.records
    if stage == "geometry":
        return _geometry(lab)
    if stage == "efficient":
        return efficient.run(lab.context(evaluates=True), lab.bench)
    if stage == "sizes":
        return sizes.run(lab.tasks, lab.bench)
    return EXPERIMENTS[stage].run(lab.context(evaluates=stage != "clusters"))


def _geometry(lab: Lab) -> dict[str, Any]:
    products = lab.gram
    heads = sorted({record["labels"] for record in lab.done})
    if products.left_out:
        lab.note(
            f"note: heads (of {', '.join(map(str, heads))} labels) take no part in the geometry: "
            + ", ".join(products.left_out)
        )
    return {
        "members": list(lab.names),
        "tasks": [record["task"] for record in lab.done],
        "families": [record["family"] for record in lab.done],
        "gram": products.total.tolist(),
        "norms": geometry.norms(products).tolist(),
        "tensors": len(products.tensors),
        "parameters": lab.zoo.numel,
        "left_out": {
            name: f"{reason} (heads of {', '.join(map(str, heads))} labels)"
            for name, reason in products.left_out.items()
        },
    }


def _difference(found: Any, wanted: Any, place: str = "") -> str | None:
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in wanted:
            inner = _difference(found.get(key), wanted[key], f"{place}.{key}" if place else key)
            if inner:
                return inner
        return None
    if found == wanted:
        return None
    return f"{place} was {_short(found)}, is now {_short(wanted)}"


def _short(value: Any) -> str:
    if isinstance(value, list):  # the tasks
        return f"{len(value)}: " + ", ".join(str(v.get("name", v)) for v in value[:6])
    return repr(value)
