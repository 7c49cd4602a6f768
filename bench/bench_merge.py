"""The whole command ``wspace merge`` on four checkpoints, against the files and other programs.

The page cache is warm. ``--bench-zoo DIR`` takes a zoo that exists, ``--mergekit PATH`` names
mergekit-yaml. Peak memory is of resident pages, mapped files included.
"""

from __future__ import annotations

import pytest

from bench import merging
from bench.limits import seconds_of, spread

ROUNDS = 3


@pytest.fixture
def models(checkpoints):
    return [checkpoints / f"model-{i}" for i in range(4)]


def bench_merge_command(measure, benchmark, models, tmp_path):
    """Its limit is reading the inputs and then writing the output, and flushing it."""
    command = merging.average_command(models, tmp_path / "merged")
    cat, write = merging.cat(models), merging.write(models, tmp_path)
    measure(
        command.work,
        {"cat of the inputs": (cat, cat.amount), "write of the output": (write, write.amount)},
        ROUNDS,
        together={"cat + write": sum},
    )
    merging.check_average(tmp_path / "merged", models)
    benchmark.extra_info["peak_bytes"] = command.peak_bytes


def bench_import_torch(benchmark):
    command = merging.import_torch()
    benchmark.pedantic(command.work.run, rounds=ROUNDS, warmup_rounds=1)


def bench_merge_by_hand(measure, benchmark, models, tmp_path):
    """``load_file`` and ``save_file`` with a float32 sum; the output is not flushed."""
    command = merging.plain_command(models, tmp_path / "merged")
    cat = merging.cat(models)
    measure(command.work, {"cat of the inputs": (cat, cat.amount)}, ROUNDS)
    merging.check_average(tmp_path / "merged", models)
    benchmark.extra_info["peak_bytes"] = command.peak_bytes


def bench_merge_with_mergekit(measure, benchmark, models, tmp_path, pytestconfig):
    """mergekit's linear method; its start-up (``--help``) is told apart."""
    program = pytestconfig.getoption("--mergekit")
    if not program:
        pytest.skip("mergekit: not given (--mergekit PATH)")
    command = merging.mergekit_command(program, models, tmp_path / "merged")
    cat = merging.cat(models)
    measure(command.work, {"cat of the inputs": (cat, cat.amount)}, rounds=2)
    merging.check_average(tmp_path / "merged", models, merging.MERGEKIT_ROUNDINGS)
    start_up = merging.Command([program, "--help"])
    seconds = spread(seconds_of(start_up.work) for _ in range(ROUNDS))
    benchmark.extra_info.update(peak_bytes=command.peak_bytes, start_up_seconds=seconds._asdict())
