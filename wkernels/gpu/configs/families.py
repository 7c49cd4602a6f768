"""Families of chips, and what a launch configuration follows from: data sheets, not measurements.

The figures are planning figures: what each chip's maker states, and latencies of HBM or GDDR as
published for the generation, rounded. They only choose defaults; ``python -m bench.tune`` replaces
those by what is measured.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """One chip of a family, the one that its defaults are made for."""

    chip: str
    lanes: int  # threads in a warp
    multiprocessors: int
    bandwidth: float  # bytes a second of device memory
    latency: float  # seconds of a load that misses all caches
    threads: int  # resident in a multiprocessor, at most
    warps: int  # likewise
    programs: int  # likewise
    registers: int  # 32-bit, of a multiprocessor
    allocated: int  # registers of a thread are given in multiples of this
    shared: int  # bytes of a multiprocessor that programs can have
    shared_operands: bool  # matrix units read tiles of 64 rows and more from shared memory

    @property
    def bytes_in_flight(self) -> float:
        """What a multiprocessor must have asked for at any time (Little's law)."""
        return self.bandwidth * self.latency / self.multiprocessors


KIB = 1024
_NVIDIA = {"lanes": 32, "programs": 32, "registers": 65536, "allocated": 8}
_SERVER = _NVIDIA | {"threads": 2048, "warps": 64}

FAMILIES = {
    "ampere": Family(
        "A100 80GB", multiprocessors=108, bandwidth=2.0e12, latency=0.6e-6, shared=164 * KIB,
        shared_operands=False, **_SERVER,
    ),
    "hopper": Family(
        "H200", multiprocessors=132, bandwidth=4.8e12, latency=0.7e-6, shared=228 * KIB,
        shared_operands=True, **_SERVER,
    ),
    "blackwell": Family(
        "B200", multiprocessors=148, bandwidth=8.0e12, latency=0.8e-6, shared=228 * KIB,
        shared_operands=True, **_SERVER,
    ),
    "consumer": Family(
        "RTX 4090", multiprocessors=128, bandwidth=1.0e12, latency=0.6e-6, shared=100 * KIB,
        shared_operands=False, **_NVIDIA | {"threads": 1536, "warps": 48, "programs": 24},
    ),
    "cdna": Family(
        "MI300X", multiprocessors=304, bandwidth=5.3e12, latency=0.8e-6, shared=64 * KIB,
        shared_operands=False, lanes=64, threads=2048, warps=32, programs=16, registers=131072,
        allocated=8,
    ),
}  # fmt: skip
"""By name; the figures of H100 are those of H200 with less bandwidth."""


def family_of(backend: str, arch: int | str) -> str:
    """The family of Triton's target; one that is not known counts as a consumer's chip."""
    if backend == "hip":
        return "cdna" if str(arch).startswith(("gfx90a", "gfx94", "gfx95")) else "consumer"
    known = {70: "ampere", 80: "ampere", 90: "hopper", 100: "blackwell", 103: "blackwell"}
    return known.get(int(arch), "consumer")


def resident_threads(family: Family, *, registers: int, num_warps: int, shared: int) -> int:
    """Threads of a kernel that a multiprocessor holds at once: what registers, shared memory and
    its places leave."""
    each = -(-max(registers, 1) // family.allocated) * family.allocated
    threads = num_warps * family.lanes
    programs = min(
        family.registers // (each * threads),
        family.warps // num_warps,
        family.programs,
        family.threads // threads,
        family.shared // shared if shared else family.programs,
    )
    return programs * threads
