"""Data sets from every kind of file, and one clear line for those that no head can learn."""

import csv
import dataclasses
import gzip
import json
from collections import Counter

import pytest

from tests.lab_base import rows_of, save_data
from wspace.lab.data import DataError, load_task, overlaps, scored_rows, subset
from wspace.lab.settings import TaskSource, load_settings


@pytest.fixture
def data(tmp_path):
    return save_data(tmp_path / "data", {"plain": "one", "pairs": "two"}, pair=("pairs",))


def load(root, name="plain", **source):
    settings = load_settings({"name": "t", "tasks": [name], "data": str(root)})
    return load_task(dataclasses.replace(TaskSource(name), **source), settings)


def rewrite(root, split="train", change=lambda row: row, name="plain"):
    rows = [change(row) for row in rows_of(name, split, 48)]
    (root / name / f"{split}.jsonl").write_text("\n".join(json.dumps(r) for r in rows if r))


def test_jsonl_with_its_description(data):
    task = load(data)
    assert (task.family, task.labels, task.pair) == ("one", ("label 0", "label 1"), False)
    assert (len(task.train), len(task.validation), len(task.test)) == (48, 24, 24)
    assert task.train.texts[0] == rows_of("plain", "train", 1)[0]["text"]
    assert task.base_rate == 0.5
    pairs = load(data, "pairs")
    assert (
        pairs.pair
        and pairs.train.pairs[0] == rows_of("pairs", "train", 1, pair=True)[0]["text_pair"]
    )


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl.gz"])
def test_other_files_hold_the_same_rows(data, kind):
    import pyarrow
    import pyarrow.parquet

    expected = load(data, "pairs")
    for split in ("train", "validation", "test"):
        file = data / "pairs" / f"{split}.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        target = data / "pairs" / f"{split}.{kind}"
        if kind == "csv":
            with target.open("w", newline="") as out:
                writer = csv.DictWriter(out, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        elif kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), target)
        else:
            target.write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert load(data, "pairs") == expected


def test_columns_are_those_named_and_may_be_joined(data):
    def renamed(row):
        first, _, rest = row["text"].partition(" ")
        return {"a": first, "b": rest, "answer": "yes" if row["label"] else "no"}

    for split in ("train", "validation", "test"):
        rewrite(data, split, renamed)
    task = load(data, text="{a} {b}", text_pair=None, label="answer", labels=("no", "yes"))
    assert task.train.texts == tuple(row["text"] for row in rows_of("plain", "train", 48))
    assert task.labels == ("no", "yes")
    assert task.train.labels == tuple(row["label"] for row in rows_of("plain", "train", 48))
    with pytest.raises(DataError, match=r"has the label 'no'; expected one of yes, maybe"):
        load(data, text="a", text_pair=None, label="answer", labels=("yes", "maybe"))
    with pytest.raises(DataError, match=r"train has no column 'c'; it has a, b, answer"):
        load(data, text="{a} {c}", text_pair=None, label="answer", labels=("no", "yes"))


def test_rows_of_one_kind(data):
    for split in ("train", "validation", "test"):
        rewrite(data, split, lambda row: row | {"lang": "en" if "w1 " in row["text"] else "de"})
    task = load(data, where={"lang": "de"})
    assert 0 < len(task.train) < 48 and not any("w1 " in text for text in task.train.texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {"text": row["text"]}, r"train has no column 'label'; it has text"),
        (lambda row: {"label": row["label"]}, r"train has no column 'text'; it has label"),
        (lambda row: row | {"label": row["label"] + 7}, r"has the label 7; expected 0 to 1"),
        (lambda row: row | {"label": -1}, r"whole numbers from 0 in the column 'label', found -1"),
        (
            lambda row: row | {"label": 0.5},
            r"whole numbers from 0 in the column 'label', found 0.5",
        ),
        (lambda row: row | {"text": None}, r"expected texts in text, found other values"),
        (lambda row: row if row["label"] else None, r"'label 0', of which train has no row"),
        (lambda row: None, r"train: no rows|train has no column"),
    ],
    ids=["no-label", "no-text", "out-of-range", "negative", "fraction", "null", "class", "empty"],
)
def test_data_that_no_head_can_learn(data, change, message):
    rewrite(data, "train", change)
    with pytest.raises(DataError, match=message):
        load(data)


def test_files_that_are_not_there_or_broken(data, tmp_path):
    with pytest.raises(DataError, match=r"no such data set; .* has pairs, plain"):
        load(data, "other")
    with pytest.raises(DataError, match=r"no such folder of data sets; name it with --data"):
        load(tmp_path / "nowhere")
    (data / "plain" / "test.jsonl").write_text('{"text": "w1", "label": 0}\n{"text": \n')
    with pytest.raises(DataError, match=r"test.jsonl, line 2: not JSON"):
        load(data)
    (data / "plain" / "test.jsonl").write_bytes(b'{"text": "\xff", "label": 0}\n')
    with pytest.raises(DataError, match=r"test.jsonl: cannot be read"):
        load(data)
    (data / "plain" / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"no test split; expected one of .jsonl"):
        load(data)
    (data / "plain" / "test.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"test.parquet: cannot be read"):
        load(data)


def test_a_hub_that_cannot_be_reached_names_the_local_way(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError) as caught:
        load(None, "plain", hub="no-one/no-such-data-set")
    message = str(caught.value)
    assert "\n" not in message and "no-one/no-such-data-set" in message
    assert "put train, validation and test files into a folder and name it as path:" in message


def test_the_datasets_library_reads_what_a_hub_id_names(data):
    """``load_dataset`` takes a folder as it takes a Hub id."""
    expected = load(data, "pairs")
    (data / "pairs" / "dataset.json").unlink()
    found = load(None, "pairs", hub=str(data / "pairs"))
    assert (found.train, found.test) == (expected.train, expected.test)
    assert found.labels == ("0", "1")


def test_a_subset_keeps_the_shares_of_the_classes(data):
    rows = load(data).train
    uneven = rows.take([i for i, label in enumerate(rows.labels) if label or i < 8])
    assert Counter(uneven.labels) == {0: 4, 1: 24}
    few = subset(uneven, 7, seed=3)
    assert Counter(few.labels) == {0: 1, 1: 6}
    assert few == subset(uneven, 7, seed=3) != subset(uneven, 7, seed=4)
    assert set(few.texts) <= set(uneven.texts)
    assert subset(uneven, None, 0) is uneven
    with pytest.raises(DataError, match="1 rows cannot hold 2 classes"):
        subset(uneven, 1, 0)
    assert Counter(scored_rows(uneven, 1).labels) == {0: 1, 1: 1}


def test_texts_that_two_data_sets_share_are_counted(data):
    tasks = {name: load(data, name) for name in ("plain", "pairs")}
    assert overlaps(tasks) == []
    test = tasks["pairs"].test
    seen = tasks["plain"].train.texts[0]
    second = (" " + seen.upper(), *test.pairs[1:])  # case and the space around do not matter
    tasks["pairs"] = dataclasses.replace(
        tasks["pairs"], test=dataclasses.replace(test, pairs=second)
    )
    assert overlaps(tasks) == [{"test": "pairs", "train": "plain", "rows": 1, "of": 24}]
