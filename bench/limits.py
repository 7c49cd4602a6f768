"""The limits of this machine, and how to measure a ratio to them: ``python -m bench.limits``.

A limit is a plain piece of work that nothing of ours can beat for long: copying memory, multiplying
large matrices, reading files, writing one. Machines are noisy and shared, so a limit measured
earlier is no limit: :func:`interleave` times limit and subject in turns, and a ratio is formed
within each turn before the median is taken.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

MiB = 1 << 20

SETTLE_SECONDS = 0.03
"""Waited before each work: the threads of the one before, if torch's, spin for some milliseconds
after it, and would take a core from the next."""


class Work(NamedTuple):
    """A piece of work to time, and its amount: bytes moved, or floating-point operations."""

    run: Callable[[], object]
    amount: float
    prepare: Callable[[], object] = lambda: None  # before each run, not timed
    unit: str = "GB/s"


class Spread(NamedTuple):
    """The middle of repeated measurements, and their range."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}..{self.high:.2f})"


def spread(values: Iterable[float]) -> Spread:
    values = list(values)
    return Spread(statistics.median(values), min(values), max(values))


def interleave(works: Mapping[str, Work], repeats: int, warmups: int = 1) -> dict[str, list[float]]:
    """Seconds of each work, in turns: every repeat runs all of them once, in the order given."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(-warmups, repeats):
        for name, work in works.items():
            elapsed = seconds_of(work)
            if repeat >= 0:
                seconds[name].append(elapsed)
    return seconds


def seconds_of(work: Work) -> float:
    work.prepare()
    time.sleep(SETTLE_SECONDS)
    start = time.perf_counter()
    work.run()
    return time.perf_counter() - start


def rate(work: Work, seconds: Iterable[float]) -> Spread:
    """How fast the work ran, in its unit."""
    return spread(work.amount / elapsed / 1e9 for elapsed in seconds)


def rate_ratio(
    seconds: Iterable[float], amount: float, limit_seconds: Iterable[float], limit_amount: float
) -> Spread:
    """The subject's rate over the limit's, formed within each repeat."""
    pairs = zip(seconds, limit_seconds, strict=True)
    return spread((amount / mine) / (limit_amount / its) for mine, its in pairs)


def copy(n_bytes: int = 512 * MiB) -> Work:
    """``copy_`` between two buffers on all threads; bytes read and written are counted."""
    source = torch.ones(n_bytes // 4, dtype=torch.float32)
    target = torch.zeros_like(source)
    return Work(lambda: target.copy_(source), 2 * n_bytes)


def read(n_bytes: int = 512 * MiB) -> Work:
    """The sum of one buffer of integers on all threads: memory read, next to no arithmetic."""
    source = torch.ones(n_bytes // 8, dtype=torch.int64)
    return Work(source.sum, n_bytes)


def gemm(dtype: torch.dtype, side: int = 2048) -> Work:
    """A square matrix product on all threads; ``2 * side**3`` floating-point operations."""
    left, right = torch.randn(2, side, side, dtype=dtype)
    result = torch.empty_like(left)
    return Work(lambda: torch.mm(left, right, out=result), 2 * side**3, unit="Gflop/s")


def read_files(paths: Iterable[Path]) -> Work:
    """Reads files from start to end into one small buffer, as ``cat`` does; bytes read."""
    paths = list(paths)
    buffer = bytearray(MiB)

    def run() -> None:
        for path in paths:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    return Work(run, sum(path.stat().st_size for path in paths))


def write_file(path: Path, n_bytes: int) -> Work:
    """Writes a new file and flushes it to the disk, as ``dd conv=fsync`` does; bytes written."""
    block = memoryview(os.urandom(MiB))

    def run() -> None:
        with path.open("xb", buffering=0) as file:
            for start in range(0, n_bytes, MiB):
                file.write(block[: min(MiB, n_bytes - start)])
            os.fsync(file.fileno())

    return Work(run, n_bytes, prepare=lambda: path.unlink(missing_ok=True))


def machine() -> dict[str, str | int | float]:
    """What a figure depends on: processor, memory, versions, date; and how busy the machine is."""
    about: dict[str, str | int | float] = {
        "cpu": _cpu_model(),
        "cpu_family": _cpu_family(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch_threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "load_average_1min": round(os.getloadavg()[0], 2),
    }
    for package in ("torch", "triton", "numba", "numpy", "safetensors"):
        try:
            about[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            about[package] = "not installed"
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    return about


def machine_name() -> str:
    """A folder's name for this machine, such as ``cpu-amd-epyc-25-17-2``: processor, its family and
    model, which tell apart what is called the same, and cores."""
    words = re.sub(r"\(r\)|\(tm\)|@.*|\bcpu\b|processor", " ", _cpu_model().lower())
    family = _cpu_family().lower().replace(" model ", "").split(",")[:2]
    cores = str(len(os.sched_getaffinity(0)))
    return "-".join(["cpu", *re.findall(r"[a-z0-9]+", words), *family, cores])


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def _cpu_family() -> str:
    """What tells processors apart that a host calls by the same name."""
    info = Path("/proc/cpuinfo")
    found = dict(
        re.findall(r"^(\w[\w ]*?)\s*: (.*)$", info.read_text(), re.M) if info.exists() else []
    )
    if "cpu family" not in found:
        return platform.machine()
    wide = "with" if "avx512f" in found.get("flags", "").split() else "without"
    return f"{found['cpu family']}, model {found['model']}, {wide} AVX-512"


def main() -> None:
    for key, value in machine().items():
        print(f"{key:18} {value}")
    works = {
        "copy": copy(),
        "read": read(),
        "sgemm": gemm(torch.float32),
        "dgemm": gemm(torch.float64),
    }
    seconds = interleave(works, repeats=5)
    for name, work in works.items():
        print(f"{name:18} {rate(work, seconds[name])} {work.unit}")


if __name__ == "__main__":
    main()
