"""Data sets of texts and labels: from a folder, from the package, or from the Hub."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from wspace.errors import WspaceError
from wspace.lab.settings import Settings, TaskSource, digest

BUNDLE = Path(__file__).parent / "bundle"
SPLITS = ("train", "validation", "test")
SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")


class DataError(WspaceError):
    """Data that are not there, or that no classifier can be trained on."""


@dataclass(frozen=True)
class Rows:
    """One split: texts, second texts of pairs, and labels from 0."""

    texts: tuple[str, ...]
    pairs: tuple[str, ...] | None
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def hash(self) -> str:
        return digest([self.texts, self.pairs, self.labels])

    def take(self, indices: Sequence[int]) -> Rows:
        return Rows(
            tuple(self.texts[i] for i in indices),
            None if self.pairs is None else tuple(self.pairs[i] for i in indices),
            tuple(self.labels[i] for i in indices),
        )


@dataclass(frozen=True)
class Task:
    """A data set to classify."""

    name: str
    family: str
    labels: tuple[str, ...]
    pair: bool
    max_length: int
    train: Rows
    validation: Rows
    test: Rows

    @cached_property
    def base_rate(self) -> float:
        """Test accuracy of always saying the commonest training label."""
        return self.rate_on(self.test)

    def rate_on(self, rows: Rows) -> float:
        common = Counter(self.train.labels).most_common(1)[0][0]
        return rows.labels.count(common) / len(rows)


def load_tasks(settings: Settings) -> dict[str, Task]:
    """All data sets of an experiment, by name. Raises DataError."""
    return {source.name: load_task(source, settings) for source in settings.tasks}


def load_task(source: TaskSource, settings: Settings) -> Task:
    """One data set.

    A folder holds ``train``, ``validation`` and ``test``, each a ``.jsonl``, ``.jsonl.gz``,
    ``.csv`` or ``.parquet`` file with the columns text, label and, for pairs, text_pair; and
    perhaps a ``dataset.json`` with the names of the labels and the family.
    Raises DataError for a file or column that is missing, a label out of range, a class that train
    lacks, and a Hub that cannot be reached.
    """
    if source.hub is not None:
        tables, names, family, place = *_from_hub(source), None, source.hub
    else:
        folder = _folder(source, settings)
        described = _described(folder)
        tables = {split: _read_split(folder, source, split) for split in SPLITS}
        names, family, place = described.get("labels"), described.get("family"), str(folder)
    rows = {split: _rows(tables[split], source, f"{place}: {split}") for split in SPLITS}
    labels = _label_names(rows, names, place)
    seen = set(rows["train"].labels)
    for split in SPLITS:
        for label in rows[split].labels:
            if not 0 <= label < len(labels):
                raise DataError(
                    f"{place}: {split} has the label {label}; expected 0 to {len(labels) - 1}"
                )
            if label not in seen:
                raise DataError(
                    f"{place}: {split} has the class {labels[label]!r}, of which train has no row; "
                    "no head can learn it: leave those rows out"
                )
    return Task(
        name=source.name,
        family=source.family or family or source.name,
        labels=labels,
        pair=rows["train"].pairs is not None,
        max_length=source.max_length or settings.finetune.max_length,
        **rows,
    )


def subset(rows: Rows, n: int | None, seed: int) -> Rows:
    """At most ``n`` rows drawn by seed, each class by its share and none left without a row.

    The order of the rows stays. Raises DataError where ``n`` is below the number of classes.
    """
    if n is None or n >= len(rows):
        return rows
    labels = np.asarray(rows.labels)
    classes, counts = np.unique(labels, return_counts=True)
    if n < len(classes):
        raise DataError(f"{n} rows cannot hold {len(classes)} classes; ask for more rows")
    share = counts * (n / len(rows))
    take = np.maximum(1, np.floor(share).astype(int))
    while take.sum() > n:  # classes lifted to one row: the largest give way
        take[np.argmax(take)] -= 1
    for k in np.argsort(take - share, kind="stable")[: n - take.sum()]:  # largest remainders
        take[k] += 1
    random = np.random.default_rng([seed, n])
    chosen = [
        random.permutation(np.flatnonzero(labels == kind))[:count]
        for kind, count in zip(classes, take, strict=True)
    ]
    return rows.take(sorted(np.concatenate(chosen).tolist()))


def with_train_rows(task: Task, n: int | None, seed: int) -> Task:
    return replace(task, train=subset(task.train, n, seed))


def _folder(source: TaskSource, settings: Settings) -> Path:
    if source.path is not None:
        folder = Path(source.path)
    elif settings.data is None:
        raise DataError(
            f"{source.name}: no folder of data sets is given; set data: in the settings, or --data"
        )
    else:
        root = BUNDLE if settings.data == "bundle" else Path(settings.data)
        if not root.is_dir():
            raise DataError(f"{root}: no such folder of data sets; name it with --data")
        folder = root / source.name
    if not folder.is_dir():
        near = sorted(path.name for path in folder.parent.glob("*/")) or ["nothing"]
        raise DataError(f"{folder}: no such data set; {folder.parent} has {', '.join(near[:30])}")
    return folder


def _described(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    return found if isinstance(found, dict) else {}


def _read_split(folder: Path, source: TaskSource, split: str) -> Mapping[str, Sequence[Any]]:
    stem = source.splits.get(split, split)
    files = [folder / f"{stem}{suffix}" for suffix in SUFFIXES]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise DataError(f"{folder}: no {stem} split; expected one of {', '.join(SUFFIXES)}")
    if ".jsonl" in file.suffixes:
        return _jsonl(file)
    import pyarrow.csv
    import pyarrow.parquet

    try:
        if file.suffix == ".parquet":
            return pyarrow.parquet.read_table(file).to_pydict()
        lines = pyarrow.csv.ParseOptions(newlines_in_values=True)
        return pyarrow.csv.read_csv(file, parse_options=lines).to_pydict()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {_first_line(error)}") from None


def _jsonl(file: Path) -> dict[str, list[Any]]:
    import gzip

    opened = gzip.open if file.suffix == ".gz" else open
    columns: dict[str, list[Any]] = {}
    with opened(file, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}, line {number}: not JSON: {error}") from None
            if not isinstance(row, dict) or (columns and row.keys() != columns.keys()):
                expected = ", ".join(columns) or "an object"
                raise DataError(f"{file}, line {number}: expected {expected}, got {line[:60]!r}")
            for key, value in row.items():
                columns.setdefault(key, []).append(value)
    return columns


def _from_hub(source: TaskSource) -> tuple[dict[str, Mapping[str, Sequence[Any]]], Any]:
    from datasets import ClassLabel, load_dataset

    tables, names = {}, None
    try:
        for split in SPLITS:
            table = load_dataset(
                str(source.hub), source.subset, split=source.splits.get(split, split),
                revision=source.revision,
            )  # fmt: skip
            for column, value in source.where.items():
                table = table.filter(lambda row, c=column, v=value: row[c] == v)
            kind = table.features.get(source.label)
            names = kind.names if isinstance(kind, ClassLabel) else names
            tables[split] = {name: table[name] for name in table.column_names}
    except Exception as error:  # the Hub's client and its HTTP library raise many kinds
        raise DataError(
            f"{source.hub}: the Hub gave no such data set: {_first_line(error)}; without a "
            f"network, put train, validation and test files into a folder and name it as path: "
            f"of the task {source.name!r}"
        ) from None
    return tables, names


def _rows(table: Mapping[str, Sequence[Any]], source: TaskSource, place: str) -> Rows:
    paired = source.text_pair if source.text_pair in table else None
    if source.text_pair not in (None, "text_pair") and paired is None:
        raise DataError(_no_column(place, str(source.text_pair), table))
    for column in (source.text, source.label):
        if column not in table:
            raise DataError(_no_column(place, column, table))
    keep = [
        i
        for i in range(len(table[source.label]))
        if source.hub or all(table[key][i] == value for key, value in source.where.items())
    ]
    if not keep:
        raise DataError(f"{place}: no rows")
    labels = [table[source.label][i] for i in keep]
    for label in labels:
        if isinstance(label, bool) or not isinstance(label, int) or label < 0:
            raise DataError(
                f"{place}: expected labels that are whole numbers from 0 in the column "
                f"{source.label!r}, found {label!r}"
            )
    columns = [source.text, *([paired] if paired else [])]
    texts = [[table[column][i] for i in keep] for column in columns]
    if any(not isinstance(text, str) for column in texts for text in column):
        raise DataError(f"{place}: expected texts in {' and '.join(columns)}, found other values")
    return Rows(tuple(texts[0]), tuple(texts[1]) if paired else None, tuple(labels))


def _no_column(place: str, column: str, table: Mapping[str, Any]) -> str:
    return f"{place} has no column {column!r}; it has {', '.join(table)}"


def _label_names(rows: Mapping[str, Rows], names: Any, place: str) -> tuple[str, ...]:
    if isinstance(names, list | tuple):
        return tuple(str(name) for name in names)
    if len(set(rows["train"].labels)) < 2:
        raise DataError(f"{place}: train has rows of one class alone; expected at least two")
    return tuple(str(k) for k in range(max(rows["train"].labels) + 1))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
