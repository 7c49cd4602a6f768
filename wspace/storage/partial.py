"""The hidden folder beside an output while it is being made, ``.NAME.partial``.

job.json   the fingerprint: what the bytes follow from
journal    finished blocks; locked by the process that makes the output
output/    what gets the output's name in the end, by a rename
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from wspace.errors import OutputError
from wspace.storage.fingerprints import Fingerprint, differences, digest_of, in_words
from wspace.storage.journal import Block, Journal


def partial_of(out: Path) -> Path:
    """Where an output is while it is being made."""
    return out.parent / f".{out.name}.partial"


class Partial:
    """The folder, and the lock on it.

    One that is there already and has the same fingerprint is gone on with. Raises OutputError if
    it has another, unless it is to be started over, and if another process is at work on it.
    """

    def __init__(self, out: Path, job: Fingerprint, *, restart: bool = False) -> None:
        self.out, self._job = out, job
        self._folder = partial_of(out)
        self.output = self._folder / "output"
        self._made = [parent for parent in out.absolute().parents if not parent.exists()]
        self._settled = False
        self.resumed = False
        try:
            self._journal = self._locked()
        except BlockingIOError:
            raise OutputError(
                f"{out}: another process is making it (it holds {self._folder}); wait for it, or "
                "choose another name"
            ) from None
        except OSError as error:
            raise OutputError(f"{out}: cannot be made: {error.strerror}") from error
        try:
            before = None if restart else _read_json(self._folder / "job.json")
            if before is None or not self.output.is_dir():
                self._start()
                return
            changes = differences(before, job)
            if changes:
                raise OutputError(
                    f"{out}: an unfinished output is in {self._folder}, and {in_words(changes)}: "
                    "start over with --restart, or choose another name"
                )
            self.resumed = True
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise OutputError(f"{out}: cannot be made: {error.strerror}") from error
            raise

    def _locked(self) -> Journal:
        while True:
            self._folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another has just removed the folder
                return Journal(self._folder / "journal", digest_of(self._job))

    def _start(self) -> None:
        (self._folder / "job.json").unlink(missing_ok=True)  # first: without it, nothing is reused
        self._journal.clear()
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir()
        text = json.dumps(self._job, indent=1)
        (self._folder / "job.json").write_text(text, encoding="utf-8")

    def finished(self) -> list[Block]:
        """What the journal says; to be checked against the files."""
        return self._journal.read() if self.resumed else []

    def add(self, blocks: list[Block]) -> None:
        """Journal blocks whose bytes are on the disk."""
        if not self._settled:
            for path in (self._folder / "job.json", self.output, self._folder, self.out.parent):
                flush(path)
            self._settled = True
        self._journal.add(blocks)

    def publish(self) -> None:
        """Give the output its name. Everything in it has been flushed."""
        self.output.chmod(0o755)
        flush(self.output)
        if self.out.exists() or self.out.is_symlink():
            raise OutputError(f"{self.out}: was made by something else while this ran")
        self.output.rename(self.out)
        self._made = []
        try:
            flush(self.out.parent)
        finally:
            self.remove()

    @property
    def of_use(self) -> bool:
        """Whether there is anything to go on from."""
        return not self._journal.empty

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self.close()
        for parent in self._made:
            with contextlib.suppress(OSError):  # it holds something by now
                parent.rmdir()

    def close(self) -> None:
        """Leave it as it is, for another run to go on from."""
        self._journal.close()


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
