"""``wspace distances``: distances or cosines between models."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from wspace.cli.options import (
    add_format,
    add_work,
    add_zoo,
    device_of,
    note,
    note_zoo,
    of_files,
    progress_bar,
    team_of,
    zoo_of,
)
from wspace.cli.products import add_sums, gram_of
from wspace.cli.tables import show
from wspace.errors import WspaceError

if TYPE_CHECKING:
    import torch

    from wspace.team import Team
    from wspace.zoo import Zoo

SUMMARY = "distances or cosines between models, from one read"
DESCRIPTION = """\
Euclidean distances, cosines of the task vectors (model minus base), or mean absolute
differences between all models; with a base, also each model's distance from it. Pairs
that are much closer to each other than to the base are measured again, directly.
Processes of torchrun divide the parameters among them (torchrun --nproc-per-node 8 -m wspace
distances ...); --range does it without torchrun, in a job array, and --sums joins what it left."""
EXAMPLE = "wspace distances runs/* --base base --metric cosine --format csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_zoo(parser)
    parser.add_argument(
        "--metric", choices=("euclidean", "cosine", "l1"), default="euclidean",
        help="default euclidean; l1 is the mean absolute difference of the weights",
    )  # fmt: skip
    add_format(parser)
    add_work(parser)
    add_sums(parser)


@of_files
def run(options: argparse.Namespace) -> None:
    with team_of(options) as team:
        _run(options, team)


def _run(options: argparse.Namespace, team: Team) -> None:
    from wspace import geometry
    from wspace.grams import refine

    zoo = zoo_of(options)
    note_zoo(options, zoo)
    columns = ["model", *zoo.names]
    to_base = None
    if options.metric == "l1":
        matrix = _mean_differences(options, zoo, team)
    else:
        products = gram_of(options, zoo, team, "distances")
        if products is None:
            return
        if options.metric == "cosine":
            matrix = geometry.cosines(products)
        else:
            matrix = geometry.distances(products)
            matrix = refine(matrix, products, zoo, memory=options.memory, team=team)
            to_base = geometry.norms(products) if zoo.base else None
    if options.metric == "cosine" and not zoo.has_origin:
        note(options, "note: without --base these are cosines of the weights, all nearly 1")
    rows = [[name, *row] for name, row in zip(zoo.names, matrix.tolist(), strict=True)]
    if to_base is not None:
        columns.append("(base)")
        for row, distance in zip(rows, to_base.tolist(), strict=True):
            row.append(distance)
    show(columns, rows, options.format)


def _mean_differences(options: argparse.Namespace, zoo: Zoo, team: Team) -> torch.Tensor:
    from wspace.grams import pairwise_distances
    from wspace.placement import products_job

    if options.range or options.sums:
        raise WspaceError("--range and --sums go with euclidean and cosine distances, not with l1")
    device = device_of(options, products_job(zoo, len(zoo)), team)
    with progress_bar(options, "distances") as progress:
        return pairwise_distances(
            zoo, metric="l1", device=device, memory=options.memory, progress=progress, team=team
        )
