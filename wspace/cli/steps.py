"""Progress of work that is counted in steps: models trained, points evaluated."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_SECONDS = 30.0


def _now_and_then() -> Callable[[str, int, int], None]:
    """For logs: minutes of work should not look like none."""
    last = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        nonlocal last
        if total and time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    return tell


@contextmanager
def steps_bar(options: argparse.Namespace) -> Iterator[Callable[[str, int, int], None] | None]:
    """What is being done, how far it is, and the time left; in a pipe a line now and then."""
    if options.quiet:
        yield None
        return
    if not sys.stderr.isatty():
        yield _now_and_then()
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
