"""Every kernel, compiled for GPUs that are not there: wide loads and stores, no spills.

What the compiler makes of all cases is kept in ``bench/results/compiled``, as ``python -m
wkernels.gpu.compiled`` prints it, and judged here. A few cases are compiled anew, and must be what
is kept.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import triton

from wkernels.gpu.compiled.cases import CASES
from wkernels.gpu.compiled.table import as_text, from_text
from wkernels.gpu.compiled.targets import TARGETS

KEPT = Path(__file__).parents[1] / "bench" / "results" / "compiled"
VERSIONS = ("3.6", "3.9")
"""Of Triton: the oldest and the newest that are supported."""
VERSION = ".".join(triton.__version__.split(".")[:2])

NARROW = {
    "l2 8 bf16": "36 running sums of float64 leave registers for 8 bytes a row",
    "mix 40 of two types": "a row of float8 among 16-bit ones gives a thread 8 bytes",
    "variances bf16, base": "a float64 division of each of 8 elements would spill",
    "statistics float8_e5m2": "4 running sums of float64 for each of 16 elements do not fit",
}
"""Cases whose rows are read by less than 16 bytes, and why."""
PAIRS = ("dot 8 bf16, base", "dot 16 float8_e4m3fn")
"""Those that are so too where float64 products go pair by pair; all of 16 elements would spill."""

AFTERWARDS = ("add_tiles", "add_blocks", "add_bands", "merge_parts", "find_equal")
"""Kernels that read what others have found, or little."""

FEW = (
    "mix 2 bf16", "mix 8 bf16", "mix 8 bf16, float32 base, 8 mixes", "mix 40 bf16",
    "mix 8 float8_e4m3fn -> bf16", "mix 8 state dicts bf16, base", "dot 8 bf16, base",
    "dot 64 bf16, base", "fast dot 8 bf16", "fast dot 256 bf16", "fast dot 32 float32, base",
    "l2 16 bf16", "statistics bf16, base",
)  # fmt: skip
"""Cases that are compiled by the tests."""


def kept(version):
    return from_text((KEPT / f"triton-{version}.txt").read_text())


@pytest.fixture(scope="module", params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture(scope="module")
def rows(version):
    return kept(version)


@pytest.fixture(scope="module")
def main_kernels(rows):
    """By case and target, what reads all of the rows: not what adds or merges its results, or looks
    into one block."""
    return {(row["case"], row["target"]): row for row in rows if row["kernel"] not in AFTERWARDS}


def test_every_case_is_kept(main_kernels):
    assert set(main_kernels) == {(case, target) for case in CASES for target in TARGETS}


def test_a_case_has_as_many_kernels_on_every_target():
    """And by every compiler: which are launched does not depend on what memory holds."""
    counts = Counter(
        (version, row["target"], row["case"]) for version in VERSIONS for row in kept(version)
    )
    for (_, _, case), count in counts.items():
        assert count == counts[VERSIONS[0], "sm_80", case], case


def test_what_is_kept_is_what_the_compiler_makes(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment.setdefault("TRITON_CACHE_DIR", str(tmp_path))
    command = [sys.executable, "-W", "error", "-m", "wkernels.gpu.compiled", "--format", "json"]
    command += [f"--case={case}" for case in FEW]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    # registers differ between versions of the compiler; some are kept, of others the newest is near
    same = (KEPT / f"triton-{VERSION}.txt").exists()
    expected = [row for row in kept(VERSION if same else "3.9") if row["case"] in FEW]
    expected.sort(key=lambda row: FEW.index(row["case"]))
    columns = list(found[0]) if same else ["target", "case", "kernel"]
    for row, other in zip(found, expected, strict=True):
        assert {name: row[name] for name in columns} == {name: other[name] for name in columns}


def test_a_table_is_read_as_it_is_written(rows):
    assert from_text(as_text(rows)) == rows


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_spilled(rows, target):
    assert [row for row in rows if row["target"] == target and row["spilled"]] == []


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_rows_are_read_16_bytes_at_a_time(main_kernels, target):
    for (case, compiled_for), row in main_kernels.items():
        if row["kernel"] == "pair_tiles" and case in PAIRS:
            continue
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


def test_amd_reads_and_writes_16_bytes_at_a_time(main_kernels):
    for (case, target), row in main_kernels.items():
        if target == "gfx942" and case not in NARROW:
            assert row["wide_loads"] >= row["expected_loads"], row
            if row["kernel"] == "mix_rows":
                assert row["expected_loads"] > 0, row
                assert row["wide_stores"] >= row["expected_stores"], row


def test_a_sum_is_fused_multiply_adds(main_kernels):
    # 8 models and 8 elements a thread, in the whole blocks and in the last one
    assert main_kernels["mix 8 bf16", "sm_90"]["fma"] == 2 * 8 * 8


def test_every_kernel_has_a_body(rows):
    """Where tensor memory does not suffice, Triton 3.6 compiles a trap: a few registers, nothing
    else."""
    assert [row for row in rows if row["registers"] < 8] == []


MATRIX = {
    "dot 64 bf16, base": {"sm_90": "m8n8k4", "gfx942": "mfma_f64_16x16x4_f64"},
    "fast dot 8 bf16": {"sm_80": "m16n8k16", "gfx942": "mfma_f32_16x16x16_bf16"},
    "fast dot 256 bf16": {"sm_90": "m64n128k16", "sm_100": "tcgen05.mma"},
    "fast dot 256 float32, base": {"sm_90": "m64n128k8", "sm_100": "tcgen05.mma"},
}


IN_3_6 = {("dot 64 bf16, base", "sm_90"): "m16n8k16", ("dot 64 bf16, base", "gfx942"): ""}
"""Where Triton 3.6 takes others: Hopper's larger ones, and on AMD none (``wkernels.gpu.chips``)."""


@pytest.mark.parametrize("case", MATRIX)
def test_products_use_the_matrix_units(main_kernels, version, case):
    for target, instruction in MATRIX[case].items():
        if version == "3.6":
            instruction = IN_3_6.get((case, target), instruction)
        assert main_kernels[case, target]["matrix"] == instruction


def test_weighted_sums_fill_the_places_for_threads(main_kernels):
    """What the configurations are derived from: three quarters of the places, where all inputs of
    up to 8 models are kept."""
    for case in ("mix 8 bf16", "mix 8 bf16, table", "mix 8 float32"):
        for target in ("sm_80", "sm_90", "sm_100"):
            assert main_kernels[case, target]["occupancy"] >= 0.75, (case, target)
