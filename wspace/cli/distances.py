"""``wspace distances``: distances or cosines between models."""

from __future__ import annotations

import argparse

from wspace.cli.options import (
    add_format,
    add_work,
    add_zoo,
    device_of,
    note,
    note_zoo,
    of_files,
    progress_bar,
    zoo_of,
)
from wspace.cli.tables import show

SUMMARY = "distances or cosines between models, from one read"
DESCRIPTION = """\
Euclidean distances, cosines of the task vectors (model minus base), or mean absolute
differences between all models; with a base, also each model's distance from it. Pairs
that are much closer to each other than to the base are measured again, directly."""
EXAMPLE = "wspace distances runs/* --base base --metric cosine --format csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_zoo(parser)
    parser.add_argument(
        "--metric", choices=("euclidean", "cosine", "l1"), default="euclidean",
        help="default euclidean; l1 is the mean absolute difference of the weights",
    )  # fmt: skip
    add_format(parser)
    add_work(parser)


@of_files
def run(options: argparse.Namespace) -> None:
    from wspace import geometry
    from wspace.grams import gram, pairwise_distances, refine
    from wspace.placement import products_job

    zoo = zoo_of(options)
    note_zoo(options, zoo)
    columns = ["model", *zoo.names]
    device = device_of(options, products_job(zoo, len(zoo)))
    work = {"device": device, "memory": options.memory}
    to_base = None
    with progress_bar(options, "distances") as progress:
        if options.metric == "l1":
            matrix = pairwise_distances(zoo, metric="l1", progress=progress, **work)
        else:
            products = gram(
                zoo, per_tensor=False, allow_non_finite=options.allow_non_finite,
                progress=progress, **work,
            )  # fmt: skip
            if options.metric == "cosine":
                matrix = geometry.cosines(products)
            else:
                matrix = refine(geometry.distances(products), products, zoo, memory=options.memory)
                to_base = geometry.norms(products) if zoo.base else None
    if options.metric == "cosine" and not zoo.has_origin:
        note(options, "note: without --base these are cosines of the weights, all nearly 1")
    rows = [[name, *row] for name, row in zip(zoo.names, matrix.tolist(), strict=True)]
    if to_base is not None:
        columns.append("(base)")
        for row, distance in zip(rows, to_base.tolist(), strict=True):
            row.append(distance)
    show(columns, rows, options.format)
