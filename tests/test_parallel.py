"""Work is cut so that every element is done once, near where it had better be cut."""

import sys
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from wkernels.cpu import Digests, Pointers, Run, weighted_sum
from wkernels.cpu.parallel import over_ranges
from wkernels.mixes import MIXED
from wspace.storage.digests import digest_function

sums = sys.modules["wkernels.cpu.weighted_sum"]  # the package has a function of that name

N = 300_000


@given(st.integers(1, N), st.lists(st.integers(0, N - 1), unique=True).map(sorted))
def test_ranges_cover_everything_once(n, near):
    near = np.array([start for start in near if start < n], np.int64)
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


class Table:
    """Blocks of a row, cut at ``borders`` (elements), as an output has them: in bytes of a file."""

    OFFSET = 1000  # of the row in the file

    def __init__(self, row, borders):
        at = np.array(borders) * row.itemsize + self.OFFSET
        self.row, self.borders = row, np.array(borders)
        self.starts, self.stops = at[:-1].copy(), at[1:].copy()
        self.found = np.zeros((len(borders) - 1, 16), np.uint8)
        self.taken = np.zeros(len(borders) - 1, bool)

    @property
    def run(self):
        address = self.row.ctypes.data
        tables = [t.ctypes.data for t in (self.starts, self.stops, self.found, self.taken)]
        return Run(address, address - self.OFFSET, len(self.starts), *tables)

    def check(self, taken):
        """Those that should be are taken, and right; the others are as they were."""
        assert self.taken.tolist() == list(taken)
        for (start, stop), found, own in zip(
            pairwise(self.borders), self.found, self.taken, strict=True
        ):
            digest = xxhash.xxh3_128_digest(self.row[start:stop])
            assert found.tobytes() == (digest if own else bytes(16))


def summed(rows, weights, outs, tables, threads=2):
    """Sums of the rows, with checksums."""
    names = [str(rows.dtype)] * len(rows)
    borders = tables[0].borders[:-1]
    runs, n = [table.run for table in tables], outs[0].size
    weighted_sum(
        Pointers.of([row.ctypes.data for row in rows], names),
        np.array(weights),
        np.full(len(outs), MIXED),
        Pointers.of([], []),
        Pointers.of([out.ctypes.data for out in outs], names[:1] * len(outs)),
        n,
        threads=threads,
        digests=Digests.of(digest_function(), rows.itemsize, runs, borders),
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])  # written by different kernels
@pytest.mark.parametrize("bad", [None, 100, N - 1])  # from there on, another kernel goes on
def test_checksums_taken_by_threads_are_those_of_what_they_wrote(dtype, bad):
    rows = np.random.default_rng(0).standard_normal((2, N)).astype(dtype)
    if bad is not None:
        rows[1, bad] = np.nan
    out = np.full(N, np.nan, dtype)
    table = Table(out, [0, 50_000, 70_001, 140_003, 250_000, 290_001, N])
    summed(rows, [[1.0, 1.0]], [out], [table])
    assert np.array_equal(out, rows[0] + rows[1], equal_nan=True)
    table.check([True] * 6)


def test_a_block_is_summed_as_soon_as_it_is_there(monkeypatch):
    """Each ends with what is computed at a time: none is left for the end of a thread's share."""
    monkeypatch.setattr(sums, "digest_written", None)
    n = N // sums.BLOCK * sums.BLOCK
    rows = np.random.default_rng(0).standard_normal((2, n), dtype=np.float32)
    table = Table(np.full(n, np.nan, np.float32), range(0, n + 1, 2 * sums.BLOCK))
    summed(rows, [[1.0, 1.0]], [table.row], [table])
    table.check([True] * len(table.starts))


def test_a_checksum_that_is_known_is_left_as_it_is():
    """That of a block which an earlier run has written is of what is on the disk."""
    rows = np.random.default_rng(0).standard_normal((2, N), dtype=np.float32)
    out = np.full(N, np.nan, np.float32)
    table = Table(out, [0, 50_000, 70_001, 140_003, N])
    table.taken[1], table.found[1] = True, 7
    summed(rows, [[1.0, 1.0]], [out], [table])
    assert (table.found[1] == 7).all()
    table.taken[1], table.found[1] = False, 0
    table.check([True, False, True, True])


def test_blocks_that_lie_across_each_other_are_summed_where_one_thread_writes_them():
    """Two outputs of which one is cut elsewhere: threads begin where a block of the first does."""
    rows = np.random.default_rng(0).standard_normal((2, N), dtype=np.float32)
    outs = np.full((2, N), np.nan, np.float32)
    cuts = ([0, 100_000, 150_000, 200_000, N], [0, 90_000, 150_000, 180_000, 290_000, N])
    tables = [Table(out, cut) for out, cut in zip(outs, cuts, strict=True)]
    summed(rows, [[1.0, 1.0], [1.0, -1.0]], outs, tables)
    tables[0].check([True] * 4)
    tables[1].check([True, True, True, False, True])
    summed(rows, [[1.0, 1.0], [1.0, -1.0]], outs, tables, threads=1)
    tables[1].check([True] * 5)
