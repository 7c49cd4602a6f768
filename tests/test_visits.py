"""Tensors that are measured before they are written: read once where they fit, and twice else."""

import numpy as np
import pytest
import torch

from tests.recipes import merged
from tests.zoos import save, state
from wspace import devices
from wspace.recipes import Problems, plan_outputs
from wspace.stream import CUT, ChunkPlan, Piece, Stream
from wspace.visits import Room, measured_first
from wspace.zoo import open_zoo

SHAPES = {
    "a.weight": (5, CUT),
    "a.bias": (7,),
    "none": (0, 3),
    "b.weight": (3, CUT // 2 + 5),
    "b.bias": (300,),
    "c.weight": (40, 100),
    "d.weight": (9, CUT + 1),
}
RECIPE = """\
merge_method: {method}
models: [{{model: m-0}}, {{model: m-1}}, {{model: m-2}}]
{more}
"""
METHODS = {
    "karcher": "",
    "multislerp": "parameters: {weight: 0.4}",
    "model_stock": "base_model: m-2",
    "geometric_median": "",
}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("visits")
    for k in range(3):
        save(root / f"m-{k}", state(k, shapes=SHAPES))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


@pytest.fixture
def chunks_of_64_kib(monkeypatch):
    monkeypatch.setattr(devices.Cpu, "chunk_bytes", 3 * CUT * 4)


def size():
    return 3 * 4 * sum(int(np.prod(shape)) for shape in SHAPES.values())


@pytest.mark.parametrize("method", METHODS)
def test_bits_do_not_depend_on_how_often_a_tensor_is_read(
    method, tmp_path, counted, monkeypatch, request
):
    text = RECIPE.format(method=method, more=METHODS[method])
    expected = merged(text, tmp_path / "whole")
    assert counted[0] == size()
    request.getfixturevalue("chunks_of_64_kib")
    reads = {}
    for memory in ("64MiB", "2MiB", "1MiB"):
        counted[0] = 0
        found = merged(text, tmp_path / memory, memory=memory)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        reads[memory] = counted[0]
        cost = plan_outputs(text, Problems("r.yml")).cost(memory=memory)
        assert cost.read_bytes == counted[0]
    monkeypatch.setattr(devices.Cpu, "lasting", False)
    counted[0] = 0
    found = merged(text, tmp_path / "moved")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    large = 3 * 4 * (5 * CUT + 3 * (CUT // 2 + 5) + 9 * (CUT + 1))
    assert reads["64MiB"] == size() < reads["2MiB"] <= reads["1MiB"] <= counted[0] == size() + large


@pytest.mark.parametrize("kept", [1, 4, 6, 100])
def test_a_tensor_is_measured_whole_before_any_of_it_is_written(kept, chunks_of_64_kib):
    zoo = open_zoo([f"m-{k}" for k in range(3)])
    room = Room({("F32",) * 3: CUT}, kept, 0)
    visits = measured_first(zoo, range(3), room, 2)
    measured, written, last = {}, {}, {}
    for visit in visits:
        assert len(visit.plan.pieces) <= 2 and visit.plan.n <= CUT
        for piece in visit.plan.pieces if visit.measured else ():
            assert measured.get(piece.tensor, 0) == piece.start
            measured[piece.tensor] = piece.stop
        for j in visit.written:
            for piece in visits[j].plan.pieces:
                assert measured[piece.tensor] == zoo.tensors[piece.tensor].numel
                assert written.get(piece.tensor, 0) == piece.start
                written[piece.tensor] = piece.stop
                last[piece.tensor] = len(visit.written)
    assert written == {t: x.numel for t, x in enumerate(zoo.tensors) if x.numel} == measured
    assert max(last.values()) <= kept
    twice = sum(visit.plan.n for visit in visits) - zoo.numel
    large = [x.numel for x in zoo.tensors if -(-x.numel // CUT) > kept]
    assert twice == sum(large)


def test_buffers_of_chunks_that_are_worked_on_are_not_read_into():
    zoo = open_zoo(["m-0"])
    (t,) = (t for t, tensor in enumerate(zoo.tensors) if tensor.name == "a.weight")
    pieces = [Piece(t, k * CUT, (k + 1) * CUT, 0) for k in range(5)]
    plans = [ChunkPlan((piece,), ("F32",), CUT) for piece in pieces]
    until, kept = [3, 1, 3, 3, 4], {}
    with Stream(zoo, [0], plans, devices.Cpu(), until=until) as stream:
        for k, chunk in enumerate(stream):
            kept[k] = chunk, chunk.buffer[: 4 * CUT].copy()
            for j in range(k + 1):
                if until[j] >= k:
                    assert np.array_equal(kept[j][0].buffer[: 4 * CUT], kept[j][1])
    assert len(kept) == 5
