"""Which device a pass runs on, where that is left to us: by what it would take on each.

The time of a pass is that of its slowest stage, since all run at once: memory or the link to the
device for what is read and written, arithmetic for products. Reading the files costs both the same.
The rates are planning figures, not measurements: they only have to tell a few times faster from a
few times slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from wspace.devices import processors
from wspace.storage.headers import BITS
from wspace.zoo import Zoo

CPU_BYTES = 12e9
"""A second, for each processor: from page cache through a buffer into the kernel."""
CPU_BYTES_AT_MOST = 300e9
CPU_FLOPS = 30e9
"""Multiplications and additions a second, in float64, for each processor."""
CPU_CHOICES = 1e9
"""Elements a second that are looked at once to be counted, masked or joined, for each processor."""
STARTING_SECONDS = 4.0
"""Of a GPU: importing torch, making a context, compiling kernels that are not in the cache."""
LINK_BYTES = {"hopper": 50e9, "blackwell": 50e9}
"""A second, each way; of other families 22e9."""
GPU_FLOPS = {"ampere": 10e12, "hopper": 30e12, "blackwell": 25e12, "cdna": 40e12}
"""In float64; of other families 0.8e12."""


class Job(NamedTuple):
    """What a pass reads, writes and computes."""

    read: float  # bytes
    written: float = 0
    flops: float = 0
    choices: float = 0  # elements of models, each time that one is looked at to be chosen


@dataclass(frozen=True)
class Choice:
    """A device, and why; no reason where there was nothing to choose."""

    name: str
    reason: str | None = None


@dataclass(frozen=True)
class Found:
    """A GPU of this machine."""

    chip: str
    family: str


def products_job(zoo: Zoo, n_rows: int) -> Job:
    """Products of all pairs of so many rows, each of all tensors, and the base."""
    read = sum(
        tensor.numel * sum(BITS[dtype] for dtype in tensor.dtypes) / 8 for tensor in zoo.tensors
    )
    return Job(read, flops=n_rows * (n_rows + 1) * zoo.numel)


def statistics_job(zoo: Zoo) -> Job:
    """Power sums of every row."""
    return products_job(zoo, 0)._replace(flops=8 * zoo.numel * len(zoo.checkpoints))


def mixes_job(zoo: Zoo, n_rows: int, n_mixes: int) -> Job:
    """So many mixes of so many rows; what is written is about as wide as what is read."""
    row = products_job(zoo, 0).read / max(1, len(zoo.checkpoints))
    return Job(n_rows * row, n_mixes * row)


def choose(name: str, job: Job) -> Choice:
    """The device called ``name``; for ``auto`` the one that is estimated to be faster."""
    if name != "auto" or not _may_have_gpu():
        return Choice("cpu" if name == "auto" else name)
    return compare(job, processors(), _found())


def compare(job: Job, n_processors: int, gpu: Found | None) -> Choice:
    """The faster by the model above; without a GPU the CPU."""
    if gpu is None:
        return Choice("cpu")
    cpu = seconds_on_cpu(job, n_processors)
    there = seconds_on_gpu(job, gpu.family)
    name = "cpu" if cpu <= there else "cuda"
    return Choice(
        name,
        f"device {name}: estimated {cpu:.1f} s on {n_processors} processors, {there:.1f} s on "
        f"{gpu.chip}, {STARTING_SECONDS:.0f} s of them to start it; --device chooses another",
    )


def seconds_on_cpu(job: Job, n_processors: int) -> float:
    memory = min(n_processors * CPU_BYTES, CPU_BYTES_AT_MOST)
    return max(
        (job.read + job.written) / memory,
        job.flops / (n_processors * CPU_FLOPS),
        job.choices / (n_processors * CPU_CHOICES),
    )


def seconds_on_gpu(job: Job, family: str) -> float:
    link = LINK_BYTES.get(family, 22e9)
    flops = GPU_FLOPS.get(family, 0.8e12)
    # choices are made at the rate of the device's memory, many times that of the link
    return STARTING_SECONDS + max(job.read / link, job.written / link, job.flops / flops)


def _may_have_gpu() -> bool:
    """Without importing torch, which takes longer than many passes."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def _found() -> Found | None:
    import torch  # only where a GPU may be

    if not torch.cuda.is_available():
        return None
    from wkernels.gpu import chips

    return Found(torch.cuda.get_device_name(), chips.current().family)
