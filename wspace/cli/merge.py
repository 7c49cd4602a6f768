"""``wspace merge``: mixes of models as new checkpoints."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from wspace.cli.check import add_strict, is_recipe, outputs_of
from wspace.cli.options import (
    add_work,
    add_zoo,
    device_of,
    device_said,
    note,
    note_zoo,
    of_files,
    progress_bar,
    team_of,
    zoo_of,
)
from wspace.cli.tables import show
from wspace.errors import WeightsError, WspaceError
from wspace.profiling import CHECKSUM, DIRECT, READ, TAKEN, WRITE, Profile, profiled
from wspace.sizes import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from wspace.recipes.report import Report
    from wspace.team import Team

SUMMARY = "mixes of models, written as checkpoints, from one read"
DESCRIPTION = """\
Writes base + sum of weight * (model - base); without --base the weights must sum to 1, and
it writes sum of weight * model. Several mixes in one read: repeat --weights and -o.
The output has the dtype of the base (or of the first model), the first model's config and
tokenizer files if there is no base, Hub-named shards, and a record of how it was made.
Given one MODEL that ends in .yml or .yaml, it runs that mergekit recipe; one with sweeps or
several documents makes several outputs, below OUT, or where {} in OUT is each one's name.
What was cut short (a full disk, Ctrl-C, a crash) goes on with the same command: finished
parts are kept beside OUT, in .OUT.partial, and checked before they are used.
Processes of torchrun (torchrun --nproc-per-node 8 -m wspace merge ...), on machines that share
the disks, divide the parameters among them; --range does it without torchrun, in a job array."""
EXAMPLE = "wspace merge runs/* --weights 0.6,0.4 -o mixed"
INTERRUPTED = "interrupted; the same command goes on from what is finished, --restart starts over"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_zoo(parser)
    parser.add_argument("--uniform", action="store_true", help="the average of all models")
    parser.add_argument(
        "--weights", action="append", default=[], metavar="W,W,...",
        help="one weight for each model, in their order; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", action="append", required=True, metavar="OUT",
        help="a new folder; one for each mix, --uniform first; one for a recipe",
    )  # fmt: skip
    parser.add_argument("--dtype", help="float32, float16, bfloat16 or float64")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="default 5GB")
    parser.add_argument(
        "--report", action="store_true",
        help="of a recipe: print norms, distances and cosines of every tensor, after one more read",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N",
        help="of recipes that draw (dare, della); default 0",
    )  # fmt: skip
    parser.add_argument(
        "--restart", action="store_true", help="start over, whatever an earlier run has finished"
    )
    parser.add_argument(
        "--profile", action="store_true",
        help="print the time that reading, computing and writing took, and which held up the rest",
    )  # fmt: skip
    add_strict(parser)
    add_work(parser)
    parser.add_argument(
        "--range", metavar="I/N",
        help="write only one of N ranges of the output, 0/N to N-1/N; the last to finish publishes",
    )  # fmt: skip


@of_files
def run(options: argparse.Namespace) -> None:
    with team_of(options) as team:
        if not options.profile:
            _run(options, team)
            return
        with profiled() as profile:
            _run(options, team)
        if team.leads:
            for line in _described(profile):
                print(line, file=sys.stderr)


def _run(options: argparse.Namespace, team: Team) -> None:
    if options.restart and not team.meets:
        raise WspaceError("--restart with --range would throw away what other shares have finished")
    if any(is_recipe(model) for model in options.models):
        _run_recipe(options, team)
        return
    from wspace.merging import merge  # numpy: not for --help
    from wspace.placement import mixes_job

    started = time.perf_counter()
    zoo = zoo_of(options)
    note_zoo(options, zoo)
    weights = [[1 / len(zoo)] * len(zoo)] if options.uniform else []
    weights += [_row(text, len(zoo)) for text in options.weights]
    if options.report:
        raise WspaceError("--report goes with a recipe; use wspace distances for these models")
    if not weights:
        raise WeightsError("give --uniform or --weights")
    if len(weights) != len(options.output):
        raise WeightsError(
            f"{len(weights)} mixes and {len(options.output)} outputs: give -o once for each mix"
        )
    device = device_of(options, mixes_job(zoo, len(zoo.checkpoints), len(weights)), team)
    with progress_bar(options, "merge") as progress:
        outs = merge(
            zoo, weights, options.output, dtype=options.dtype,
            max_shard_size=options.max_shard_size, device=device, memory=options.memory,
            allow_non_finite=options.allow_non_finite, restart=options.restart, progress=progress,
            note=lambda line: note(options, line), team=team,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    read = format_bytes(sum(checkpoint.nbytes for checkpoint in zoo.checkpoints))
    _finish(options, team, outs, f"merged {len(zoo)} models ({read}) in {seconds:.1f} s")


def _finish(options: argparse.Namespace, team: Team, outs: Sequence[Path], said: str) -> None:
    """Print what there is; of shares, the last one publishes it."""
    if not team.meets and not all(out.exists() for out in outs):
        note(options, f"range {team.share} is finished; the last range to finish publishes")
        return
    note(options, said)
    for out in outs:
        print(out)
    sys.stdout.flush()


def _run_recipe(options: argparse.Namespace, team: Team) -> None:
    if len(options.models) > 1:
        raise WspaceError(f"{len(options.models)} arguments: give a recipe, or models, not both")
    said_there = {"--uniform": options.uniform, "--weights": options.weights,
                  "--base": options.base, "--dtype": options.dtype}  # fmt: skip
    for name, given in said_there.items():
        if given:
            raise WspaceError(f"{name} does not go with a recipe, which says it itself")
    from wspace.recipes import device_for, merge_outputs, places_of

    started = time.perf_counter()
    outputs = outputs_of(options, options.models[0])
    places = places_of(outputs, options.output)
    device = device_said(options, device_for([o.plan for o in outputs], options.device), team)
    with progress_bar(options, "merge") as progress:
        merge_outputs(
            outputs, places, max_shard_size=options.max_shard_size, device=device,
            memory=options.memory, allow_non_finite=options.allow_non_finite, seed=options.seed,
            restart=options.restart, progress=progress,
            report=_print_report if options.report else None,
            note=lambda line: note(options, line), team=team,
        )  # fmt: skip
    seconds = time.perf_counter() - started
    read = format_bytes(outputs.cost(device=device, memory=options.memory).read_bytes)
    _finish(options, team, places, f"made {len(outputs)} of {read} in {seconds:.1f} s")


def _described(profile: Profile) -> Iterator[str]:
    for name in (READ, CHECKSUM, WRITE):
        seconds, nbytes = profile.seconds[name], profile.nbytes[name]
        rate = f", {format_bytes(nbytes / seconds)}/s each" if seconds else ""
        past = profile.nbytes[DIRECT] if name == READ else 0
        how = f"; {format_bytes(past)} of it past the page cache" if past else ""
        if name == CHECKSUM and profile.nbytes[TAKEN]:
            how = f"; of {format_bytes(profile.nbytes[TAKEN])} while computing"
        yield f"{name}: {format_bytes(nbytes)}, {seconds:.2f} s of its threads{rate}{how}"
    parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in profile.parts.items())
    yield f"{profile.elapsed:.2f} s in all: {parts}"
    yield f"bottleneck: {profile.bottleneck}"


def _print_report(place: str, report: Report) -> None:
    print(place)
    show(*report.table(), "table")
    if report.copied or report.left_out:
        left = ", ".join(f"{name} ({reason})" for name, reason in report.left_out.items())
        print(f"copied: {', '.join(report.copied) or '-'}; left out: {left or '-'}")


def _row(text: str, n: int) -> list[float]:
    try:
        row = [float(part) for part in text.split(",")]
    except ValueError:
        raise WeightsError(
            f"--weights {text}: expected numbers with commas between, such as 0.6,0.4"
        ) from None
    if len(row) != n:
        raise WeightsError(f"--weights {text}: {len(row)} weights for {n} models")
    return row
