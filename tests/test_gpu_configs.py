"""Launch configurations: the committed tables, what their defaults follow from, and how they are
measured. The clock here counts, and measures nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import truth, tune
from wkernels.gpu import configs
from wkernels.gpu.configs import derive
from wkernels.gpu.configs.families import FAMILIES, family_of, resident_threads
from wkernels.gpu.configs.shapes import SUM_COLUMNS, Choose, Mix, Tile
from wkernels.gpu.configs.tables import TABLES
from wkernels.gpu.configs.text import as_text

ROOT = Path(__file__).parents[1]


def table_of(family):
    return {name: getattr(TABLES[family], name) for name in tune.OPERATIONS}


@pytest.mark.parametrize("family", FAMILIES)
def test_committed_text_is_what_is_printed(family):
    text = as_text(family, table_of(family), TABLES[family].ORIGIN)
    assert (ROOT / f"wkernels/gpu/configs/tables/{family}.py").read_text() == text


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_not_measured_is_derived(family):
    assert TABLES[family].ORIGIN == "derived" or TABLES[family].ORIGIN.startswith("measured on ")
    if TABLES[family].ORIGIN == "derived":
        assert table_of(family) == derive.table(family)
    for name, entries in derive.table(family).items():
        assert set(table_of(family)[name]) == set(entries)


@pytest.mark.parametrize("family", FAMILIES)
def test_enough_is_asked_for_to_keep_memory_busy(family):
    """At three quarters of the places for threads; 8 models are more than any chip needs."""
    chip = FAMILIES[family]
    for (width, models), entry in derive.table(family)["WEIGHTED_SUM"].items():
        if models in (2, 4, 8):
            asked = entry.vectors * models * derive.VECTOR * 0.75 * chip.threads
            assert asked >= 2 * chip.bytes_in_flight, (width, models)


def test_a_block_is_whole_vectors_of_every_lane():
    config = configs.weighted_sum(
        "hopper", itemsize=2, compute_size=4, n_models=2, n_mixes=1, lanes=32
    )
    assert (config.block, config.unrolled) == (8 * 4 * 32 * 4, 2)
    many = configs.weighted_sum(
        "cdna", itemsize=4, compute_size=4, n_models=100, n_mixes=3, lanes=64
    )
    assert (many.block, many.unrolled, many.group) == (4 * 64 * 4, 0, 4)


def test_narrow_rows_in_float64_count_twice():
    wide, double = (
        configs.weighted_sum("hopper", itemsize=2, compute_size=8, n_models=n, n_mixes=1)
        for n in (8, 9)
    )
    assert (wide.unrolled, double.unrolled) == (8, 0)


@pytest.mark.parametrize(
    ("n_rows", "engine", "smallest", "expected"),
    [
        (2, "float64", 8, (True, 8)), (8, "float64", 8, (True, 8)), (8, "float64", 16, (False, 8)),
        (9, "float64", 8, (True, 16)), (33, "float64", 8, (True, 64)),
        (500, "float64", 16, (True, 64)), (8, "whole", 8, (True, 16)),
        (65, "bfloat16", 16, (True, 128)), (4096, "tfloat32", 8, (True, 128)),
    ],
)  # fmt: skip
def test_tiles(n_rows, engine, smallest, expected):
    itemsize = 4 if engine == "tfloat32" else 2
    found = configs.products(
        "hopper", "dot", engine=engine, itemsize=itemsize, n_rows=n_rows, n_columns=n_rows,
        square=True, matrix_tiles=(smallest, 64),
    )  # fmt: skip
    assert (found.matrix, found.tile) == expected
    assert found.one_sided == (n_rows <= found.tile)


def test_without_matrix_units_everything_goes_pair_by_pair():
    for n_rows, tile in ((8, 8), (9, 4)):
        found = configs.products(
            "consumer", "dot", engine="float64", itemsize=2, n_rows=n_rows, n_columns=n_rows,
            square=True, matrix_tiles=(0, 0),
        )  # fmt: skip
        assert (found.matrix, found.tile) == (False, tile)


@pytest.mark.parametrize(
    ("backend", "arch", "family"),
    [
        ("cuda", 80, "ampere"), ("cuda", 89, "consumer"), ("cuda", 90, "hopper"),
        ("cuda", 100, "blackwell"), ("cuda", 120, "consumer"), ("hip", "gfx942", "cdna"),
        ("hip", "gfx1100", "consumer"),
    ],
)  # fmt: skip
def test_families(backend, arch, family):
    assert family_of(backend, arch) == family


def test_resident_threads():
    hopper = FAMILIES["hopper"]
    assert resident_threads(hopper, registers=32, num_warps=4, shared=0) == 2048
    assert resident_threads(hopper, registers=33, num_warps=4, shared=0) == 12 * 128
    assert resident_threads(hopper, registers=255, num_warps=8, shared=0) == 256
    assert resident_threads(hopper, registers=32, num_warps=1, shared=0) == 32 * 32
    assert resident_threads(hopper, registers=32, num_warps=4, shared=100 << 10) == 2 * 128


class Clock:
    """Seconds by what is in use: given, not measured."""

    def __init__(self, seconds):
        self.device, self._seconds = torch.device("cpu"), seconds

    def seconds(self, run):
        run()
        return self._seconds()

    def synchronize(self):
        pass


def test_the_fastest_that_is_right_wins():
    table = {"key": 1}
    clock = Clock(lambda: {1: 1.0, 2: 0.5, 3: 0.1, 4: 0.6}[table["key"]])
    trial = tune.Trial(
        "WEIGHTED_SUM", "key", [2, 3, 4, 5],
        lambda: torch.ones(2) * (3 if table["key"] == 3 else 1), exact=True,
    )  # fmt: skip
    log = []
    assert tune.best(trial, table, clock, 3, log.append) == 2
    assert table == {"key": 1}
    assert "other bits" in log[0]
    assert "KeyError" in log[1]  # a candidate that fails is none


def test_what_is_hardly_faster_does_not_replace():
    table = {"key": 1}
    clock = Clock(lambda: {1: 1.0, 2: 0.995}[table["key"]])
    trial = tune.Trial("STATISTICS", "key", [2], lambda: torch.ones(1), exact=False)
    assert tune.best(trial, table, clock, 3, lambda text: None) == 1


def test_tuning_changes_what_it_launches_and_prints_a_table(monkeypatch):
    """One entry of each operation, with two candidates each: the interpreter is slow."""
    monkeypatch.setattr(truth, "PERIOD", 500)
    chosen = {
        ("WEIGHTED_SUM", (2, 2)), ("STATISTICS", 2), ("PRODUCTS", ("whole", 2, 16)),
        ("CHOICES", ("join", 2)),
    }  # fmt: skip
    device, seen = torch.device("cpu"), {}
    for trial in tune.trials(device, 2048, "hopper"):
        if (trial.operation, trial.key) in chosen:
            seen[trial.operation] = trial
            del trial.candidates[2:]
    monkeypatch.setattr(tune, "trials", lambda *arguments: seen.values())
    fast = {Mix(1, 2, 0, 1), Tile(32, 1, 2), Choose(2, 4)}
    tables = table_of("hopper")

    def seconds():
        in_use = {table[trial.key] for trial in seen.values()
                  for table in [tables[trial.operation]]}  # fmt: skip
        return 1.0 - 0.2 * len(in_use & fast)

    kept = []
    found = tune.measured(
        Clock(seconds), "hopper", tune.OPERATIONS, row_bytes=2048, repeats=1,
        log=lambda text: None, keep=lambda found: kept.append(as_text("hopper", found, "derived")),
    )  # fmt: skip
    assert len(kept) == 4  # after every entry
    assert kept[-1] == as_text("hopper", found, "derived")
    assert found["CHOICES"]["join", 2] == Choose(2, 4)
    assert found["WEIGHTED_SUM"][2, 2] == Mix(1, 2, 0, 1)
    assert found["PRODUCTS"]["whole", 2, 16] == Tile(32, 1, 2)
    assert found["STATISTICS"] == tables["STATISTICS"]
    written = {}
    exec(as_text("hopper", found, "measured on a clock"), written)
    assert {name: written[name] for name in tune.OPERATIONS} == found


def test_what_there_is_no_time_for_stays(monkeypatch):
    log = []
    monkeypatch.setattr(
        tune, "trials", lambda *arguments: [tune.Trial("STATISTICS", 2, [], pytest.fail, True)]
    )
    found = tune.measured(
        Clock(lambda: 1.0), "hopper", tune.OPERATIONS, row_bytes=2048, repeats=1, log=log.append,
        seconds=-1,
    )  # fmt: skip
    assert found == table_of("hopper")
    assert "the time was used up before STATISTICS 2" in log[0]


def test_of_sums_the_columns_stay():
    for family, chip in FAMILIES.items():
        for (kernel, _), entry in TABLES[family].CHOICES.items():
            if kernel == "sums":
                assert entry.elements * entry.num_warps * chip.lanes == SUM_COLUMNS


@pytest.mark.parametrize("kernel", derive.CHOOSING)
def test_every_kernel_that_chooses_elements_is_measured(kernel, monkeypatch):
    """With two candidates, which find the same, and are what is launched."""
    monkeypatch.setattr(truth, "PERIOD", 500)
    (found,) = [
        trial for trial in tune.trials(torch.device("cpu"), 4 * 8 * 700, "hopper", ("CHOICES",))
        if trial.key == (kernel, 4)
    ]  # fmt: skip
    table = TABLES["hopper"].CHOICES
    expected, steps = found.run().clone(), set()
    real = configs.choosing

    def seen(*arguments, **options):
        steps.add(real(*arguments, **options))
        return real(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "choosing", seen)
        for candidate in [table[found.key], *found.candidates[:2]]:
            with tune.using(table, found.key, candidate):
                tune._check(found.run(), expected, exact=found.exact)
    assert len(steps) == 3


def test_without_a_gpu_nothing_is_printed():
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "bench.tune"], capture_output=True, text=True, cwd=ROOT, env=hidden
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: no GPU found: ")
