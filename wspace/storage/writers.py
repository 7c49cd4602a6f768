"""The writers of a job's outputs: begun together, and what becomes of them when it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from wspace.errors import OutputError, WspaceError
from wspace.storage.residence import in_memory
from wspace.storage.writing import CheckpointWriter, NewCheckpoint, Note
from wspace.team import ALONE, Team

THREADS = 4
"""Requests to a disk at a time."""


@contextmanager
def checkpoint_writers(
    outputs: Sequence[NewCheckpoint],
    *,
    restart: bool = False,
    note: Note | None = None,
    team: Team = ALONE,
) -> Iterator[list[CheckpointWriter]]:
    """A writer for each output. What an earlier run has finished is checked, and kept.

    When the work is cut short, finished blocks stay, for the same command to go on from. Only a
    refusal (a WspaceError that no failing disk or network caused) would be met again, and leaves
    nothing of what this run began.
    """
    pool = ThreadPoolExecutor(_threads(outputs), thread_name_prefix="wspace-write")
    writers: list[CheckpointWriter] = []
    try:
        with team.in_turn():
            for output in outputs:
                writers.append(CheckpointWriter(output, pool, restart=restart, share=team.share))
                writers[-1].restore(note)
                restart = restart and not team.share.index  # the first has done it for all
        yield writers
    except BaseException as error:
        team.stop(error)
        pool.shutdown(cancel_futures=True)
        refusal = isinstance(error, WspaceError) and not isinstance(error.__cause__, OSError)
        for writer in reversed(writers):
            writer.abandon(keep=writer.earlier or not refusal, patience=team.patience)
        raise
    pool.shutdown()
    for writer in writers:
        writer.close()


def _threads(outputs: Sequence[NewCheckpoint]) -> int:
    """On a file system in memory a file takes one request at a time, and the processors of others
    spin meanwhile: one for each output (4.7 GB into 1.2 GB, two Zen 4 cores: 1.43 s with four,
    1.25 s with one)."""
    if not all(_in_memory(output.out) for output in outputs):
        return THREADS
    return max(1, min(len(outputs), THREADS))


def _in_memory(out: Path) -> bool:
    folder = next((parent for parent in out.absolute().parents if parent.is_dir()), None)
    if folder is None:
        return False
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # it may be written to, but not listed
        return False
    try:
        return in_memory(descriptor)
    finally:
        os.close(descriptor)


def all_finished(writers: Sequence[CheckpointWriter], team: Team) -> bool:
    """When this process has finished its share: whether it is the one to publish them all."""
    if team.share.n == 1:
        return True
    for writer in writers:
        writer.leave()
    team.wait()
    if not team.leads:
        return False
    found = [writer.take_over() for writer in writers]
    if team.meets and not all(found):
        raise OutputError(f"{writers[found.index(False)].out}: not all of it was written")
    return all(found)
