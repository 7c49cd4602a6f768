"""Data sets of texts and labels: from a folder, from the package, or from the Hub."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from wspace.lab.settings import Settings, TaskSource, digest
from wspace.lab.tables import SPLITS, DataError, read_description, read_hub, read_split

BUNDLE = Path(__file__).parent / "bundle"


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
        tables, names, family, place = *read_hub(source), None, source.hub
    else:
        folder = _folder(source, settings)
        described = read_description(folder)
        tables = {split: read_split(folder, source, split) for split in SPLITS}
        names, family, place = described.get("labels"), described.get("family"), str(folder)
    rows = {split: _rows(tables[split], source, f"{place}: {split}") for split in SPLITS}
    labels = _label_names(rows, source.labels or names, place)
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


def overlaps(tasks: Mapping[str, Task]) -> list[dict[str, Any]]:
    """Test rows that share a text, but for its case, with the training rows of another data set.

    A model of that other set has seen them, so its loss on this one is a little too good.
    """
    trained = {name: _texts(task.train) for name, task in tasks.items()}
    known = {name: set().union(*texts) for name, texts in trained.items()}
    counts = [
        (name, other, sum(not row.isdisjoint(known[other]) for row in _texts(task.test)))
        for name, task in tasks.items()
        for other in tasks
        if other != name
    ]
    return [
        {"test": name, "train": other, "rows": count, "of": len(tasks[name].test)}
        for name, other, count in counts
        if count
    ]


def _texts(rows: Rows) -> list[set[str]]:
    columns = (rows.texts,) if rows.pairs is None else (rows.texts, rows.pairs)
    return [{text.strip().lower() for text in row} for row in zip(*columns, strict=True)]


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


def scored_rows(rows: Rows, n: int | None) -> Rows:
    """The rows that a probe or a score is taken of: at most ``n``, yet one of each class."""
    return subset(rows, None if n is None else max(n, len(set(rows.labels))), seed=0)


def with_scored_rows(task: Task, validation: int | None, test: int | None) -> Task:
    return replace(
        task,
        validation=scored_rows(task.validation, validation),
        test=scored_rows(task.test, test),
    )


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


def _rows(table: Mapping[str, Sequence[Any]], source: TaskSource, place: str) -> Rows:
    # the default name of a second text is used where it is there; another has to be
    optional = source.text_pair == "text_pair" and source.text_pair not in table
    asked = [source.text, *([source.text_pair] if source.text_pair and not optional else [])]
    columns = [_columns_of(text) for text in asked]
    for column in (*(name for names in columns for name in names), source.label):
        if column not in table:
            raise DataError(_no_column(place, column, table))
    keep = [
        i
        for i in range(len(table[source.label]))
        if source.hub or all(table[key][i] == value for key, value in source.where.items())
    ]
    if not keep:
        raise DataError(f"{place}: no rows")
    labels = [_label(table[source.label][i], source, place) for i in keep]
    texts = []
    for pattern, names in zip(asked, columns, strict=True):
        values = [[table[name][i] for i in keep] for name in names]
        if pattern in table and any(not isinstance(text, str) for text in values[0]):
            raise DataError(f"{place}: expected texts in {pattern}, found other values")
        if pattern not in table:
            rows = zip(*values, strict=True)
            values = [[pattern.format_map(dict(zip(names, row, strict=True))) for row in rows]]
        texts.append(values[0])
    return Rows(tuple(texts[0]), tuple(texts[1]) if len(texts) > 1 else None, tuple(labels))


def _columns_of(text: str) -> list[str]:
    """The columns of a setting: its name, or those in braces."""
    names = [name for _, name, _, _ in string.Formatter().parse(text) if name]
    return names or [text]


def _label(value: Any, source: TaskSource, place: str) -> int:
    if source.labels:
        if str(value) not in source.labels:
            raise DataError(
                f"{place} has the label {value!r}; expected one of {', '.join(source.labels)}"
            )
        return source.labels.index(str(value))
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DataError(
            f"{place}: expected labels that are whole numbers from 0 in the column "
            f"{source.label!r}, found {value!r}; texts are named by labels: of the task"
        )
    return value


def _no_column(place: str, column: str, table: Mapping[str, Any]) -> str:
    return f"{place} has no column {column!r}; it has {', '.join(table)}"


def _label_names(rows: Mapping[str, Rows], names: Any, place: str) -> tuple[str, ...]:
    if isinstance(names, list | tuple):
        return tuple(str(name) for name in names)
    if len(set(rows["train"].labels)) < 2:
        raise DataError(f"{place}: train has rows of one class alone; expected at least two")
    return tuple(str(k) for k in range(max(rows["train"].labels) + 1))
