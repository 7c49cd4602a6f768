"""Machine code that is kept on disk, and runs in processes that never see numba."""

import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from wkernels.cpu import compiling, machine_code, tiles
from wkernels.cpu.jit import START, STOP, Kernel


def fill(values, number, add, scale, base):
    scratch = np.zeros((3, 1000), values.dtype)
    scratch[1] += number
    if add:
        scratch[1] *= scale
    if base is not None:
        scratch[1] += base[0]
    for k in range(values.size):
        values[k] = scratch[1, k]
    return values.size


class Pair(NamedTuple):
    values: np.ndarray
    number: int


class Nested(NamedTuple):
    first: Pair
    second: np.ndarray


def add_pair(nested, out):
    out[0] = nested.first.values[1] + nested.first.number + nested.second[0, 1]


def nothing(values):
    values[0] = 7


def huge(n):
    return np.empty(n, np.float64).size


def both(n):
    return n, n


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(machine_code, "_folder", lambda: tmp_path / "code")
    return tmp_path / "code"


@pytest.fixture
def compilations(monkeypatch):
    done, compiled = [], compiling.compiled

    def count(function, kinds, *, bare):
        done.append(kinds)
        return compiled(function, kinds, bare=bare)

    monkeypatch.setattr(compiling, "compiled", count)
    return done


def test_arguments_arrive_and_results_come_back():
    kernel = Kernel(fill)
    values = np.full(5, np.nan)
    assert kernel(values, 2, True, 1.5, np.array([0.25])) == 5
    assert (values == 3.25).all()
    values = np.full((5,), np.nan, np.float32)
    assert kernel(values, np.int64(-2), np.False_, 1.5, None) == 5
    assert (values == -2).all()
    for bare in (False, True):
        values[0] = np.nan
        assert Kernel(nothing, bare=bare)(values) is None
        assert values[0] == 7


def test_named_tuples_arrive():
    out = np.full(1, np.nan)
    nested = Nested(Pair(np.array([1.0, 2.0]), 30), np.array([[0, 400]], np.int32))
    Kernel(add_pair, bare=True)(nested, out)
    assert out[0] == 432


def count_up(pair, start, values, stop, step):
    for k in range(start, stop):
        values[k] = pair.number + step * k
    return stop - start


def test_threads_take_ranges_of_one_call():
    values = np.zeros(1000, np.int64)
    call = Kernel(count_up).over(Pair(np.zeros(2), 5), START, values, STOP, 3)
    with ThreadPoolExecutor(4) as pool:
        starts = range(0, 1000, 10)
        assert list(pool.map(call, starts, [start + 10 for start in starts])) == [10] * 100
    assert np.array_equal(values, 5 + 3 * np.arange(1000))


def test_a_range_keeps_what_it_was_made_of():
    call = Kernel(count_up).over(Pair(np.zeros(2), 5), START, np.zeros(1 << 20, np.int64), STOP, 3)
    gc.collect()
    assert call(0, 1 << 20) == 1 << 20  # else the system would end this process


def test_unsigned_words_stay_unsigned():
    def shifted(value, out):
        out[0] = value >> np.uint64(1)

    out = np.zeros(1, np.uint64)
    Kernel(shifted)(np.uint64(2**64 - 2), out)
    assert out[0] == 2**63 - 1


def test_what_kernels_do_not_take_or_return():
    with pytest.raises(TypeError, match="fill: an array is not contiguous"):
        Kernel(fill)(np.zeros((4, 4))[:, 1], 1, False, 1.0, None)
    with pytest.raises(TypeError, match="interpreted as an integer"):
        Kernel(huge)(np.float32(3))
    with pytest.raises(TypeError, match=r"both returns .*; expected int64 or None"):
        Kernel(both)(3)


def test_no_memory_is_said():
    assert Kernel(huge)(1000) == 1000
    with pytest.raises(MemoryError, match="scratch"):
        Kernel(huge)(2**50)


