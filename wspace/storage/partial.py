"""The hidden folder beside an output while it is being made, ``.NAME.partial``.

job.json    the fingerprint: what the bytes follow from
journal     finished blocks; locked by the process that makes the output
journal-I-of-N   the same of one of several; those have a lock on ``journal`` that they share
output/     what gets the output's name in the end, by a rename

Processes that make shares of an output need not know of each other. The files in ``output`` and
their lengths follow from the job, so that each may create them; each journals what it has written;
and whoever finds, with ``journal`` locked for itself alone, that all is finished, publishes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from wspace.errors import OutputError
from wspace.shares import WHOLE, Share
from wspace.storage.fingerprints import Fingerprint, differences, digest_of, in_words
from wspace.storage.journal import Block, Journal, open_locked, read_blocks

ENTERING_SECONDS = 10.0
"""How long another may take to see that what is there is of its own job, or to clear it away."""


def partial_of(out: Path) -> Path:
    """Where an output is while it is being made."""
    return out.parent / f".{out.name}.partial"


class Partial:
    """The folder, and the lock on it.

    One that is there already and has the same fingerprint is gone on with. Raises OutputError if
    it has another, unless it is to be started over, and if another process is at work on it (on
    the same share of it, where there are several).
    """

    def __init__(
        self, out: Path, job: Fingerprint, *, restart: bool = False, share: Share = WHOLE
    ) -> None:
        self.out, self._job, self._share = out, job, share
        self._folder = partial_of(out)
        self.output = self._folder / "output"
        self._made = [parent for parent in out.absolute().parents if not parent.exists()]
        self._settled = False
        self.resumed = False
        self._gate = -1
        self._journal: Journal | None = None
        try:
            self._enter(restart)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise OutputError(f"{out}: cannot be made: {error.strerror}") from error
            raise

    def _enter(self, restart: bool) -> None:
        until = time.monotonic() + ENTERING_SECONDS
        while True:
            self._folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock(restart)
                return
            except FileNotFoundError:  # another has just removed the folder
                self.close()
            except BlockingIOError:
                self.close()
                if time.monotonic() > until:
                    raise self._busy() from None
                time.sleep(0.02)  # perhaps it is only entering, too

    def _lock(self, restart: bool) -> None:
        name = "journal"
        if self._share.n > 1:
            self._gate, alone = self._locked_gate()
            if alone:
                self._look(restart)
                fcntl.flock(self._gate, fcntl.LOCK_SH | fcntl.LOCK_NB)
            elif restart:
                raise self._busy()
            restart = False
            name = f"journal-{self._share.index}-of-{self._share.n}"
        try:
            self._journal = Journal(self._folder / name, digest_of(self._job))
        except BlockingIOError:
            raise self._busy() from None
        self._look(restart)

    def _busy(self) -> OutputError:
        return OutputError(
            f"{self.out}: another process is making it (it holds {self._folder}); wait for it, or "
            "choose another name"
        )

    def _locked_gate(self) -> tuple[int, bool]:
        """The lock of those that make shares; and whether no other has it, for the moment."""
        with contextlib.suppress(BlockingIOError):
            return open_locked(self._folder / "journal", fcntl.LOCK_EX), True
        return open_locked(self._folder / "journal", fcntl.LOCK_SH), False

    def _look(self, restart: bool) -> None:
        """Go on with what is there, or start."""
        before = None if restart else _read_json(self._folder / "job.json")
        if before is None or not self.output.is_dir():
            self._start()
            return
        changes = differences(before, self._job)
        if changes:
            raise OutputError(
                f"{self.out}: an unfinished output is in {self._folder}, and {in_words(changes)}: "
                "start over with --restart, or choose another name"
            )
        self.resumed = True

    def _start(self) -> None:
        (self._folder / "job.json").unlink(missing_ok=True)  # first: without it, nothing is reused
        for journal in self._journals():
            os.truncate(journal, 0)
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir()
        text = json.dumps(self._job, indent=1)
        (self._folder / "job.json").write_text(text, encoding="utf-8")

    def _journals(self) -> list[Path]:
        return sorted(self._folder.glob("journal*"))

    def finished(self) -> list[Block]:
        """What the journals say; to be checked against the files."""
        if not self.resumed:
            return []
        assert self._journal is not None
        self._journal.read()
        return self.journaled()

    def journaled(self) -> list[Block]:
        """What all journals say."""
        job = digest_of(self._job)
        blocks = [block for path in self._journals() for block in read_blocks(path, job)]
        return list({(block.shard, block.start): block for block in blocks}.values())

    def add(self, blocks: list[Block]) -> None:
        """Journal blocks whose bytes are on the disk."""
        if not self._settled:
            for path in (self._folder / "job.json", self.output, self._folder, *self._above):
                flush(path)
            self._settled = True
        assert self._journal is not None
        self._journal.add(blocks)

    def leave(self) -> None:
        """This share is finished and journaled."""
        self.close()

    def take_over(self, patience: float = 0.0) -> bool:
        """Have the folder alone, if no other process is at work on it within ``patience`` s."""
        until = time.monotonic() + patience
        while True:
            try:
                self._gate = open_locked(self._folder / "journal", fcntl.LOCK_EX)
                return True
            except BlockingIOError:
                if time.monotonic() >= until:
                    return False
                time.sleep(0.02)
            except FileNotFoundError:  # it was published, or removed
                return False

    def publish(self) -> None:
        """Give the output its name. Everything in it has been flushed."""
        self.output.chmod(0o755)
        flush(self.output)
        if self.out.exists() or self.out.is_symlink():
            raise OutputError(f"{self.out}: was made by something else while this ran")
        self.output.rename(self.out)
        above, self._made = self._above, []
        try:
            for folder in above:
                flush(folder)
        finally:
            self.remove()

    @property
    def _above(self) -> list[Path]:
        """The folders that hold the output's name, and those of folders made for it."""
        return [self.out.parent, *(folder.parent for folder in self._made)]

    @property
    def of_use(self) -> bool:
        """Whether there is anything to go on from."""
        with contextlib.suppress(OSError):
            return any(journal.stat().st_size for journal in self._journals())
        return False

    def abandon(self, *, keep: bool, patience: float = 0.0) -> None:
        """Leave it for another run to go on from if ``keep`` and of use, and remove it if not.

        Where others make shares of it, it is removed only if they end within ``patience`` s.
        """
        keep = keep and self.of_use
        if self._share.n > 1:
            self.close()
            keep = keep or not self.take_over(patience)
        if keep:
            self.close()
        else:
            self.remove()

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self.close()
        for parent in self._made:
            with contextlib.suppress(OSError):  # it holds something by now
                parent.rmdir()

    def close(self) -> None:
        """Leave it as it is, for another run to go on from."""
        if self._journal:
            self._journal.close()
        if self._gate >= 0:
            os.close(self._gate)
        self._gate = -1


def is_published(out: Path, job: Fingerprint) -> bool:
    """Whether the output is there already, and was made of the same."""
    record = _read_json(out / "wspace.json")
    return isinstance(record, dict) and record.get("fingerprint") == digest_of(job)


def allocated(out: Path) -> int:
    """Bytes on the disk that an unfinished output has already."""
    folder = partial_of(out) / "output"
    files = folder.iterdir() if folder.is_dir() else ()
    return sum(file.lstat().st_blocks * 512 for file in files)


def flush(path: Path) -> None:
    """Return when a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
