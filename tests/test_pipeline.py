"""Passes through a device with its own memory, on an accelerator of threads and host memory."""

import itertools
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

import wspace as ws
from tests.host_accelerator import HostAccelerator
from tests.zoos import save
from wspace import cuda, pipeline, stream
from wspace.cuda import Gpu
from wspace.devices import device_named
from wspace.errors import DeviceError
from wspace.several import Several, Shared, split
from wspace.stream import CUT, Chunk, ChunkPlan, Piece

SHAPES = {"a.weight": (2 * CUT + 5,), "b.weight": (7,), "c.weight": (40, 500)}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    root = tmp_path_factory.mktemp("zoo")
    for seed, name in enumerate(("run-0", "run-1", "run-2", "base")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            key: torch.randn(shape, generator=generator).to(torch.bfloat16)
            for key, shape in SHAPES.items()
        }
        save(root / name, tensors)
    return ws.open_zoo(f"{root}/run-*", base=root / "base")


@pytest.fixture
def accelerators(monkeypatch):
    """Devices that are asked for by a GPU's name are these; chunks are small."""
    made = {}

    def make(name):
        made[name] = HostAccelerator(seed=len(made))
        return made[name]

    monkeypatch.setattr(cuda, "Cuda", make)
    monkeypatch.setattr(Gpu, "chunk_bytes", CUT * 8)
    monkeypatch.setattr(pipeline, "SLICE", 4096)
    return made


DEVICES = ["cuda", "cuda:0,cuda:1,cuda:2"]
WEIGHTS = [[0.5, 0.3, 0.2], [2.0, -1.0, 0.25], [0.0, 0.0, 0.0]]


def files(path):
    return {file.name: file.read_bytes() for file in sorted(path.glob("*.safetensors"))}


@pytest.mark.parametrize("device", DEVICES)
def test_a_merge_has_the_bits_of_the_cpus(zoo, accelerators, tmp_path, device):
    outs = {}
    for where in ("cpu", device):
        names = [tmp_path / f"{where}-{j}".replace(":", "") for j in range(len(WEIGHTS))]
        ws.merge(zoo, WEIGHTS, names, device=where)
        outs[where] = [files(name) for name in names]
    metadata = b'"device"'
    assert metadata not in outs["cpu"][0]["model.safetensors"]
    assert outs[device] == outs["cpu"]
    assert len(accelerators) == len(device.split(","))


@pytest.mark.parametrize("what", ["gram", "statistics"])
def test_sums_are_those_of_the_cpu_and_the_same_on_several(zoo, accelerators, what):
    found = [
        ws.gram(zoo, device=device).per_tensor
        if what == "gram"
        else torch.from_numpy(ws.statistics(zoo, device=device, per_tensor=True).norm)
        for device in ("cpu", "cuda", "cuda:0,cuda:1")
    ]
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(found[2], found[1])


def test_non_finite_inputs_are_refused_by_name(accelerators, tmp_path):
    for name in ("run-0", "run-1"):
        tensors = {key: torch.ones(shape) for key, shape in SHAPES.items()}
        if name == "run-1":
            tensors["c.weight"][3, 5] = torch.inf
        save(tmp_path / name, tensors)
    damaged = ws.open_zoo(f"{tmp_path}/run-*")
    for device in DEVICES[:2]:
        with pytest.raises(ws.WspaceError, match=r"run-1.*'c.weight' has NaN or Inf"):
            ws.merge(damaged, [[0.5, 0.5]], tmp_path / "out", device=device)


class Meeting(HostAccelerator):
    """Steps of two streams wait for each other until one of each ran at the same time."""

    def __init__(self, *pair):
        super().__init__()
        self.running = {name: threading.Event() for name in pair}
        self.met = False

    def step(self, stream, work):
        def waiting():
            if stream.name in self.running and not self.met:
                self.running[stream.name].set()
                (other,) = (event for name, event in self.running.items() if name != stream.name)
                if other.wait(0.5):
                    self.met = True
                self.running[stream.name].clear()
            work()

        super().step(stream, waiting)


