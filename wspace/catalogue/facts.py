"""What is kept of a model, from one read of it: norms, checksums, and its sketches."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from wkernels import cpu
from wkernels.sketches import Runs, SketchSums
from wspace.catalogue.layouts import Layout, in_layers, key_of
from wspace.devices import Cpu
from wspace.passes import segments_of, sum_over_tensors
from wspace.storage.checkpoints import Checkpoint, StoredTensor
from wspace.storage.checksums import BLOCK, OpenBlock, checksum, checksum_of_blocks, digest
from wspace.storage.headers import BITS
from wspace.storage.reading import REQUEST, read_elements
from wspace.storage.stamps import refuse_changed
from wspace.stream import Chunk, Progress
from wspace.zoo import Zoo, open_zoo

LAYERS, OTHERS = 0, 1
"""Parts of a sketch."""


class Facts(NamedTuple):
    """Arrays are in the order of ``layout``."""

    layout: Layout
    dtypes: tuple[str, ...]  # safetensors names
    norms: np.ndarray  # float64 [n_tensors]: Euclidean; NaN where it is not floating point
    hashes: np.ndarray  # uint8 [n_tensors, 16]: xxh3_128, as wspace.json has them
    whole: np.ndarray  # float32 [SIZE]: the sketch of all floating-point tensors
    layers: np.ndarray  # float32 [SIZE]: of those in numbered layers
    nbytes: int  # that were read

    @property
    def dtype(self) -> str:
        """The type of most of the floating-point elements."""
        counts: dict[str, int] = {}
        rows = zip(self.dtypes, self.layout.shapes, self.layout.floating, strict=True)
        for dtype, shape, floats in rows:
            counts[dtype] = counts.get(dtype, 0) + math.prod(shape) * floats
        return max(counts, key=lambda dtype: counts[dtype])

    @property
    def content(self) -> str:
        """The same for two models whose tensors are the same, bit for bit."""
        return checksum(self.layout.digest.encode() + self.hashes.tobytes())


def read_facts(checkpoint: Checkpoint, *, budget: int, progress: Progress | None = None) -> Facts:
    """Reads each byte of a model once. ``budget``: bytes to hold.

    Numerics: sketches are sums in float64, rounded once, to float32. The difference of two models'
    sketches is that of their task vector, with an error of about 4e-8 of a model's norm: beside a
    task vector of 1e-4 of that norm it is a part in 2,000, which adds 2e-7 to a squared distance.
    Raises NonFiniteError for NaN and Inf; CheckpointError, also if a file changes meanwhile.
    """
    zoo = open_zoo(checkpoint)
    worker, sums, hashes = Cpu(), SketchSums(2), _Hashes(zoo)
    keys = np.array([key_of(tensor.name) for tensor in zoo.tensors], np.uint64)
    parts = np.array([LAYERS if in_layers(t.name) else OTHERS for t in zoo.tensors])
    sizes = np.array([tensor.numel for tensor in zoo.tensors])

    def add(chunk: Chunk, segments: np.ndarray, products: np.ndarray) -> None:
        worker.products("dot", chunk, segments, products, based=False)
        which = np.array([piece.tensor for piece in chunk.plan.pieces])
        firsts = np.array([piece.start for piece in chunk.plan.pieces])
        runs = Runs(segments_of(chunk), firsts, sizes[which], parts[which], keys[which])
        row = cpu.Pointers.of([chunk.buffer.ctypes.data + chunk.starts[0]], chunk.names)
        cpu.sketch(row, runs, sums, threads=worker.threads)
        hashes.add(chunk)

    squares = sum_over_tensors(
        zoo, [0], (1, 1), add, worker=worker, budget=budget, taken=sums.nbytes, keep=True,
        what="index", check=lambda found: bool(np.isfinite(found).all()), progress=progress,
    ).per_tensor  # fmt: skip
    assert squares is not None
    digests = hashes.finished()
    for tensor in zoo.copied:
        digests[tensor.name] = _hash_of(zoo.members[0], tensor.stored[0])
    for file, stamp in zip(checkpoint.files, checkpoint.stamps, strict=True):
        refuse_changed(file, stamp)
    layout = Layout.of(zoo)
    norms = dict(zip([t.name for t in zoo.tensors], np.sqrt(squares[:, 0, 0]), strict=True))
    dtypes = {tensor.name: tensor.dtypes[0] for tensor in (*zoo.tensors, *zoo.copied)}
    return Facts(
        layout,
        tuple([dtypes[name] for name in layout.names]),
        np.array([norms.get(name, np.nan) for name in layout.names]),
        np.array([list(bytes.fromhex(digests[name])) for name in layout.names], np.uint8),
        sums.value(LAYERS, OTHERS).astype(np.float32),
        sums.value(LAYERS).astype(np.float32),
        checkpoint.nbytes,
    )


class _Hashes:
    """Checksums of a zoo's one member, whose tensors come in order."""

    def __init__(self, zoo: Zoo) -> None:
        self._tensors = zoo.tensors
        self._blocks: list[list[str]] = [[] for _ in zoo.tensors]
        self._open: OpenBlock | None = None  # only the last tensor of a chunk may have one

    def add(self, chunk: Chunk) -> None:
        width = BITS[chunk.plan.dtypes[0]] // 8
        for piece in chunk.plan.pieces:
            position = chunk.starts[0] + piece.at * width
            stop = position + (piece.stop - piece.start) * width
            start, size = piece.start * width, self._tensors[piece.tensor].numel * width
            while position < stop:
                nbytes = min(BLOCK - start % BLOCK, stop - position)
                part = chunk.buffer[position : position + nbytes].data
                whole = min(BLOCK, size - start // BLOCK * BLOCK)
                found = self._add(start % BLOCK, part, whole)
                if found:
                    self._blocks[piece.tensor].append(found.hex())
                position, start = position + nbytes, start + nbytes

    def _add(self, start: int, part: memoryview, whole: int) -> bytes | None:
        if len(part) == whole:
            return digest(part)
        if start == 0:
            self._open = OpenBlock(whole)
        assert self._open is not None
        return self._open.add(start, part)

    def finished(self) -> dict[str, str]:
        pairs = zip(self._tensors, self._blocks, strict=True)
        return {tensor.name: checksum_of_blocks(blocks) for tensor, blocks in pairs}


def _hash_of(checkpoint: Checkpoint, tensor: StoredTensor) -> str:
    """Of a tensor that no kernel reads: integers and the like."""
    path, record = checkpoint.files[tensor.file], tensor.record
    octets = tensor._replace(record=record._replace(dtype="U8", shape=(record.nbytes,)))
    blocks = []
    for start in range(0, record.nbytes, REQUEST):
        data = read_elements(path, octets, start, min(start + REQUEST, record.nbytes))
        blocks += [checksum(data[k : k + BLOCK].data) for k in range(0, len(data), BLOCK)]
    return checksum_of_blocks(blocks)
