"""``wspace cluster``: groups of models, from one read."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING

from wspace.cli.options import (
    add_format,
    add_work,
    add_zoo,
    note,
    note_zoo,
    team_of,
    zoo_of,
)
from wspace.cli.products import add_sums, gram_of
from wspace.cli.tables import show, write_csv
from wspace.errors import OutputError, WspaceError

if TYPE_CHECKING:
    from wspace.team import Team

SUMMARY = "groups of models, from one read"
DESCRIPTION = """\
Clusters the models by the directions of their task vectors (cosine), or by distance.
--labels takes a CSV with the columns model and label, and says how well the clusters
found from the weights agree with it. --report writes clusters.csv, distances.csv,
cosines.csv and report.json to a new folder."""
EXAMPLE = "wspace cluster runs/* --base base -k 3 --labels labels.csv --report out/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_zoo(parser)
    parser.add_argument("-k", type=int, required=True, metavar="K", help="how many clusters")
    parser.add_argument(
        "--method", choices=("spectral", "kmeans"), default="spectral",
        help="spectral clustering of cosines (default), or k-means",
    )  # fmt: skip
    parser.add_argument(
        "--metric", choices=("cosine", "euclidean"), default="cosine",
        help="for k-means: directions of the task vectors (default), or the models themselves",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the starting points (default 0)")
    parser.add_argument("--labels", metavar="CSV", help="what the models are known to be")
    parser.add_argument("--report", metavar="FOLDER", help="where to write tables; must not exist")
    add_format(parser)
    add_work(parser)
    add_sums(parser)


def run(options: argparse.Namespace) -> None:
    with team_of(options) as team:
        _run(options, team)


def _run(options: argparse.Namespace, team: Team) -> None:
    from wspace import geometry

    zoo = zoo_of(options)
    note_zoo(options, zoo)
    if not 1 <= options.k <= len(zoo):
        raise WspaceError(f"-k is {options.k}, but there are {len(zoo)} models")
    known = _labels(options.labels, zoo.names) if options.labels else None
    report = Path(options.report) if options.report else None
    if report and report.exists():
        raise OutputError(f"{report}: exists; choose another name, or remove it first")
    products = gram_of(options, zoo, team, "Gram matrix")
    if products is None or not team.leads:
        return
    if options.method == "spectral":
        found = geometry.spectral_clustering(products, options.k, seed=options.seed)
    else:
        by_angle = options.metric == "cosine"
        found = geometry.kmeans(products, options.k, seed=options.seed, normalize=by_angle)
    labels = found.labels.tolist()
    spread = geometry.distances_to_centroid(products, found.weights)
    columns = ["model", "cluster", "distance_to_centroid", *(["label"] if known else [])]
    rows = [
        [name, label, float(spread[label, i]), *([known[i]] if known else [])]
        for i, (name, label) in enumerate(zip(zoo.names, labels, strict=True))
    ]
    show(columns, rows, options.format)
    agreement = None
    if known:
        agreement = majority_accuracy(labels, known)
        note(options, f"{agreement:.1%} of the models have the label of their cluster's majority")
    if report:
        _write(report, zoo.names, columns, rows, products, options, agreement)


def majority_accuracy(clusters: list[int], labels: list[str]) -> float:
    """Share of models whose label is the most frequent one of their cluster (Gueta et al., 4.2)."""
    right = 0
    for cluster in set(clusters):
        inside = [label for c, label in zip(clusters, labels, strict=True) if c == cluster]
        right += max(inside.count(label) for label in set(inside))
    return right / len(labels)


def _labels(path: str, names: tuple[str, ...]) -> list[str]:
    try:
        # spreadsheets put a byte order mark first
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file, restval="")
            columns = rows.fieldnames or ()
            given = {row.get("model", "").rstrip("/"): row.get("label", "") for row in rows}
    except (UnicodeDecodeError, csv.Error) as error:
        raise WspaceError(f"{path}: not a CSV file: {error}") from None
    if not {"model", "label"} <= set(columns):
        found = ", ".join(columns) or "none"
        raise WspaceError(f"{path}: expected the columns model and label, found {found}")
    given = {model: label for model, label in given.items() if label}
    # a table may give whole paths, or names as they are printed
    short = {Path(model).name: label for model, label in given.items()}
    missing = [name for name in names if name not in given and Path(name).name not in short]
    if missing:
        raise WspaceError(f"{path}: no label for {missing[0]!r}")
    return [given.get(name, short.get(Path(name).name, "")) for name in names]


def _write(report: Path, names, columns, rows, products, options, agreement) -> None:
    from wspace import geometry

    report.mkdir(parents=True)
    tables = {"distances": geometry.distances(products), "cosines": geometry.cosines(products)}
    with (report / "clusters.csv").open("w", newline="", encoding="utf-8") as file:
        write_csv(file, columns, rows)
    for title, matrix in tables.items():
        with (report / f"{title}.csv").open("w", newline="", encoding="utf-8") as file:
            lines = [[name, *row] for name, row in zip(names, matrix.tolist(), strict=True)]
            write_csv(file, ["model", *names], lines)
    content = {
        "models": list(names),
        "base": options.base,
        "method": options.method,
        "k": options.k,
        "seed": options.seed,
        "clusters": [dict(zip(columns, row, strict=True)) for row in rows],
        "majority_accuracy": agreement,
        "gram": products.total.tolist(),
        "left_out": products.left_out,
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (report / "report.json").write_text(text + "\n", encoding="utf-8")
