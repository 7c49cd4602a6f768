"""``wspace experiment``: the paper's experiments on any encoder and any data sets."""

from __future__ import annotations

import argparse
from pathlib import Path

from wspace.cli.options import note
from wspace.cli.steps import steps_bar

SUMMARY = "the paper's experiments: train a zoo, cluster it, walk in it, report"
DESCRIPTION = """\
Fine-tunes a model for every data set and seed, then clusters the models by their weights,
walks between and beyond them, compares the inside of regions with their outside, starts
BitFit from centroids, and writes results.json, report.html and figures. CONFIG is a YAML
file, or one of the built-in ones: demo, paper-small, paper. Stages that are finished are
not run again; Ctrl-C leaves them in place, and the same command goes on. --set takes any
setting, so a subset is a matter of a few: --set finetune.seeds=2 --set finetune.rows=500
--set probe.train_rows=500 --set 'tasks=[snli, mnli, qnli]'."""
EXAMPLE = "wspace experiment paper-small --data ../shared/datasets -o results/"
INTERRUPTED = "interrupted; what is finished stays, and the same command goes on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a YAML file, or a built-in name")
    parser.add_argument("-o", "--out", required=True, metavar="FOLDER", help="the results folder")
    parser.add_argument("--data", metavar="FOLDER", help="holds a folder for each data set")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
        help="a setting to change, such as finetune.seeds=2; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--only", action="append", default=[], metavar="STAGE",
        help="finetune, geometry, clusters, lines, regions, edges, efficient, sizes or report; "
        "may be repeated (default all)",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true",
        help="say what would be trained and evaluated, and how long it should take",
    )  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--quiet", action="store_true", help="no progress, no notes")


def run(options: argparse.Namespace) -> None:
    from wspace.lab.settings import load_settings
    from wspace.lab.stages import run_experiment

    settings = load_settings(options.config, options.changes, options.data)
    with steps_bar(options) as progress:

        def tell(line: str) -> None:
            note(options, line)

        if options.dry_run:
            from wspace.lab.planning import estimate

            plan = estimate(settings, Path(options.out), device=options.device, only=options.only)
            print("\n".join(plan.lines()))
            return
        run_experiment(
            settings, Path(options.out), device=options.device, only=options.only,
            progress=progress, note=tell,
        )  # fmt: skip
    if "report" in (options.only or ["report"]):
        print(Path(options.out) / "report.html")
