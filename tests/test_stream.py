"""How a zoo is cut into chunks."""

import pytest
import torch

import wkernels.cpu.blocks
import wkernels.gpu.blocks
import wspace as ws
from tests.zoos import save, state, zoo_on_disk
from wspace import stream
from wspace.devices import Cpu
from wspace.storage import checksums


def test_cuts_are_where_the_kernels_blocks_start():
    assert stream.CUT % wkernels.cpu.blocks.BLOCK == 0
    assert stream.CUT % wkernels.gpu.blocks.BLOCK == 0
    assert 2 * stream.LONG_CUT % checksums.BLOCK == 0
    assert wkernels.cpu.blocks.BLOCK == wkernels.gpu.blocks.BLOCK


@pytest.mark.parametrize("limit", [stream.CUT, 3 * stream.CUT, 1 << 30], ids=str)
@pytest.mark.parametrize("max_pieces", [1, 2, 4096])
def test_every_element_is_in_one_chunk(tmp_path, limit, max_pieces):
    zoo_on_disk(tmp_path, n=2)
    zoo = ws.open_zoo(f"{tmp_path}/run-*")
    plans = list(stream.plan_chunks(zoo, [0, 1], lambda dtypes: limit, max_pieces))
    seen = dict.fromkeys(range(len(zoo.tensors)), 0)
    for plan in plans:
        assert 0 < plan.n <= limit
        assert len(plan.pieces) <= max_pieces
        position = 0
        for piece in plan.pieces:
            assert piece.at == position
            position += piece.stop - piece.start
            assert piece.start == seen[piece.tensor]
            assert piece.start % stream.CUT == 0
            seen[piece.tensor] = piece.stop
        assert position == plan.n
    assert seen == {k: tensor.numel for k, tensor in enumerate(zoo.tensors)}


def test_chunks_end_where_blocks_with_checksums_do(tmp_path):
    """Where they have room for one."""
    n = 5 * stream.LONG_CUT + stream.CUT
    save(tmp_path / "run-0", {"a": torch.zeros(stream.CUT), "b": torch.zeros(n)})
    zoo = ws.open_zoo(f"{tmp_path}/run-*")
    limit = 2 * stream.LONG_CUT + stream.CUT // 2
    plans = stream.plan_chunks(zoo, [0], lambda dtypes: limit, 4096)
    stops = [piece.stop for plan in plans for piece in plan.pieces if piece.tensor == 1]
    assert stops == [stream.LONG_CUT, 3 * stream.LONG_CUT, 5 * stream.LONG_CUT, n]


def test_a_chunk_has_one_combination_of_dtypes(tmp_path):
    base = state(0)
    half = {
        name: tensor.to(torch.bfloat16 if "bias" in name else torch.float16)
        for name, tensor in base.items()
    }
    save(tmp_path / "run-0", base)
    save(tmp_path / "run-1", half)
    zoo = ws.open_zoo(f"{tmp_path}/run-*")
    for plan in stream.plan_chunks(zoo, [0, 1], lambda dtypes: 1 << 30, 4096):
        for piece in plan.pieces:
            assert zoo.tensors[piece.tensor].dtypes == plan.dtypes


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_chunks_hold_the_files_bytes(tmp_path, monkeypatch, slots):
    states = zoo_on_disk(tmp_path, n=2, shards=2, reverse=True)
    monkeypatch.setattr(stream, "SLOTS", slots)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    plans = list(stream.plan_chunks(zoo, [0, 2], lambda dtypes: stream.CUT, 4096))
    n_seen = 0
    with stream.Stream(zoo, [0, 2], plans, Cpu()) as chunks:
        for chunk in chunks:
            for row, start in zip((0, 2), chunk.starts, strict=True):
                values = torch.from_numpy(chunk.buffer[start : start + 4 * chunk.plan.n])
                values = values.view(torch.float32)
                for piece in chunk.plan.pieces:
                    stored = states[row][zoo.tensors[piece.tensor].name].view(-1)
                    part = values[piece.at : piece.at + piece.stop - piece.start]
                    assert torch.equal(part, stored[piece.start : piece.stop])
                    n_seen += len(part)
    assert n_seen == 2 * zoo.numel
