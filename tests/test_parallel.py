"""Work is cut so that every element is done once, near where it had better be cut."""

import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from wkernels.cpu import Digests, Pointers, weighted_sum
from wkernels.cpu.parallel import over_ranges
from wkernels.mixes import MIXED
from wspace.storage.digests import digest_function

N = 300_000


@given(st.integers(1, N), st.lists(st.integers(0, N - 1), unique=True).map(sorted))
def test_ranges_cover_everything_once(n, near):
    near = [start for start in near if start < n]
    found = over_ranges(lambda a, b: (a, b), n, step=64, threads=2, least=1000, near=near)
    assert [a for a, _ in found] == [0, *(b for _, b in found[:-1])]
    assert found[-1][1] == n
    assert all(a < b for a, b in found)
    even = over_ranges(lambda a, b: (a, b), n, step=64, threads=2, least=1000)
    last = [max((k for k in near if k <= a), default=a) for a, _ in even]
    assert {a for a, _ in found} == {0, *last}


def test_threads_share_the_ranges_and_results_keep_their_order():
    meeting = threading.Barrier(3, timeout=60)

    def work(start, stop):
        if start < 3000:  # the first three ranges are with three threads at once
            meeting.wait()
        return start, threading.get_ident()

    found = over_ranges(work, 12_000, step=1000, threads=3, least=1000)
    assert [start for start, _ in found] == list(range(0, 12_000, 1000))
    assert len({thread for _, thread in found[:3]}) == 3
    assert threading.get_ident() in {thread for _, thread in found[:3]}


@pytest.mark.parametrize("fails", ["the caller", "its helper"])
def test_after_an_error_no_range_is_begun_and_none_is_running(fails):
    began, ended = [], []
    caller, both = threading.get_ident(), threading.Barrier(2, timeout=60)

    def work(start, stop):
        began.append(start)
        if len(began) <= 2:
            both.wait()  # one range with each thread
        if (threading.get_ident() == caller) == (fails == "the caller"):
            raise MemoryError(f"at {start}")
        time.sleep(0.1)
        ended.append(start)

    with pytest.raises(MemoryError, match="at "):
        over_ranges(work, 8000, step=1000, threads=2, least=1000)
    assert len(began) < 8
    assert len(ended) == len(began) - 1


def test_work_inside_of_work_does_not_wait_for_itself():
    def inner(start, stop):
        return stop - start

    def outer(start, stop):
        return sum(over_ranges(inner, 1000, step=1, threads=2, least=1))

    assert over_ranges(outer, 8, step=1, threads=2, least=1) == [1000] * 8


@pytest.mark.parametrize("dtype", ["float32", "float64"])  # written by different kernels
@pytest.mark.parametrize("bad", [None, 100, N - 1])  # from there on, another kernel goes on
def test_checksums_taken_by_threads_are_those_of_what_they_wrote(dtype, bad):
    rows = np.random.default_rng(0).standard_normal((2, N)).astype(dtype)
    if bad is not None:
        rows[1, bad] = np.nan
    out = np.full(N, np.nan, dtype)
    borders = np.array([0, 50_000, 70_001, 140_003, 250_000, 290_001, N])
    starts, ends = borders[:-1], borders[1:]
    width = out.itemsize
    addresses, lengths = out.ctypes.data + starts * width, (ends - starts) * width
    digests = Digests.of(digest_function(), starts, ends, addresses, lengths)
    weighted_sum(
        Pointers.of([row.ctypes.data for row in rows], [dtype, dtype]),
        np.ones((1, 2)),
        np.array([MIXED]),
        Pointers.of([], []),
        Pointers.of([out.ctypes.data], [dtype]),
        N,
        threads=2,
        digests=digests,
    )
    assert np.array_equal(out, rows[0] + rows[1], equal_nan=True)
    assert digests.taken.all()
    for start, end, found in zip(starts, ends, digests.as_bytes(), strict=True):
        assert found.tobytes() == xxhash.xxh3_128_digest(out[start:end])


def test_blocks_that_lie_across_each_other_are_summed_when_they_are_there():
    """Two outputs of which one is cut elsewhere: no thread begins inside of a block."""
    rows = np.random.default_rng(0).standard_normal((2, N), dtype=np.float32)
    outs = np.full((2, N), np.nan, np.float32)
    cut = ([0, 100_000, 150_000, 200_000, N], [0, 90_000, 150_000, 290_000, N])
    blocks = sorted(
        (stop, start, out) for out, at in enumerate(cut) for start, stop in pairwise(at)
    )
    stops, starts, which = np.array(blocks).T
    addresses = outs.ctypes.data + 4 * (N * which + starts)
    digests = Digests.of(digest_function(), starts, stops, addresses, 4 * (stops - starts))
    assert digests.borders == [0, 150_000]
    weighted_sum(
        Pointers.of([row.ctypes.data for row in rows], ["float32"] * 2),
        np.array([[1.0, 1.0], [1.0, -1.0]]),
        np.array([MIXED, MIXED]),
        Pointers.of([], []),
        Pointers.of([out.ctypes.data for out in outs], ["float32"] * 2),
        N,
        threads=2,
        digests=digests,
    )
    assert digests.taken.all()
    for (stop, start, out), found in zip(blocks, digests.as_bytes(), strict=True):
        assert found.tobytes() == xxhash.xxh3_128_digest(outs[out, start:stop])
