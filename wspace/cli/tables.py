"""Results on stdout: a table to look at, or JSON or CSV for programs."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections.abc import Sequence
from typing import Any


def show(columns: Sequence[str], rows: Sequence[Sequence[Any]], form: str) -> None:
    """Print rows as ``table``, ``json`` (a list of objects) or ``csv``."""
    if form == "json":
        records = [
            dict(zip(columns, [_plain(value) for value in row], strict=True)) for row in rows
        ]
        print(json.dumps(records, indent=1, ensure_ascii=False))
    elif form == "csv":
        write_csv(sys.stdout, columns, rows)
    else:
        _print_table(columns, rows)


def write_csv(file, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if value is None else value for value in row] for row in rows)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    texts = [[_text(value) for value in row] for row in rows]
    numeric = [
        all(isinstance(row[k], int | float | type(None)) for row in rows)
        for k in range(len(columns))
    ]
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    for row in [list(columns), *texts]:
        cells = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ]
        print("  ".join(cells).rstrip())


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else printable(str(value))


def printable(text: str) -> str:
    """Without what a terminal takes for a command, such as a name may hold."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


_CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f]")


def _plain(value: Any) -> Any:
    # JSON has no NaN
    return None if isinstance(value, float) and not math.isfinite(value) else value
