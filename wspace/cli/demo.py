"""``wspace demo``: all experiments on a small real zoo, offline."""

from __future__ import annotations

import argparse
from pathlib import Path

from wspace.cli.options import note
from wspace.cli.steps import steps_bar

SUMMARY = "the whole of it on a small real zoo, offline, in minutes"
DESCRIPTION = """\
Trains a small zoo from the packaged sentence encoder on rows that come with the package,
then clusters, interpolates, merges and probes it, starts BitFit from centroids, and writes
a report. Needs no network and no settings. Ctrl-C leaves what is finished in place, and the
same command goes on."""
EXAMPLE = "wspace demo -o demo/"
INTERRUPTED = "interrupted; what is finished stays, and the same command goes on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--out", default="demo", metavar="FOLDER", help="the results folder (default demo)"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument("--quiet", action="store_true", help="no progress, no notes")


def run(options: argparse.Namespace) -> None:
    from wspace.lab.demo import run_demo

    with steps_bar(options) as progress:
        found = run_demo(
            Path(options.out), device=options.device, progress=progress,
            note=lambda line: note(options, line),
        )  # fmt: skip
    print("\n".join(found))
    print(Path(options.out) / "report.html")
