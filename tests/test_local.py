"""Files read past the page cache: the same bytes, and the cache is as it was before."""

import errno
import fcntl
import os
import random
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import wspace as ws
from tests.zoos import zoo_on_disk
from wspace.errors import CheckpointError
from wspace.profiling import DIRECT, READ, profiled
from wspace.storage import local, residence
from wspace.storage.local import PastCache, exceeds_cache, read_exactly
from wspace.storage.residence import PAGE, drop, in_memory, memory_available, pages_cached

LENGTH = 300 * PAGE + 77


@contextmanager
def opened(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def cached(*paths):
    """Pages of these files in the cache."""
    total = 0
    for path in paths:
        with opened(path) as descriptor:
            total += pages_cached(descriptor, 0, path.stat().st_size)
    return total


def chill(*paths):
    """Have files leave the cache."""
    for path in paths:
        with opened(path) as descriptor:
            os.fsync(descriptor)
            drop(descriptor)
    assert cached(*paths) == 0


def is_direct(descriptor):
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def refuse_direct(monkeypatch):
    control = fcntl.fcntl

    def refuse(descriptor, command, *flags):
        if command == fcntl.F_SETFL and flags[0] & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return control(descriptor, command, *flags)

    monkeypatch.setattr(fcntl, "fcntl", refuse)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, LENGTH, dtype=np.uint8).tobytes())
    return path