def test_another_kernel_of_the_name_finds_the_code(empty_folder, compilations):
    first, again = np.zeros(2), np.zeros(2)
    Kernel(fill)(first, 2, True, 1.5, None)
    assert [path.name.partition("-")[0] for path in empty_folder.iterdir()] == [
        "test_machine_code.fill"
    ]
    Kernel(fill)(again, 2, True, 1.5, None)
    assert len(compilations) == 1
    assert (first == again).all()


@pytest.mark.parametrize("harm", ["cut", "bit", "empty"])
def test_damaged_code_is_made_again(empty_folder, compilations, harm):
    Kernel(nothing)(np.zeros(1))
    (path,) = empty_folder.iterdir()
    whole = path.read_bytes()
    flipped = whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:]
    path.write_bytes({"cut": whole[:-1], "bit": flipped, "empty": b""}[harm])
    values = np.zeros(1)
    Kernel(nothing)(values)
    assert values[0] == 7
    assert len(compilations) == 2
    assert path.stat().st_size >= len(whole) - 100
    assert machine_code.load("test_machine_code.nothing", (("<f8", 1),))


def test_where_nothing_can_be_kept_kernels_run(empty_folder):
    empty_folder.write_text("a file where the folder would be")
    values = np.zeros(1)
    Kernel(nothing)(values)
    assert values[0] == 7


def test_threads_that_need_a_kernel_at_once_wait_for_one_compilation(compilations):
    kernel = Kernel(fill)
    values = np.full((8, 1000), np.nan)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: kernel(values[k], k, False, 1.0, None), range(8)))
    assert (values == np.arange(8)[:, None]).all()
    assert len(compilations) == 1


PROGRAM = """
import sys
import numpy as np
from wkernels.cpu.jit import kernel

@kernel
def work(values):
    wide = np.zeros((4, values.size // 4 + 2), values.dtype)
    flat = np.sort(values.copy())
    wide[:, 2:] = flat[::2].copy().reshape(4, values.size // 8).repeat(2).reshape(4, -1)
    values[:] = wide[:, 2:].sum(1)[1] + np.exp(values) - np.exp(values)
    return int(values[0])

values = np.arange(16.0)[::-1].copy()
print(work(values), "numba" in sys.modules)
"""


def test_a_process_that_finds_its_kernels_never_imports_numba(tmp_path):
    """Whatever of numba's runtime they call."""
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent.parent),
    }  # fmt: skip
    found = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, tmp_path / "program.py"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.split())
    assert found[0][0] == found[1][0]
    assert [imported for _, imported in found] == ["True", "False"]


def test_code_depends_on_the_sources_the_compiler_and_the_processor(monkeypatch, tmp_path):
    folder = machine_code.folder_name
    usual = folder(tmp_path)
    (tmp_path / "a.py").write_text("x = 1\n")
    changed = folder(tmp_path)
    monkeypatch.setattr(machine_code.binding, "get_host_cpu_name", lambda: "another")
    other = folder(tmp_path)
    monkeypatch.setenv("NUMBA_OPT", "1")
    last = folder(tmp_path)
    assert len({usual, changed, other, last}) == 4
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert folder(tmp_path) == last


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("n_rows", [1, 2, 3, 4])
@pytest.mark.parametrize("upper", [True, False])
def test_a_tiles_portions_hold_every_lane_of_every_pair_once(monkeypatch, wide, n_rows, upper):
    monkeypatch.setattr(tiles.binding, "get_host_cpu_features", lambda: {"avx512f": wide})
    pairs = [(i, j) for i in range(n_rows) for j in range(n_rows) if i <= j or not upper]
    found = [
        (pair, lane)
        for group, first, n in tiles._portions(pairs)
        for pair in group
        for lane in range(first, first + n)
    ]
    assert sorted(found) == [(pair, lane) for pair in pairs for lane in range(tiles.LANES)]
