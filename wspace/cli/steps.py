"""Progress of work that is counted in steps: models trained, points evaluated."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def steps_bar(options: argparse.Namespace) -> Iterator[Callable[[str, int, int], None] | None]:
    """What is being done, how far it is, and the time left, on a terminal; nothing in a pipe."""
    if options.quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task("starting", total=None)
        last = [0, 0]

        def tell(what: str, done: int, total: int) -> None:
            if done < last[0] or total != last[1]:  # other work: its own rate and time left
                bar.reset(shown)
            bar.update(shown, description=what, completed=done, total=total)
            last[:] = [done, total]

        yield tell
