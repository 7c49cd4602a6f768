"""Where chunks are worked on: buffers for reading, and the kernels on a chunk's rows.

The CPU path works without torch, whose import takes longer than many merges.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from wspace.errors import DeviceError
from wspace.profiling import KERNELS, stage

if TYPE_CHECKING:
    from wkernels.cpu import Digests
    from wspace.stream import Chunk


class Device(Protocol):
    """What a pass needs of a device."""

    name: str
    chunk_bytes: int  # of input, in one chunk
    held: int  # chunks whose host buffers ``staged`` uses at a time; at most stream.SLOTS - 1
    lasting: bool  # whether a staged chunk stays as it is until its host buffer is given back

    def host_buffer(self, nbytes: int) -> np.ndarray:
        """A uint8 buffer that files are read into, and results are written from."""
        ...

    def staged(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """The chunks, on the device."""
        ...

    def weighted_sum(
        self, chunk: Chunk, weights: np.ndarray, copied: np.ndarray, *, based: bool,
        out: np.ndarray, out_starts: Sequence[int], out_names: Sequence[str],
        digests: Digests | None,
    ) -> int:  # fmt: skip
        """Mixes of the chunk's rows into host rows; returns how many results are NaN or Inf.

        ``based``: the last row of the chunk is the base. ``digests``: of blocks of the results;
        those are taken that one thread writes, or, where no cache of the host has them, none.
        """
        ...

    def products(
        self, op: str, chunk: Chunk, segments: np.ndarray, sums: np.ndarray, *, based: bool
    ) -> None:
        """Adds to ``sums [n_segments, n, n]``: ``dot`` (centred on the base), ``l2`` or ``l1``."""
        ...

    def row_moments(
        self, chunk: Chunk, segments: np.ndarray, sums: np.ndarray, *, based: bool
    ) -> None:
        """Adds to ``sums [n_segments, n_rows, moments.N]``; the base is a row like the others."""
        ...


def device_named(name: str) -> Device:
    """``cpu``, ``cuda``, ``cuda:N``, or several of these GPUs with commas between.

    ``auto`` is the CPU, where nothing was chosen by ``wspace.placement``. Raises DeviceError for a
    device that is not there.
    """
    if name in ("auto", "cpu"):
        return Cpu()
    names = name.split(",")
    if any(re.fullmatch(r"cuda(:\d+)?", part) is None for part in names):
        raise DeviceError(
            f"device {name!r}: expected auto, cpu, cuda, cuda:N, or cuda:N,cuda:M for several"
        )
    if len(set(names)) < len(names):
        raise DeviceError(f"device {name!r}: names a GPU twice")
    from wspace.cuda import Cuda, Gpu  # torch: only where a GPU is asked for

    gpus = [Gpu(part, Cuda(part)) for part in names]
    if len(gpus) == 1:
        return gpus[0]
    from wspace.several import Several

    return Several(gpus)


def allocate(nbytes: int) -> np.ndarray:
    """Page-aligned zeros, in large pages where the system gives them."""
    # not shared: most systems give shared memory no large pages
    memory = mmap.mmap(-1, max(nbytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, dtype=np.uint8)[:nbytes]


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Cpu:
    """The numba kernels on host buffers."""

    name = "cpu"
    # a chunk costs some 0.5 ms besides its bytes, which a copy of 3 MiB takes
    chunk_bytes = 32 << 20
    held = 1
    lasting = True

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads or processors()

    def host_buffer(self, nbytes: int) -> np.ndarray:
        return allocate(nbytes)

    def staged(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        with stage(KERNELS):  # now, while the first chunks are being read
            import wkernels.cpu  # noqa: F401
        return chunks

    def weighted_sum(
        self, chunk: Chunk, weights: np.ndarray, copied: np.ndarray, *, based: bool,
        out: np.ndarray, out_starts: Sequence[int], out_names: Sequence[str],
        digests: Digests | None,
    ) -> int:  # fmt: skip
        from wkernels import cpu

        rows, base = self._rows(chunk, based)
        first = out.ctypes.data
        outs = cpu.Pointers.of([first + start for start in out_starts], out_names)
        n = chunk.plan.n
        return cpu.weighted_sum(
            rows, weights, copied, base, outs, n, threads=self.threads,
            digests=digests or cpu.NO_DIGESTS,
        )  # fmt: skip

    def products(
        self, op: str, chunk: Chunk, segments: np.ndarray, sums: np.ndarray, *, based: bool
    ) -> None:
        from wkernels import cpu

        rows, base = self._rows(chunk, based)
        cpu.products(op, rows, None, base, segments, sums, threads=self.threads)

    def row_moments(
        self, chunk: Chunk, segments: np.ndarray, sums: np.ndarray, *, based: bool
    ) -> None:
        from wkernels import cpu

        rows, _ = self._rows(chunk, False)
        _, base = self._rows(chunk, based)
        cpu.row_moments(rows, base, segments, sums, threads=self.threads)

    @staticmethod
    def _rows(chunk: Chunk, based: bool) -> tuple[Any, Any]:
        from wkernels.cpu import Pointers

        address = chunk.buffer.ctypes.data
        rows = Pointers.of([address + start for start in chunk.starts], chunk.names)
        n = len(rows) - based
        return (
            Pointers(rows.addresses[:n], rows.codes[:n]),
            Pointers(rows.addresses[n:], rows.codes[n:]),
        )
