"""Makes the rows that come with the package: ``python -m bench.bundle DATASETS``.

Parts of four data sets whose licences let them be copied, as seven small data sets of three
families: inference as it is, clinc150 by its authors' domains, stackoverflow by kind of tag. The
same folder gives the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wspace.lab.data import BUNDLE, SPLITS, Rows, load_task, subset
from wspace.lab.settings import TaskSource, load_settings

WORDS = 20  # of a row: longer ones are left out, which keeps the demo short
SEED = 0


@dataclass(frozen=True)
class Part:
    """What is taken of one data set."""

    name: str
    family: str
    source: str
    rows: tuple[int, int, int]  # train, validation, test: at most
    labels: tuple[str, ...] = ()  # rows of these classes alone; default all


PARTS = (
    Part("snli", "inference", "snli", (1600, 150, 300)),
    Part("mnli", "inference", "mnli", (1600, 150, 300)),
    Part("banking", "intents", "clinc150", (800, 100, 200), (
        "freeze_account", "routing", "pin_change", "bill_due", "pay_bill", "account_blocked",
        "interest_rate", "min_payment", "bill_balance", "transfer", "order_checks", "balance",
        "spending_history", "transactions", "report_fraud",
    )),
    Part("travel", "intents", "clinc150", (800, 100, 200), (
        "plug_type", "travel_notification", "translate", "flight_status", "international_visa",
        "timezone", "exchange_rate", "travel_suggestion", "travel_alert", "vaccines",
        "lost_luggage", "book_flight", "book_hotel", "carry_on", "car_rental",
    )),
    Part("kitchen", "intents", "clinc150", (800, 100, 200), (
        "food_last", "confirm_reservation", "how_busy", "ingredients_list", "calories",
        "nutrition_info", "recipe", "restaurant_reviews", "restaurant_reservation",
        "meal_suggestion", "restaurant_suggestion", "cancel_reservation",
        "ingredient_substitution", "cook_time", "accept_reservations",
    )),
    Part("web", "questions", "stackoverflow", (800, 100, 300), (
        "wordpress", "drupal", "magento", "sharepoint", "ajax", "apache",
    )),
    Part("languages", "questions", "stackoverflow", (800, 100, 300), (
        "scala", "haskell", "spring", "hibernate", "linq", "qt",
    )),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m bench.bundle")
    parser.add_argument("datasets", type=Path, help="the folder of whole data sets")
    parser.add_argument("-o", "--out", type=Path, default=BUNDLE)
    options = parser.parse_args(arguments)
    size = 0
    for part in PARTS:
        size += write(part, options.datasets, options.out / part.name)
    print(f"{options.out}: {len(PARTS)} data sets, {size:,} bytes")


def write(part: Part, datasets: Path, out: Path) -> int:
    """One data set of the bundle; returns its bytes."""
    source = json.loads((datasets / part.source / "dataset.json").read_text(encoding="utf-8"))
    settings = load_settings({"name": "bundle", "data": str(datasets), "tasks": [part.source]})
    task = load_task(TaskSource(part.source), settings)
    names = part.labels or task.labels
    numbers = [task.labels.index(name) for name in names]
    splits = {
        split: subset(_chosen(getattr(task, split), numbers), count, SEED)
        for split, count in zip(SPLITS, part.rows, strict=True)
    }
    out.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        (out / f"{split}.jsonl.gz").write_bytes(packed(rows, numbers))
    changes = f"A part of the data set's rows, of at most {WORDS} words each, drawn by seed {SEED}"
    if part.labels:
        changes += f"; {len(names)} of its {len(task.labels)} classes, numbered anew"
    content = {
        "name": part.name,
        "family": part.family,
        "labels": list(names),
        "pair": task.pair,
        **{key: source[key] for key in ("source", "source_commit", "license", "citation")},
        "changes": changes + ".",
        "rows": {split: len(rows) for split, rows in splits.items()},
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (out / "dataset.json").write_text(text, encoding="utf-8")
    return sum(path.stat().st_size for path in out.iterdir())


def _chosen(rows: Rows, numbers: Sequence[int]) -> Rows:
    """Rows of the classes that are wanted, and not too long."""
    pairs = rows.pairs or ("",) * len(rows)
    return rows.take(
        [
            i
            for i, (text, pair) in enumerate(zip(rows.texts, pairs, strict=True))
            if rows.labels[i] in numbers and len(f"{text} {pair}".split()) <= WORDS
        ]
    )


def packed(rows: Rows, numbers: Sequence[int]) -> bytes:
    """Lines of JSON, compressed; no time of day in it, so that the bytes follow from the rows."""
    lines = []
    for i, (text, label) in enumerate(zip(rows.texts, rows.labels, strict=True)):
        pair: dict[str, Any] = {"text_pair": rows.pairs[i]} if rows.pairs else {}
        row = {"text": text, **pair, "label": numbers.index(label)}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return gzip.compress("".join(lines).encode(), 9, mtime=0)


if __name__ == "__main__":
    main()