@pytest.fixture(params=["direct", "refused when set", "refused when read", "short", "not told"])
def way(request, monkeypatch):
    """File systems that take direct reads, or refuse them, or stop short; and an older Linux."""
    preadv = os.preadv

    def read(descriptor, buffers, position):
        if is_direct(descriptor):
            if request.param == "refused when read":
                raise OSError(errno.EINVAL, "Invalid argument")
            return preadv(descriptor, [buffers[0][: len(buffers[0]) // 3]], position)
        return preadv(descriptor, buffers, position)

    if request.param in ("refused when read", "short"):
        monkeypatch.setattr(os, "preadv", read)
    if request.param == "refused when set":
        refuse_direct(monkeypatch)
    if request.param == "not told":
        monkeypatch.setattr(local, "pages_cached", lambda *arguments: None)
    return request.param


@pytest.mark.parametrize("warm", ["cold", "warm", "in part"])
def test_the_bytes_are_the_files(file, way, warm):
    content = np.fromfile(file, np.uint8)
    chill(file)
    with opened(file) as descriptor:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        if warm != "cold":
            for page in range(0, 301, 1 if warm == "warm" else 7):
                os.pread(descriptor, 1, page * PAGE)
    before = cached(file)
    assert before == {"cold": 0, "warm": 301, "in part": 43}[warm]
    draw = random.Random(0)
    edges = sorted({0, LENGTH, 1, PAGE, 5 * PAGE, *(draw.randrange(LENGTH) for _ in range(20))})
    runs = list(pairwise(edges))
    draw.shuffle(runs)
    out = np.zeros(LENGTH, np.uint8)
    past = PastCache(4, largest=10 * PAGE)

    def read(run):
        with opened(file) as descriptor:
            past.read_exactly(descriptor, out[run[0] : run[1]], file, run[0])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, runs))
    assert np.array_equal(out, content)
    if warm == "warm" or (way == "direct" and warm == "in part"):
        assert cached(file) == before
    elif way == "direct":
        assert cached(file) == 0
    elif warm == "cold" and way != "not told":
        assert cached(file) < 100, "what was read through the cache was dropped from it"


def test_a_file_that_ends_early_is_refused(file, way):
    chill(file)
    with opened(file) as descriptor:
        for read in (PastCache(1).read_exactly, read_exactly):
            with pytest.raises(
                CheckpointError, match=rf"x: ends at byte {LENGTH}, expected 3 more"
            ):
                read(descriptor, np.zeros(PAGE, np.uint8), file, LENGTH - PAGE + 3)


def test_a_disk_error_is_one(file, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    chill(file)
    monkeypatch.setattr(os, "preadv", fail)
    with opened(file) as descriptor, pytest.raises(OSError, match="Input/output"):
        PastCache(1).read_exactly(descriptor, np.zeros(PAGE, np.uint8), file, 0)


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A zoo for which there is no room in the cache."""
    zoo_on_disk(tmp_path, n=2, shards=2)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    monkeypatch.setattr(local, "SHARE", 0)
    return zoo


def shards_of(folder):
    return sorted(folder.glob("*/*.safetensors"))


def outputs(folder):
    return [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]


@pytest.mark.parametrize("refused", [False, True], ids=["direct", "refused"])
def test_a_cold_merge_does_not_grow_the_cache(zoo, tmp_path, monkeypatch, refused):
    shards = shards_of(tmp_path)
    (warm,) = ws.merge(zoo, [0.3, 0.7], tmp_path / "warm", memory="3MiB")
    chill(*shards)
    if refused:
        refuse_direct(monkeypatch)
    with profiled() as profile:
        (cold,) = ws.merge(zoo, [0.3, 0.7], tmp_path / "cold", memory="3MiB")
    assert outputs(cold) == outputs(warm)
    assert profile.nbytes[DIRECT] == profile.nbytes[READ] > 0
    # but for headers, which are read again to see whether they are the same
    assert cached(*shards) <= (30 if refused else 0)


def test_a_warm_input_stays_warm(zoo, tmp_path):
    shards = shards_of(tmp_path)
    chill(*shards)
    for path in shards[::2]:
        path.read_bytes()
    before = [cached(path) for path in shards]
    with profiled() as profile:
        ws.merge(zoo, [0.3, 0.7], tmp_path / "out", memory="3MiB")
    assert [cached(path) for path in shards] == before
    assert 0 < profile.nbytes[DIRECT] < profile.nbytes[READ]


def test_what_fits_into_the_cache_is_left_there(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "SHARE", 0.5)
    shards = shards_of(tmp_path)
    chill(*shards)
    with profiled() as profile:
        ws.merge(zoo, [0.3, 0.7], tmp_path / "out", memory="3MiB")
    assert profile.nbytes[DIRECT] == 0
    assert cached(*shards) * PAGE >= profile.nbytes[READ]


def test_room_is_what_the_machine_and_its_groups_leave(tmp_path, monkeypatch):
    def system(**files):
        shutil.rmtree(tmp_path / "system", ignore_errors=True)
        for name, text in files.items():
            path = tmp_path / "system" / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "system"

    info = {"proc__meminfo": "MemTotal: 99 kB\nMemAvailable:      64 kB\n"}
    assert memory_available(system()) is None
    assert memory_available(system(**info)) == 64 << 10
    second = info | {"proc__self__cgroup": "0::/a/b\n"}
    files = {"sys__fs__cgroup__a__memory.max": "5000\n", "sys__fs__cgroup__a__b__memory.max": "max"}
    assert memory_available(system(**second, **files)) == 5000
    assert (
        memory_available(system(**second, **{"sys__fs__cgroup__memory.max": "70000"})) == 64 << 10
    )
    first = info | {"proc__self__cgroup": "9:cpu,cpuacct:/\n8:memory:/a\n0::/\n"}
    files = {"sys__fs__cgroup__memory__memory.limit_in_bytes": "7000"}
    assert memory_available(system(**first, **files)) == 7000
    monkeypatch.setattr(local, "memory_available", lambda: 1000)
    assert exceeds_cache(501)
    assert not exceeds_cache(500)
    monkeypatch.setattr(local, "memory_available", lambda: None)
    assert not exceeds_cache(1 << 60)


def test_where_linux_does_not_tell(file, monkeypatch):
    monkeypatch.setattr(residence, "_CACHESTAT", 100_000)
    with opened(file) as descriptor:
        assert pages_cached(descriptor, 0, LENGTH) is None


def test_files_of_memory_are_known(tmp_path):
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    kinds = {line[2]: line[line.index("-") + 1] for line in mounts}  # by device
    for folder in (tmp_path, Path("/dev/shm")):
        with tempfile.TemporaryFile(dir=folder) as file:
            device = os.fstat(file.fileno()).st_dev
            kind = kinds.get(f"{os.major(device)}:{os.minor(device)}")
            assert in_memory(file.fileno()) == (kind == "tmpfs")
    assert not in_memory(-1)
