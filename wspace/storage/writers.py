"""The writers of a job's outputs: begun together, and what becomes of them when it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from wspace.errors import OutputError, WspaceError
from wspace.storage.writing import CheckpointWriter, NewCheckpoint, Note
from wspace.team import ALONE, Team


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
    pool = ThreadPoolExecutor(4, thread_name_prefix="wspace-write")
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
