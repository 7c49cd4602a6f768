"""Files written in place: any range, in any order, past the page cache where that is possible."""

import errno
import fcntl
import itertools
import os
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from wspace.devices import allocate
from wspace.storage import files
from wspace.storage.files import COPY, SECTOR, OutputFile
from wspace.storage.residence import PAGE, pages_cached

LENGTH = 3 * COPY + 5 * PAGE + 77


def bytes_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, n, dtype=np.uint8)


def is_direct(descriptor):
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.fixture(params=["direct", "pages", "refused", "none"])
def way(request, monkeypatch):
    """A file system with direct writes, one that takes them from pages of memory only, one that
    refuses some, and one without."""
    if request.param == "none":
        monkeypatch.delattr(os, "O_DIRECT")
    pwrite = os.pwrite
    if request.param == "pages":

        def from_pages(descriptor, data, position):
            if is_direct(descriptor) and np.frombuffer(data, np.uint8).ctypes.data % PAGE:
                raise OSError(errno.EINVAL, "alignment")
            return pwrite(descriptor, data, position)

        monkeypatch.setattr(os, "pwrite", from_pages)
    if request.param == "refused":

        def refuse(descriptor, data, position):
            if is_direct(descriptor) and position % (8 * PAGE):
                raise OSError(errno.EINVAL, "alignment")
            return pwrite(descriptor, data, position)

        monkeypatch.setattr(os, "pwrite", refuse)
    return request.param


@pytest.mark.parametrize("shift", [0, 2, SECTOR, PAGE - 1], ids="memory+{}".format)
def test_ranges_in_any_order_make_the_file(tmp_path, way, shift):
    content = allocate(LENGTH + shift)[shift:]
    content[:] = bytes_of(LENGTH)
    edges = [
        0,
        1,
        PAGE - 1,
        PAGE,
        PAGE + 1,
        3 * PAGE,
        9 * PAGE + 5,
        9 * PAGE + 9,
        2 * COPY + 3,
        LENGTH,
    ]
    ranges = list(itertools.pairwise(edges))
    random.Random(shift).shuffle(ranges)
    out = OutputFile(tmp_path / "x", LENGTH)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda r: out.write(content[r[0] : r[1]], r[0]), ranges))
    out.sync()
    out.close()
    assert (tmp_path / "x").read_bytes() == content.tobytes()


@pytest.mark.parametrize("shift", [0, 100])
def test_whole_pages_go_past_the_cache_and_only_they(tmp_path, monkeypatch, shift):
    written, pwrite = {True: set(), False: set()}, os.pwrite

    def record(descriptor, data, position):
        written[is_direct(descriptor)] |= set(range(position, position + len(data)))
        return pwrite(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", record)
    content = bytes_of(8 * PAGE)
    out = OutputFile(tmp_path / "x", len(content))
    out.write(content[: 5 * PAGE + shift], 0)
    out.write(content[5 * PAGE + shift :], 5 * PAGE + shift)
    out.close()
    assert (tmp_path / "x").read_bytes() == content.tobytes()
    if not written[True]:
        assert b"tmpfs" in os.popen(f"stat -f -c %T {tmp_path}").read().encode()
        return
    shared = range(5 * PAGE, 6 * PAGE) if shift else ()
    assert written[False] == set(shared)
    assert written[True] == set(range(8 * PAGE)) - set(shared)


def test_a_file_is_of_its_length_from_the_start_and_never_an_old_one(tmp_path):
    OutputFile(tmp_path / "x", LENGTH).close()
    assert (tmp_path / "x").stat().st_size == LENGTH
    with pytest.raises(FileExistsError):
        OutputFile(tmp_path / "x", 1)


def test_what_is_cached_is_flushed_as_it_grows(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_DIRECT")
    monkeypatch.setattr(files, "SYNC", 10 * PAGE)
    synced, fdatasync = [], os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda file: (synced.append(file), fdatasync(file)))
    out = OutputFile(tmp_path / "x", LENGTH)
    for k in range(25):
        out.write(bytes_of(PAGE), k * PAGE)
    out.close()
    assert len(synced) == 2
    with (tmp_path / "x").open("rb") as file:
        assert pages_cached(file.fileno(), 0, 25 * PAGE) in (5, None), "what was flushed has left"


def test_a_disk_error_is_raised(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    out = OutputFile(tmp_path / "x", LENGTH)
    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="Input/output"):
        out.write(bytes_of(LENGTH), 0)
    out.close()
