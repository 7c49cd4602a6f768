"""Chunks on a GPU: read into pinned memory, copied while the last one is worked on. Needs torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from wkernels import mixes, ops
from wkernels.gpu import products, statistics
from wspace.errors import DeviceError
from wspace.stream import Chunk


class Cuda:
    """The Triton kernels on device buffers; two chunks live on the device at a time.

    Results come back to host memory before the next chunk is worked on, so that everything after
    a pass is the same as on the CPU.
    """

    chunk_bytes = 256 << 20

    def __init__(self, name: str) -> None:
        if not torch.cuda.is_available():
            raise DeviceError(f"device {name!r}: torch finds no GPU; use --device cpu")
        device = torch.device(name)
        if (device.index or 0) >= torch.cuda.device_count():
            raise DeviceError(f"device {name!r}: torch finds {torch.cuda.device_count()} GPUs")
        self.name = name
        self._device = device
        self._outs = torch.empty(0, dtype=torch.uint8, device=device)

    def host_buffer(self, nbytes: int) -> np.ndarray:
        return torch.empty(max(nbytes, 1), dtype=torch.uint8, pin_memory=True).numpy()

    def staged(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Copies one chunk ahead on a stream of its own, into two buffers in turn."""
        copying = torch.cuda.Stream(self._device)
        computing = torch.cuda.current_stream(self._device)
        arenas: list[torch.Tensor | None] = [None, None]
        waiting: Chunk | None = None
        arrived: torch.cuda.Event | None = None
        for k, host in enumerate(chunks):
            arena = arenas[k % 2]
            if arena is None or arena.numel() < len(host.buffer):
                arena = torch.empty(len(host.buffer), dtype=torch.uint8, device=self._device)
                arenas[k % 2] = arena
            # the kernels that read this arena two chunks ago come first
            copying.wait_stream(computing)
            with torch.cuda.stream(copying):
                part = arena[: len(host.buffer)]
                part.copy_(torch.from_numpy(host.buffer), non_blocking=True)
                event = torch.cuda.Event()
                event.record(copying)
            if waiting is not None and arrived is not None:
                computing.wait_event(arrived)
                yield waiting
            waiting, arrived = replace(host, buffer=part), event
            event.synchronize()  # asking for the next chunk gives the host buffer back
        if waiting is not None and arrived is not None:
            computing.wait_event(arrived)
            yield waiting

    def weighted_sum(
        self, chunk: Chunk, weights: np.ndarray, copied: np.ndarray, *, based: bool,
        out: np.ndarray, out_starts: Sequence[int], out_names: Sequence[str],
    ) -> int:  # fmt: skip
        rows, base = self._rows(chunk, based)
        if self._outs.numel() < len(out):
            self._outs = torch.empty(len(out), dtype=torch.uint8, device=self._device)
        outs = [
            _row(self._outs, start, chunk.plan.n, name)
            for start, name in zip(out_starts, out_names, strict=True)
        ]
        if rows:
            ops.weighted_sum(rows, torch.from_numpy(weights), base=base, out=outs)
        else:
            assert base is not None and (copied == mixes.BASE).all()
            for target in outs:
                target.copy_(base)
        bad = sum(int((~torch.isfinite(target)).sum()) for target in outs)
        for start, target in zip(out_starts, outs, strict=True):
            stop = start + target.nbytes  # what lies between may be another run's result
            torch.from_numpy(out[start:stop]).copy_(self._outs[start:stop])
        return bad

    def products(
        self, op: str, chunk: Chunk, segments: np.ndarray, sums: np.ndarray, *, based: bool
    ) -> None:
        rows, base = self._rows(chunk, based)
        total = torch.from_numpy(sums).to(self._device)
        products.launch(op, rows, None, base, segments, total)
        torch.from_numpy(sums).copy_(total)

    def row_moments(
        self, chunk: Chunk, segments: np.ndarray, sums: np.ndarray, *, based: bool
    ) -> None:
        rows, _ = self._rows(chunk, False)
        _, base = self._rows(chunk, based)
        total = torch.from_numpy(sums).to(self._device)
        statistics.launch(rows, base, segments, total)
        torch.from_numpy(sums).copy_(total)

    @staticmethod
    def _rows(chunk: Chunk, based: bool) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        rows = [
            _row(chunk.buffer, start, chunk.plan.n, name)
            for start, name in zip(chunk.starts, chunk.names, strict=True)
        ]
        return (rows[:-1], rows[-1]) if based else (rows, None)


def _row(buffer: torch.Tensor, start: int, n: int, name: str) -> torch.Tensor:
    dtype = getattr(torch, name)
    return buffer[start : start + n * dtype.itemsize].view(dtype)
