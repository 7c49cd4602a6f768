"""Every kernel, compiled for GPUs that are not there: wide loads and stores, no spills."""

import json
import os
import subprocess
import sys

import pytest

from wkernels.gpu.compiled.cases import CASES
from wkernels.gpu.compiled.targets import TARGETS

NARROW = {
    "dot 8 bf16, base": "36 running sums of float64 leave registers for 8 bytes a row",
    "l2 8 bf16": "the same",
    "mix 40 of two types": "a row of float8 among 16-bit ones gives a thread 8 bytes",
    "statistics float8_e5m2": "4 running sums of float64 for each of 16 elements do not fit",
}
"""Cases whose rows are read by less than 16 bytes, and why."""

FEW = (
    "mix 2 bf16", "mix 8 bf16", "mix 8 bf16, table", "mix 8 bf16, float32 base, 8 mixes",
    "mix 16 float16, 8 mixes", "mix 40 bf16", "mix 8 float8_e4m3fn -> bf16",
    "mix 8 state dicts bf16, base", "dot 16 bf16, base", "dot 64 bf16, base",
    "statistics bf16, base",
)  # fmt: skip
"""Cases that are compiled for all targets; the others only for the first two."""
COMPILED = {
    (case, target)
    for target in TARGETS
    for case in (CASES if target in ("sm_90", "gfx942") else FEW)
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment.setdefault("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
    command = [sys.executable, "-W", "error", "-m", "wkernels.gpu.compiled", "--format", "json"]
    few = [f"--case={case}" for case in FEW]
    found = []
    for choice in (
        ["--target=sm_90", "--target=gfx942"],
        ["--target=sm_80", "--target=sm_100", *few],
    ):
        done = subprocess.run([*command, *choice], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        found += json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def main_kernels(rows):
    """By case and target, what is launched once for the rows: not the addition of its results."""
    return {
        (row["case"], row["target"]): row
        for row in rows
        if row["kernel"] not in ("add_tiles", "add_blocks")
    }


def test_every_case_compiles_for_every_target(main_kernels):
    assert set(main_kernels) == COMPILED


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_spilled(rows, target):
    assert [row for row in rows if row["target"] == target and row["spilled"]] == []


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_rows_are_read_16_bytes_at_a_time(main_kernels, target):
    for (case, compiled_for), row in main_kernels.items():
        if compiled_for == target and case not in NARROW:
            assert row["wide_loads"] > 0, row
            assert row["wide_loads"] >= row["expected_loads"], row
            # a tile's 64 elements of the base, in three stages, are less than 16 bytes a thread
            base_of_a_tile = row["kernel"] == "dot_tiles" and "base" in case
            assert row["narrow_loads"] <= 3 * base_of_a_tile, row


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_outputs_are_written_16_bytes_at_a_time(main_kernels, target):
    for (case, compiled_for), row in main_kernels.items():
        if compiled_for == target:
            assert row["wide_stores"] >= row["expected_stores"], row
            # a thread that reads 16 bytes of float64 has 4 of bfloat16 to write
            if row["kernel"] == "mix_rows" and case != "mix 8 float64 -> bf16":
                assert row["wide_stores"] > 0, row


def test_amd_reads_and_writes_as_wide_as_nvidia(main_kernels):
    for case in CASES:
        here, there = main_kernels[case, "gfx942"], main_kernels[case, "sm_90"]
        assert here["wide_loads"] >= there["expected_loads"], here
        if here["kernel"] == "mix_rows":
            assert here["wide_stores"] >= there["expected_stores"], here


def test_a_sum_is_fused_multiply_adds(main_kernels):
    # 8 models and 8 elements a thread, in the whole blocks and in the last one
    assert main_kernels["mix 8 bf16", "sm_90"]["fma"] == 2 * 8 * 8


def test_float64_products_use_the_matrix_units(main_kernels):
    for target in TARGETS:
        assert "m" in main_kernels["dot 64 bf16, base", target]["matrix"]
