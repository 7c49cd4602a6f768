"""GPUs as devices of a pass: the Triton kernels behind the pipeline. Needs torch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wkernels import mixes, ops
from wkernels.gpu import products, statistics
from wspace.devices import allocate
from wspace.errors import DeviceError
from wspace.pipeline import HELD, Accelerator, Pipeline
from wspace.stream import Chunk

if TYPE_CHECKING:
    from wkernels.cpu import Digests

PORTABLE = 1
"""cudaHostRegisterPortable: pinned for all GPUs."""


class Cuda:
    """The three kinds of copies and kernels of one GPU, by torch."""

    def __init__(self, name: str) -> None:
        if not torch.cuda.is_available():
            raise DeviceError(f"device {name!r}: torch finds no GPU; use --device cpu")
        self.device = torch.device(name)
        if (self.device.index or 0) >= torch.cuda.device_count():
            raise DeviceError(f"device {name!r}: torch finds {torch.cuda.device_count()} GPUs")

    def host_memory(self, nbytes: int) -> np.ndarray:
        # torch's own pinned memory would be rounded up to a power of two, past the budget
        memory = allocate(nbytes)
        runtime: Any = torch.cuda.cudart()
        with torch.cuda.device(self.device):
            failed = int(runtime.cudaHostRegister(memory.ctypes.data, memory.nbytes, PORTABLE))
        if failed:
            raise DeviceError(
                f"device {self.device}: {nbytes} bytes of memory could not be pinned (error "
                f"{failed}); raise the limit of locked memory (ulimit -l) or lower --memory"
            )
        weakref.finalize(memory.base, runtime.cudaHostUnregister, memory.ctypes.data)
        return memory

    def memory(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    def copy(self, stream: torch.cuda.Stream, target: Any, source: Any) -> None:
        with torch.cuda.stream(stream):
            torch.as_tensor(target).copy_(torch.as_tensor(source), non_blocking=True)

    def run(self, stream: torch.cuda.Stream, work: Callable[[], None]) -> None:
        with torch.cuda.stream(stream):
            work()

    def record(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(stream)
        return event

    def wait(self, stream: torch.cuda.Stream, event: torch.cuda.Event) -> None:
        stream.wait_event(event)

    def synchronize(self, event: torch.cuda.Event) -> None:
        event.synchronize()


class Gpu:
    """A device of a pass. Results come back to host memory before the next chunk is worked on, so
    that everything after a pass is the same as on the CPU."""

    chunk_bytes = 256 << 20
    held = HELD
    lasting = False

    def __init__(self, name: str, accelerator: Accelerator) -> None:
        self.name = name
        self.pipeline = Pipeline(accelerator)

    def host_buffer(self, nbytes: int) -> np.ndarray:
        return self.pipeline.accelerator.host_memory(max(nbytes, 1))

    def staged(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        return self.pipeline.staged(chunks)

    def weighted_sum(
        self, chunk: Chunk, weights: np.ndarray, copied: np.ndarray, *, based: bool,
        out: np.ndarray, out_starts: Sequence[int], out_names: Sequence[str],
        digests: Digests | None,
    ) -> int:  # fmt: skip
        rows, base = rows_of(chunk, based)
        types = [getattr(torch, name) for name in out_names]
        widths = [dtype.itemsize for dtype in types]
        table = torch.from_numpy(weights)
        bad: list[torch.Tensor] = []

        def work(start: int, stop: int, buffers: list[torch.Tensor]) -> None:
            outs = [buffer.view(dtype) for buffer, dtype in zip(buffers, types, strict=True)]
            part = [row[start:stop] for row in rows]
            origin = None if base is None else base[start:stop]
            if part:
                ops.weighted_sum(part, table, base=origin, out=outs)
            else:
                assert origin is not None and (copied == mixes.BASE).all()
                for target in outs:
                    target.copy_(origin)
            bad.extend((~torch.isfinite(target)).sum() for target in outs)

        n = chunk.plan.n
        targets = [out[s : s + n * width] for s, width in zip(out_starts, widths, strict=True)]
        self.pipeline.results(work, n, widths, targets)
        return sum(int(count) for count in bad)

    def products(
        self, op: str, chunk: Chunk, segments: np.ndarray, sums: np.ndarray, *, based: bool
    ) -> None:
        rows, base = rows_of(chunk, based)

        def work() -> None:
            total = torch.from_numpy(sums).to(rows[0].device)
            products.launch(op, rows, None, base, segments, total)
            torch.from_numpy(sums).copy_(total)

        self.pipeline.compute(work)

    def row_moments(
        self, chunk: Chunk, segments: np.ndarray, sums: np.ndarray, *, based: bool
    ) -> None:
        rows, _ = rows_of(chunk, False)

        def work() -> None:
            total = torch.from_numpy(sums).to(rows[0].device)
            statistics.launch(rows, rows[-1] if based else None, segments, total)
            torch.from_numpy(sums).copy_(total)

        self.pipeline.compute(work)


def rows_of(chunk: Chunk, based: bool) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    """A chunk's rows on the device, and the last of them as the base."""
    rows = []
    for start, name in zip(chunk.starts, chunk.names, strict=True):
        dtype = getattr(torch, name)
        rows.append(chunk.buffer[start : start + chunk.plan.n * dtype.itemsize].view(dtype))
    return (rows[:-1], rows[-1]) if based else (rows, None)