@pytest.mark.parametrize("pair", list(itertools.combinations(range(3), 2)), ids=str)
def test_copies_in_kernels_and_copies_out_overlap(zoo, monkeypatch, tmp_path, pair):
    made = Meeting(*pair)
    monkeypatch.setattr(cuda, "Cuda", lambda name: made)
    monkeypatch.setattr(Gpu, "chunk_bytes", CUT * 8)
    monkeypatch.setattr(pipeline, "SLICE", 4096)
    ws.merge(zoo, WEIGHTS, [tmp_path / str(j) for j in range(3)], device="cuda")
    assert made.met


def test_buffers_on_the_device_stay_inside_the_budget(zoo, accelerators, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(Gpu, "chunk_bytes", 1 << 30)

    class Watched(Gpu):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(cuda, "Gpu", Watched)
    budget = 2 << 20
    ws.merge(zoo, WEIGHTS, [tmp_path / str(j) for j in range(3)], device="cuda", memory=budget)
    assert budget / 5 < made[0].pipeline.nbytes <= budget


def test_a_device_holds_fewer_buffers_than_there_are():
    assert pipeline.HELD < stream.SLOTS
    assert pipeline.ARENAS > pipeline.HELD


def chunk_of(*lengths, starts=None):
    pieces, at = [], 0
    for tensor, length in enumerate(lengths):
        start = starts[tensor] if starts else 0
        pieces.append(Piece(tensor, start, start + length, at))
        at += length
    buffer = np.arange(2 * at, dtype=np.uint8)
    return Chunk(ChunkPlan(tuple(pieces), ("F8_E5M2", "F8_E5M2"), at), buffer, (0, at))


@pytest.mark.parametrize("n_devices", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "chunk",
    [chunk_of(5), chunk_of(CUT + 1), chunk_of(3 * CUT, 7, 2 * CUT + 9, starts=(CUT, 0, 0))],
    ids=["few", "one tensor", "several"],
)
def test_every_element_is_on_one_device(chunk, n_devices):
    parts = split(chunk, [object() for _ in range(n_devices)])
    assert len({id(part.device) for part in parts}) == len(parts) <= n_devices
    position, seen = 0, []
    for part in parts:
        assert part.at == position
        for piece in part.chunk.plan.pieces:
            assert piece.start % CUT == 0
            seen.append((piece.tensor, piece.start, piece.stop, part.at + piece.at))
        rows = np.concatenate(part.chunk.buffer).reshape(2, -1)
        n = chunk.plan.n
        expected = chunk.buffer.reshape(2, n)[:, position : position + part.chunk.plan.n]
        assert (rows == expected).all()
        assert len(chunk.plan.pieces[part.pieces]) == len(part.chunk.plan.pieces)
        position += part.chunk.plan.n
    assert position == chunk.plan.n
    joined = [list(seen[0])]
    for tensor, start, stop, at in seen[1:]:
        if tensor == joined[-1][0]:
            assert start == joined[-1][2]
            joined[-1][2] = stop
        else:
            joined.append([tensor, start, stop, at])
    assert [tuple(piece) for piece in joined] == [tuple(p) for p in chunk.plan.pieces]


def test_rows_of_a_shared_chunk_are_chosen_on_every_device():
    host = chunk_of(3 * CUT)
    parts = [
        part._replace(chunk=replace(part.chunk, starts=(0, 512 * k)))
        for k, part in enumerate(split(host, [object(), object()]), start=1)
    ]
    shared = Shared(host.plan, parts, host.starts).of_rows([1])
    assert [part.chunk.starts for part in shared.buffer] == [(512,), (1024,)]
    assert [len(part.chunk.plan.dtypes) for part in shared.buffer] == [1, 1]
    assert shared.of_rows([0]).buffer == shared.buffer


def test_large_chunks_are_shared_evenly():
    parts = split(chunk_of(40 * CUT), [object() for _ in range(4)])
    assert [part.chunk.plan.n for part in parts] == [10 * CUT] * 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tpu", "expected auto, cpu, cuda, cuda:N"), ("cuda:", "expected auto"),
        ("cuda:0,cpu", "expected auto"), ("cuda:1,cuda:1", "names a GPU twice"),
    ],
)  # fmt: skip
def test_devices_that_are_none(name, message):
    with pytest.raises(DeviceError, match=message):
        device_named(name)


def test_several_devices_have_all_their_names(accelerators):
    device = device_named("cuda:0,cuda:3")
    assert isinstance(device, Several)
    assert device.name == "cuda:0,cuda:3"
    assert device.chunk_bytes == 2 * Gpu.chunk_bytes
