"""The catalogue's store: facts in SQLite, sketches in safetensors, in one folder.

A model is there when the transaction that names its slot is committed, after its sketches are on
the disk. So what is killed leaves every finished model, and a slot that nothing names is free. A
row's checksums tell if a slot was given to another model since the row was read.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from wspace.catalogue.facts import Facts
from wspace.catalogue.layouts import Layout
from wspace.catalogue.slots import PARTS, Slots
from wspace.devices import processors
from wspace.errors import CheckpointError, OutputError
from wspace.storage.checksums import checksum_apart

FORMAT = "1"
"""Of the tables, and of what a sketch is."""

DATABASE = "catalogue.sqlite"

_TABLES = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE layouts (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    family TEXT NOT NULL,      -- fingerprint of the floating-point tensors: names and shapes
    layers TEXT NOT NULL,      -- of those in numbered layers
    tensors TEXT NOT NULL      -- JSON: [name, shape, floating point], sorted by name
);
CREATE TABLE models (
    path TEXT PRIMARY KEY,     -- below the zoo's folder
    files TEXT NOT NULL,       -- JSON: [name, bytes, time in ns] of each, when it was read
    indexed TEXT NOT NULL,     -- when that was
    problem TEXT,              -- why it could not be read; then nothing follows
    layout INTEGER REFERENCES layouts (id),
    content TEXT,              -- checksum of all tensors: equal for equal models
    bytes INTEGER,
    dtype TEXT,                -- of most of its floating-point elements
    dtypes TEXT,               -- of each tensor, with spaces between
    norms BLOB,                -- float64 of each tensor, NaN for integers
    hashes BLOB,               -- 16 bytes of each tensor: xxh3_128, as in wspace.json
    slot INTEGER UNIQUE,       -- of the sketches: file slot / 256, row slot % 256
    checks TEXT                -- checksums of the sketches, with a space between
);
"""


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue."""

    path: str
    files: str
    problem: str | None
    layout: Layout
    content: str
    nbytes: int
    dtype: str  # of most of its floating-point elements
    dtypes: str  # of each tensor, with spaces between
    norms: np.ndarray  # float64 [n_tensors]
    hashes: np.ndarray  # uint8 [n_tensors, 16]
    slot: int
    checks: str

    def norm(self, compared: str) -> float:
        """Euclidean, of the tensors that a comparison is of."""
        return float(np.linalg.norm(self.norms[self.layout.compared[compared]]))


_NOTHING = Layout((), (), ())

_RUN = 64  # sketches that a thread checks at a time


class Store:
    """An open catalogue; ``writing`` holds its lock until it is closed."""

    def __init__(self, folder: Path, *, writing: bool = False) -> None:
        self.folder, self._lock = folder, -1
        self._slots = Slots(folder)
        path = folder / DATABASE
        if writing:
            self._lock = _locked(folder)
        elif not path.is_file():
            raise CheckpointError(f"{folder}: holds no catalogue; wspace index ZOO makes one")
        try:
            with self._reported():
                mode = "rwc" if writing else "ro"
                self._database = sqlite3.connect(
                    f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None,
                    timeout=30,
                )  # fmt: skip
                self._check_format(writing)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if hasattr(self, "_database"):
            self._database.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def entries(self) -> dict[str, Entry]:
        """All models by path, those with a problem included."""
        with self._reported():
            known = self._database.execute("SELECT id, tensors FROM layouts").fetchall()
            layouts = {number: Layout.parse(text) for number, text in known}
            rows = self._database.execute(
                "SELECT path, files, problem, layout, content, bytes, dtype, dtypes, norms, "
                "hashes, slot, checks FROM models ORDER BY path"
            )
            return {row[0]: _entry(row, layouts) for row in rows}

    def put(self, path: str, files: str, facts: Facts) -> None:
        """Adds a model, or puts it in the place of what was known of it."""
        layered = facts.layout.layers not in ("", facts.layout.family)
        slot = self._free_slot()
        with self._reported():
            checks = self._slots.write(slot, [facts.whole, facts.layers if layered else None])
        layout = facts.layout
        with self._transaction():
            self._database.execute(
                "INSERT OR IGNORE INTO layouts (digest, family, layers, tensors) "
                "VALUES (?, ?, ?, ?)",
                (layout.digest, layout.family, layout.layers, layout.render()),
            )
            self._put(
                path, files, None, facts.content, facts.nbytes, facts.dtype,
                " ".join(facts.dtypes), facts.norms.astype("<f8").tobytes(),
                facts.hashes.tobytes(), slot, " ".join(checks), layout.digest,
            )  # fmt: skip

    def put_problem(self, path: str, files: str, problem: str) -> None:
        with self._transaction():
            self._put(path, files, problem, *[None] * 9)

    def _put(self, path: str, files: str, *values: object) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._database.execute("DELETE FROM models WHERE path = ?", (path,))
        self._database.execute(
            "INSERT INTO models (path, files, indexed, problem, content, bytes, dtype, "
            "dtypes, norms, hashes, slot, checks, layout) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, "
            "(SELECT id FROM layouts WHERE digest = ?))",
            (path, files, now, *values),
        )

    def remove(self, paths: Iterable[str]) -> None:
        with self._transaction():
            self._database.executemany("DELETE FROM models WHERE path = ?", [(p,) for p in paths])

    def sketches(self, entries: Sequence[Entry], part: str) -> list[np.ndarray]:
        """:meth:`sketch` of each. Most of the time goes into checking them: in threads."""
        runs = [entries[k : k + _RUN] for k in range(0, len(entries), _RUN)]
        with ThreadPoolExecutor(processors()) as pool:
            found = pool.map(lambda run: [self.sketch(entry, part) for entry in run], runs)
            return list(chain.from_iterable(found))

    def sketch(self, entry: Entry, part: str) -> np.ndarray:
        """Float32 ``[SIZE]``, mapped; ``part``: ``all`` or ``layers``. Raises CheckpointError."""
        checks: dict[str, str] = dict(zip(PARTS, entry.checks.split(" "), strict=True))
        if part == "layers" and not checks["layers"]:
            part = "all"  # there is nothing else
        values = self._slots.read(entry.slot, part)
        if checksum_apart(values.data) != checks[part]:
            raise CheckpointError(
                f"{self.folder}: the sketch of {entry.path} is not what was written: it was "
                f"indexed again meanwhile, or {self.folder} is damaged; if it happens again, "
                "remove that folder and index again"
            )
        return values

    def _free_slot(self) -> int:
        with self._reported():
            rows = self._database.execute("SELECT slot FROM models WHERE slot IS NOT NULL")
            used = {slot for (slot,) in rows}
        return next(slot for slot in range(len(used) + 1) if slot not in used)

    def _check_format(self, writing: bool) -> None:
        tables = self._database.execute("SELECT name FROM sqlite_master").fetchall()
        if not tables and writing:
            with self._transaction():
                for statement in _TABLES.strip().split(";\n"):
                    self._database.execute(statement)
                self._database.execute("INSERT INTO settings VALUES ('format', ?)", (FORMAT,))
        found = self._database.execute("SELECT value FROM settings WHERE key = 'format'").fetchone()
        if found is None or found[0] != FORMAT:
            raise OutputError(
                f"{self.folder}: is a catalogue of format {found and found[0]}, expected {FORMAT}; "
                "remove it and index again"
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._reported():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise OutputError(
                f"{self.folder / DATABASE}: {error}; if it is damaged, remove {self.folder} and "
                "index again"
            ) from None
        except OSError as error:
            raise OutputError(f"{self.folder}: cannot be written: {error.strerror}") from error


def _entry(row: tuple, layouts: dict[int, Layout]) -> Entry:
    path, files, problem, layout, content, nbytes, dtype, dtypes, norms, hashes, *sketches = row
    if problem is not None:
        empty = np.empty(0)
        return Entry(path, files, problem, _NOTHING, "", 0, "", "", empty, empty, -1, "")
    return Entry(
        path, files, None, layouts[layout], content, nbytes, dtype, dtypes,
        np.frombuffer(norms, "<f8"), np.frombuffer(hashes, np.uint8).reshape(-1, 16), *sketches,
    )  # fmt: skip


def _locked(folder: Path) -> int:
    """The lock of those who write, held while its descriptor is open."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written: {error.strerror}; choose another place with --store"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise OutputError(
            f"{folder}: another process is indexing this zoo; wait until it is done"
        ) from None
    return descriptor
