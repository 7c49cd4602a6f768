"""Columns of a data set's splits: from jsonl, csv or parquet files, or from the Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wspace.errors import WspaceError
from wspace.lab.settings import TaskSource

SPLITS = ("train", "validation", "test")
SUFFIXES = (".jsonl", ".jsonl.gz", ".csv", ".parquet")


class DataError(WspaceError):
    """Data that are not there, or that no classifier can be trained on."""


def read_split(folder: Path, source: TaskSource, split: str) -> Mapping[str, Sequence[Any]]:
    """Column -> values of a split's file. Raises DataError if there is none, or it is broken."""
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
    try:
        with opened(file, "rt", encoding="utf-8") as text:
            lines = text.readlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {_first_line(error)}") from None
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


def read_hub(source: TaskSource) -> tuple[dict[str, Mapping[str, Sequence[Any]]], Any]:
    """Split -> columns of a Hub data set, and the names of its labels where it has them.

    Raises DataError, which names the local way, if it cannot be had.
    """
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


def read_description(folder: Path) -> dict[str, Any]:
    """What ``dataset.json`` says, if it is there."""
    path = folder / "dataset.json"
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    return found if isinstance(found, dict) else {}


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]
