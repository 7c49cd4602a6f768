"""``wspace index``: a catalogue of all models below a folder."""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import TYPE_CHECKING, Any

from wspace.cli.options import add_format, note, of_files, progress_bar
from wspace.cli.tables import show
from wspace.errors import CheckpointError, WspaceError
from wspace.sizes import format_bytes

if TYPE_CHECKING:
    from wspace.catalogue import Catalogue, Likeness, Relative

SUMMARY = "a catalogue of models: near-duplicates, and likely parents"
DESCRIPTION = """\
Reads every model below ZOO that is new or has changed, once, and keeps its header's
fingerprint, norms and checksums of its tensors, and a sketch of its weights (65,536
floats), in ZOO/.wspace. Prints the families: models with the same tensors.
With --like or --duplicates it reads no model that it knows and asks the catalogue: which
models are nearest to MODEL, and of which one it is a fine-tune, or of which ones a mix; or
which models are the same, or nearly. Distances are then estimates to 0.28 %; --exact reads
the models listed and measures them. A MODEL that is not in ZOO is read, once."""
EXAMPLE = "wspace index zoo --like zoo/model-3"
INTERRUPTED = "interrupted; the models that were finished stay, and the same command goes on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("zoo", metavar="ZOO", help="a folder with models, however deep")
    ask = parser.add_mutually_exclusive_group()
    ask.add_argument("--like", metavar="MODEL", help="the relatives of a model, in ZOO or not")
    ask.add_argument("--duplicates", action="store_true", help="groups of near-duplicates")
    parser.add_argument(
        "-n", type=int, default=10, metavar="N", help="of --like: how many relatives (default 10)"
    )
    parser.add_argument(
        "--exact", action="store_true", help="of --like: read those models and measure distances"
    )
    parser.add_argument(
        "--within", type=float, default=1e-4, metavar="SHARE",
        help="a near-duplicate is nearer than this share of the norm (default 1e-4)",
    )  # fmt: skip
    parser.add_argument(
        "--store", metavar="FOLDER", help="where the catalogue is (default ZOO/.wspace)"
    )
    add_format(parser)
    parser.add_argument(
        "--memory", default="1GiB", metavar="SIZE", help="bound on all buffers (default 1GiB)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, no notes")


@of_files
def run(options: argparse.Namespace) -> None:
    if options.n < 1 or not 0 <= options.within < math.inf:
        raise WspaceError("-n must be at least 1, and --within 0 or more")
    if options.exact and not options.like:
        raise WspaceError("--exact measures the relatives of a model: give --like MODEL too")
    if options.like or options.duplicates:
        from wspace.catalogue import open_catalogue

        catalogue = open_catalogue(options.zoo, store=options.store)
        stale = catalogue.stale()
        if stale:
            note(
                options,
                f"note: {len(stale)} models are new, changed or gone ({stale[0]}"
                f"{', ...' if len(stale) > 1 else ''}); wspace index {options.zoo} takes that in",
            )
        (_like if options.like else _duplicates)(options, catalogue)
    else:
        _index(options)


def _index(options: argparse.Namespace) -> None:
    from wspace.catalogue import index_zoo

    start = time.perf_counter()
    with progress_bar(options, "index") as progress:
        catalogue = index_zoo(
            options.zoo, store=options.store, memory=options.memory, progress=progress
        )
    show(*_families(catalogue), options.format)
    changes = catalogue.changes
    if changes.adapters:
        note(options, f"note: left out {len(changes.adapters)} LoRA adapters")
    note(
        options,
        f"{len(catalogue)} models: {len(changes.added)} added, {len(changes.changed)} changed, "
        f"{len(changes.removed)} removed; read {format_bytes(changes.nbytes)} in "
        f"{time.perf_counter() - start:.1f} s",
    )
    if catalogue.problems:
        path, problem = next(iter(catalogue.problems.items()))
        for other, text in list(catalogue.problems.items())[1:]:
            note(options, f"warning: {other}: {text}")
        count = len(catalogue.problems)
        raise CheckpointError(
            f"{count} of {count + len(catalogue)} models are not in the catalogue; the first is "
            f"{path}: {problem}"
        )


def _families(catalogue: Catalogue) -> tuple[list[str], list[list[Any]]]:
    """A row for each family, the largest first; ``layers`` are equal for those to be compared."""
    groups: dict[str, list] = {}
    for entry in catalogue.models.values():
        groups.setdefault(entry.layout.family, []).append(entry)
    columns = ["family", "layers", "models", "tensors", "parameters", "bytes", "example"]
    rows = []
    for family, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        layout = group[0].layout
        rows.append([
            family[:8], layout.layers[:8] or None, len(group), len(layout.names), layout.numel,
            sum(entry.nbytes for entry in group), group[0].path,
        ])  # fmt: skip
    return columns, rows


def _like(options: argparse.Namespace, catalogue: Catalogue) -> None:
    found = catalogue.like(options.like, n=options.n, within=options.within, memory=options.memory)
    columns, rows = _table(found.relatives)
    if options.exact and found.relatives:
        with progress_bar(options, "distances") as progress:
            apart, _ = catalogue.distances(
                options.like, [relative.path for relative in found.relatives],
                memory=options.memory, progress=progress,
            )  # fmt: skip
        columns.append("exact")
        for row, distance in zip(rows, apart.tolist(), strict=True):
            row.append(distance)
    if options.format == "json":
        content = {
            "model": found.model, "compared": found.compared, "candidates": found.candidates,
            "error": found.error, "explained": _finite(found.explained),
            "relatives": [_record(columns, row) for row in rows],
        }  # fmt: skip
        print(json.dumps(content, indent=1, ensure_ascii=False))
        return
    show(columns, rows, options.format)
    for line in _said(found):
        note(options, line)


def _said(found: Likeness) -> list[str]:
    what = "all tensors" if found.compared == "all" else "the numbered layers"
    lines = [f"{found.candidates} models compared in {what}, distances to {found.error:.2%}"]
    if len(found.parents) > 1:
        lines.append(
            f"a mix of {len(found.parents)} models explains {found.explained:.3%} of its squared "
            "distance to the nearest of them"
        )
    return lines


def _table(relatives: tuple[Relative, ...]) -> tuple[list[str], list[list[Any]]]:
    columns = ["model", "relation", "distance", "relative", "cosine", "weight", "equal", "tensors"]
    return columns, [list(relative) for relative in relatives]


def _record(columns: list[str], row: list[Any]) -> dict[str, Any]:
    return {name: _finite(value) for name, value in zip(columns, row, strict=True)}


def _finite(value: Any) -> Any:
    # JSON has no NaN
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _duplicates(options: argparse.Namespace, catalogue: Catalogue) -> None:
    groups = catalogue.duplicates(within=options.within)
    columns = ["like", "model", "relation", "distance", "relative", "equal", "tensors"]
    rows = [[group.first, *other[:4], *other[6:]] for group in groups for other in group.others]
    show(columns, rows, options.format)
    spared = sum(len(group.others) for group in groups)
    note(options, f"{spared} of {len(catalogue)} models are near-duplicates of another")
