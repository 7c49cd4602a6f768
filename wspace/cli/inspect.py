"""``wspace inspect``: what checkpoints hold, and whether they make a zoo."""

from __future__ import annotations

import argparse
from collections import Counter

from wspace.cli.options import (
    add_format,
    add_work,
    add_zoo,
    device_of,
    note_zoo,
    progress_bar,
    zoo_of,
)
from wspace.cli.tables import show
from wspace.zoo import short_names

SUMMARY = "what checkpoints hold, and whether they align"
DESCRIPTION = """\
Tensors, parameters, dtypes and bytes of each model, from headers alone; an error names
the first tensor in which the models differ. With --statistics, one read of the weights
adds norm, mean, largest |x|, kurtosis (3 for a normal distribution), the count of NaN and
Inf, and the share of elements that differ from the base."""
EXAMPLE = "wspace inspect runs/* --base base --statistics"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_zoo(parser)
    parser.add_argument("--statistics", action="store_true", help="read the weights too")
    add_format(parser)
    add_work(parser)


def run(options: argparse.Namespace) -> None:
    zoo = zoo_of(options)
    note_zoo(options, zoo)
    names = short_names([str(checkpoint) for checkpoint in zoo.checkpoints])
    columns = ["model", "files", "tensors", "parameters", "bytes", "dtypes"]
    rows: list[list] = []
    for name, checkpoint in zip(names, zoo.checkpoints, strict=True):
        kinds = Counter(tensor.record.dtype for tensor in checkpoint.tensors.values())
        dtypes = " ".join(f"{kind}:{count}" for kind, count in kinds.most_common())
        name += " (base)" if checkpoint is zoo.base else ""
        sizes = [len(checkpoint.tensors), checkpoint.numel, checkpoint.nbytes]
        rows.append([name, len(checkpoint.files), *sizes, dtypes])
    if options.statistics:
        from wspace.grams import statistics
        from wspace.placement import statistics_job

        device = device_of(options, statistics_job(zoo))
        with progress_bar(options, "statistics") as progress:
            found = statistics(zoo, device=device, memory=options.memory, progress=progress)
        columns += ["norm", "mean", "max_abs", "kurtosis", "non_finite", "changed"]
        for k, row in enumerate(rows):
            row += [float(found.norm[k]), float(found.mean[k]), float(found.max_abs[k])]
            row += [float(found.kurtosis[k]), int(found.non_finite[k]), float(found.changed[k])]
    show(columns, rows, options.format)
