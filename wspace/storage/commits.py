"""When finished blocks are journaled: when they are on the disk, and so that no writer waits."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from wspace.errors import OutputError
from wspace.storage.blocks import Blocks, Run
from wspace.storage.files import OutputFile
from wspace.storage.journal import Block
from wspace.storage.partial import Partial


class Commits:
    """Of one output. Called by any thread, and at work in one of the pool's at a time.

    An error of the disk is raised by the next call, as OutputError.
    """

    def __init__(
        self,
        partial: Partial,
        files: Sequence[OutputFile],
        blocks: Blocks,
        pool: ThreadPoolExecutor,
        seconds: float,
    ) -> None:
        """``seconds``: from the end of one commit to the start of the next."""
        self._partial, self._files, self._blocks, self._pool = partial, files, blocks, pool
        self._seconds = seconds
        self._finished: list[Run] = []  # and not in the journal yet
        self._last: Future[None] = Future()  # commit that was begun
        self._last.set_result(None)
        self._ended = time.monotonic()
        self._lock = threading.Lock()

    def add(self, runs: Iterable[Run]) -> None:
        """Blocks that are written; they are journaled some time."""
        with self._lock:
            self._finished += runs
            if self._is_due() and self._last.done():
                self._last.result()
                with contextlib.suppress(RuntimeError):  # the pool is being shut down
                    self._last = self._pool.submit(self._commit)

    def now(self) -> None:
        """Return when all that was added is in the journal."""
        self._last.result()
        self._commit()

    def rest(self) -> list[Block]:
        """What is not in the journal, and will not be: nothing is at work on it any more."""
        self._last.result()
        return self._taken()

    def _is_due(self) -> bool:
        return time.monotonic() - self._ended >= self._seconds

    def _commit(self) -> None:
        blocks = self._taken()
        while blocks:
            try:
                for shard in {block.shard for block in blocks}:
                    self._files[shard].sync()
                self._partial.add(blocks)
            except OSError as error:
                raise OutputError(f"{self._partial.out}: {error.strerror}") from error
            self._ended = time.monotonic()
            blocks = self._taken() if self._is_due() else []

    def _taken(self) -> list[Block]:
        with self._lock:
            runs, self._finished = self._finished, []
        return [self._blocks.listed(run) for run in runs]
