"""Options that several commands share, and what they open."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

from wspace.cli.tables import printable
from wspace.errors import WspaceError
from wspace.shares import parse_share
from wspace.team import ALONE, OneOfMany, Team, torchrun_rank
from wspace.zoo import Zoo, open_zoo

if TYPE_CHECKING:
    from wspace.placement import Choice, Job
    from wspace.stream import Progress


def add_zoo(parser: argparse.ArgumentParser) -> None:
    """The models, their base, and the filters."""
    parser.add_argument(
        "models", nargs="+", metavar="MODEL",
        help="a folder or file of weights, a quoted pattern, a Hub id, or a URL (hf, s3, https)",
    )  # fmt: skip
    parser.add_argument("--base", help="what the models were tuned from; the origin of all angles")
    parser.add_argument(
        "--include", action="append", default=[], metavar="PATTERN",
        help="only tensors whose names match, such as '*.layer.3.*'; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN",
        help="no tensors whose names match, such as 'classifier.*'; may be repeated",
    )  # fmt: skip


def add_work(parser: argparse.ArgumentParser) -> None:
    """Where and within what memory a pass runs."""
    parser.add_argument(
        "--device", default="auto", help="auto (default), cpu, cuda, cuda:N, or cuda:0,cuda:1"
    )
    parser.add_argument(
        "--memory", default="1GiB", metavar="SIZE", help="bound on all buffers (default 1GiB)"
    )
    parser.add_argument("--allow-non-finite", action="store_true", help="let NaN and Inf pass")
    parser.add_argument("--quiet", action="store_true", help="no progress, no notes")


def add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--format", choices=("table", "json", "csv"), default="table", help="default table"
    )


def zoo_of(options: argparse.Namespace) -> Zoo:
    """Opens what the options name; with a base, a model given as the base itself stays out."""
    models = options.models
    if options.base is not None:
        # a shell expands runs/* with the base in it
        models = [model for model in models if model.rstrip("/") != options.base.rstrip("/")]
        if not models:
            raise WspaceError(f"{options.base} is the base; give at least one model besides it")
    return open_zoo(models, base=options.base, include=options.include, exclude=options.exclude)


MISTAKES = (WspaceError, ValueError, OSError, MemoryError)
"""What a user can cause."""


@contextmanager
def team_of(options: argparse.Namespace) -> Iterator[Team]:
    """The processes that do the command together: this one alone, torchrun's, or a job array's.

    The first of torchrun's alone prints, also what another has to say.
    """
    if torchrun_rank() is None:
        yield OneOfMany(parse_share(options.range)) if options.range else ALONE
        return
    if options.range:
        raise WspaceError("--range is for processes without torchrun, which divides by itself")
    from wspace.ranks import Ranks  # torch: not for one process

    team = Ranks()
    try:
        if team.leads:
            yield team
        else:
            options.quiet = True
            with (
                Path(os.devnull).open("w") as nowhere,
                redirect_stdout(nowhere),
                redirect_stderr(nowhere),
            ):
                yield team
        team.close()
    except BaseException as error:
        team.stop(error)
        if team.said and isinstance(error, (*MISTAKES, KeyboardInterrupt)):
            raise SystemExit(1) from error
        raise


def note(options: argparse.Namespace, text: str) -> None:
    if not options.quiet:
        print(printable(text), file=sys.stderr)


Run = Callable[[argparse.Namespace], None]


def of_files(run: Run) -> Run:
    """A command that only reads and writes files: it makes little garbage, and collects none.

    A collection may close sessions of remote file systems, which waits for their thread; that may
    be waiting for a lock of the thread that collects.
    """

    @wraps(run)
    def started(options: argparse.Namespace) -> None:
        collecting = gc.isenabled()
        gc.disable()
        try:
            run(options)
        finally:
            if collecting:
                gc.enable()

    return started


def device_of(options: argparse.Namespace, job: Job, team: Team = ALONE) -> str:
    """The device that a pass runs on; says why, where there was a choice."""
    from wspace.placement import choose

    return device_said(options, choose(options.device, job), team)


def device_said(options: argparse.Namespace, choice: Choice, team: Team = ALONE) -> str:
    """The device's name; says why it is that one, if there is a reason."""
    if choice.reason:
        note(options, f"note: {choice.reason}")
    team.agree("kind of device", choice.name.partition(":")[0])
    return team.device(choice.name)


def note_zoo(options: argparse.Namespace, zoo: Zoo) -> None:
    """What takes no part, and dtypes that differ: said once, before the work."""
    if zoo.left_out:
        names = list(zoo.left_out)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        note(options, f"note: left out {', '.join(names[:3])}{more}")
    kinds = sorted({dtype for tensor in zoo.tensors for dtype in tensor.dtypes})
    if any(len(set(tensor.dtypes)) > 1 for tensor in zoo.tensors):
        note(options, f"note: dtypes differ between models: {', '.join(kinds)}")


@contextmanager
def progress_bar(options: argparse.Namespace, what: str) -> Iterator[Progress | None]:
    """Bytes, rate and time left, on a terminal; nothing in a pipe."""
    if options.quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)
