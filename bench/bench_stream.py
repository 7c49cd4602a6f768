"""One pass over checkpoint files: the Gram matrix of a zoo, against reading the files.

The page cache is warm. ``--bench-zoo DIR`` takes a zoo that exists.
"""

from __future__ import annotations

import pytest

import wspace
from bench import merging, plain, truth
from bench.limits import Work


@pytest.fixture
def models(checkpoints):
    return [checkpoints / f"model-{i}" for i in range(4)]


@pytest.mark.parametrize("memory", ["256MiB", "1GiB"])
def bench_gram_of_files(measure, benchmark, checkpoints, models, memory):
    """Bytes: every file once."""
    base = checkpoints / "base"
    zoo = wspace.open_zoo(models, base=base)
    cat = merging.cat([*models, base])
    work = Work(lambda: wspace.gram(zoo, memory=memory, device="cpu"), cat.amount)
    gram = measure(work, {"cat": (cat, cat.amount)}, rounds=3)
    merging.check_gram_of_files(gram, models, base)
    benchmark.extra_info["memory"] = memory


def bench_gram_by_hand(measure, benchmark, checkpoints, models):
    """``load_file`` of every shard, float32 differences and products."""
    base = checkpoints / "base"
    cat = merging.cat([*models, base])
    work = Work(lambda: plain.gram_files(models, base), cat.amount)
    result = measure(work, {"cat": (cat, cat.amount)}, rounds=2)
    zoo = wspace.open_zoo(models, base=base)
    expected = wspace.gram(zoo, device="cpu").total
    benchmark.extra_info["relative_error"] = error = truth.gram_error(result, expected)
    assert error < 1e-2
