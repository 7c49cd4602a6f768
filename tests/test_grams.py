"""The passes with n x n results: right against float64, and the same bits however they are run."""

import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import wspace as ws
from tests.zoos import SHAPES, flat, save, state, zoo_on_disk
from wspace import devices, stream
from wspace.errors import BudgetError, NonFiniteError


def same(a, b):
    return torch.equal(a.view(torch.int64), b.view(torch.int64))


def rows_of(states, based):
    x = torch.stack([flat(tensors) for tensors in states[:-1]])
    return x - flat(states[-1]) if based else x


@pytest.mark.parametrize("based", [True, False], ids=["base", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gram_is_x_x_transposed(tmp_path, dtype, based):
    states = zoo_on_disk(tmp_path, dtype=dtype)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=f"{tmp_path}/base" if based else None)
    gram = ws.gram(zoo)
    x = rows_of(states, based)
    # a difference is rounded to float32; products and sums are float64
    bound = 2 * torch.finfo(torch.float32).eps * (x.abs() @ x.abs().T)
    assert ((gram.total - x @ x.T).abs() <= bound).all()
    for name, matrix in zip(gram.tensors, gram.per_tensor, strict=True):
        part = torch.stack(
            [flat(s, [name]) - based * flat(states[-1], [name]) for s in states[:-1]]
        )
        bound = 2 * torch.finfo(torch.float32).eps * (part.abs() @ part.abs().T)
        assert ((matrix - part @ part.T).abs() <= bound).all(), name
    assert gram.members == ("run-0", "run-1", "run-2")
    assert set(gram.tensors) == set(SHAPES)
    assert gram.has_base is based


def test_bits_depend_on_nothing_but_the_numbers(tmp_path, monkeypatch):
    states = zoo_on_disk(tmp_path / "a")
    for i, tensors in enumerate(states[:-1]):
        save(tmp_path / "b" / f"run-{i}", tensors, shards=3, reverse=i % 2 == 0, index=i != 1)
    save(tmp_path / "b" / "base", states[-1], shards=2, reverse=True)
    expected = ws.gram(ws.open_zoo(f"{tmp_path}/a/run-*", base=f"{tmp_path}/a/base"))
    zoo = ws.open_zoo(f"{tmp_path}/b/run-*", base=f"{tmp_path}/b/base")
    assert same(ws.gram(zoo).total, expected.total)
    assert same(ws.gram(zoo, per_tensor=False).total, expected.total)
    smallest = ws.gram(zoo, memory=2_400_000)  # one block a chunk
    assert same(smallest.total, expected.total)
    for name, matrix in zip(smallest.tensors, smallest.per_tensor, strict=True):
        assert same(matrix, expected.per_tensor[expected.tensors.index(name)])
    for threads in (1, 2, 5):
        monkeypatch.setattr(devices, "processors", lambda threads=threads: threads)
        assert same(ws.gram(zoo).total, expected.total)
    monkeypatch.setattr(stream, "SLOTS", 2)
    assert same(ws.gram(zoo).total, expected.total)


def test_permuting_the_zoo_permutes_the_gram_matrix(tmp_path):
    zoo_on_disk(tmp_path, n=5)
    order = [3, 0, 4, 2, 1]
    paths = [tmp_path / f"run-{i}" for i in range(5)]
    straight = ws.gram(ws.open_zoo(paths, base=tmp_path / "base")).total
    permuted = ws.gram(ws.open_zoo([paths[i] for i in order], base=tmp_path / "base")).total
    assert same(permuted, straight[order][:, order])
    assert same(straight, straight.T.contiguous())


def test_the_same_model_twice_is_at_distance_zero(tmp_path):
    zoo_on_disk(tmp_path, n=2)
    paths = [tmp_path / "run-0", tmp_path / "run-1", tmp_path / "run-0"]
    zoo = ws.open_zoo(paths, base=tmp_path / "base")
    distances = ws.distances(ws.gram(zoo))
    assert distances[0, 2] == 0
    assert distances[0, 1] > 0
    assert zoo.names == ("run-0", "run-1", "run-0#2")


def test_each_byte_is_read_once(tmp_path, monkeypatch):
    zoo_on_disk(tmp_path, n=3, shards=3)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    read = []

    def counted(descriptor, buffers, offset, preadv=os.preadv):
        got = preadv(descriptor, buffers, offset)
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        read.append((name, offset, got))
        return got

    monkeypatch.setattr(os, "preadv", counted)
    ws.gram(zoo, memory=2_500_000)
    assert sum(got for _, _, got in read) == sum(c.nbytes for c in zoo.checkpoints)
    ends = sorted(read)
    for (file, offset, got), (next_file, next_offset, _) in pairwise(ends):
        assert file != next_file or offset + got <= next_offset, "read twice"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_non_finite_inputs_are_refused_by_name(tmp_path, value):
    states = zoo_on_disk(tmp_path)
    states[1]["layers.1.weight"][299, 129] = value
    save(tmp_path / "run-1", states[1])
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    with pytest.raises(NonFiniteError, match=r"run-1/model.safetensors: tensor 'layers.1.weight'"):
        ws.gram(zoo)
    with pytest.raises(NonFiniteError, match=r"'layers.1.weight'"):
        ws.gram(zoo, per_tensor=False, memory=2_500_000)
    assert not ws.gram(zoo, allow_non_finite=True).total.isfinite().all()


def test_a_filter_leaves_tensors_out_and_says_so(tmp_path):
    states = zoo_on_disk(tmp_path)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base", exclude=["layers.0.*"])
    names = [name for name in sorted(SHAPES) if not name.startswith("layers.0.")]
    x = torch.stack([flat(s, names) - flat(states[-1], names) for s in states[:-1]])
    gram = ws.gram(zoo)
    torch.testing.assert_close(gram.total, x @ x.T, rtol=1e-6, atol=0)
    assert set(gram.left_out) == {"layers.0.weight", "layers.0.bias"}
    assert "layers.0.*" in gram.left_out["layers.0.bias"]


def test_integers_take_no_part_and_are_named(tmp_path):
    zoo_on_disk(tmp_path, extra={"position_ids": torch.arange(7)})
    gram = ws.gram(ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base"))
    assert gram.left_out == {"position_ids": "I64 is not floating point"}


@pytest.mark.parametrize("metric", ["l1", "l2"])
def test_direct_distances(tmp_path, metric):
    states = zoo_on_disk(tmp_path, n=4)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    x = rows_of(states, based=False)
    difference = x[:, None] - x[None]
    truth = difference.abs().mean(-1) if metric == "l1" else difference.square().sum(-1).sqrt()
    torch.testing.assert_close(ws.pairwise_distances(zoo, metric=metric), truth, rtol=1e-9, atol=0)
    with pytest.raises(ValueError, match="expected 'l1' or 'l2', got 'l3'"):
        ws.pairwise_distances(zoo, metric="l3")


def test_near_duplicates_are_refined(tmp_path):
    base = state(0)
    first = state(1, like=base, step=1.0)
    twin = {name: tensor.clone() for name, tensor in first.items()}
    twin["layers.0.weight"][5, 5] += 2.0**-14
    for name, tensors in (("base", base), ("run-0", first), ("run-1", twin),
                          ("run-2", state(2, like=base))):  # fmt: skip
        save(tmp_path / name, tensors)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base", exclude="norm.weight")
    gram = ws.gram(zoo)
    raw = ws.distances(gram)
    refined = ws.refine(raw, gram, zoo)
    truth = (first["layers.0.weight"].double() - twin["layers.0.weight"].double()).norm()
    assert abs(refined[0, 1] - truth) <= 1e-12 * truth
    assert refined[0, 1] == refined[1, 0]
    kept = torch.ones(3, 3, dtype=torch.bool)
    kept[0, 1] = kept[1, 0] = False
    assert torch.equal(refined[kept], raw[kept])


@pytest.mark.parametrize("per_tensor", [False, True])
def test_statistics(tmp_path, per_tensor):
    states = zoo_on_disk(tmp_path)
    states[2]["layers.0.weight"] = states[-1]["layers.0.weight"].clone()
    save(tmp_path / "run-2", states[2])
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    found = ws.statistics(zoo, per_tensor=per_tensor, memory=2_500_000)
    t = [tensor.name for tensor in zoo.tensors].index("layers.0.weight")
    for i, tensors in enumerate(states):
        x = flat(tensors, ["layers.0.weight"] if per_tensor else None).numpy()
        base = flat(states[-1], ["layers.0.weight"] if per_tensor else None).numpy()
        at = (t, i) if per_tensor else i
        np.testing.assert_allclose(found.norm[at], np.linalg.norm(x), rtol=1e-12)
        np.testing.assert_allclose(found.mean[at], x.mean(), rtol=1e-9, atol=1e-15)
        assert found.max_abs[at] == np.abs(x).max()
        centred = x - x.mean()
        kurtosis = (centred**4).mean() / (centred**2).mean() ** 2
        np.testing.assert_allclose(found.kurtosis[at], kurtosis, rtol=1e-9)
        assert found.non_finite[at] == 0
        assert found.changed[at] == (x != base).mean()


def test_a_budget_that_is_too_small_says_what_it_needs(tmp_path):
    zoo_on_disk(tmp_path)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    with pytest.raises(BudgetError, match="one chunk of 16384 elements of 4 checkpoints needs"):
        ws.gram(zoo, memory=100_000)
    with pytest.raises(BudgetError, match="per_tensor=False or raise it"):
        ws.gram(ws.open_zoo([tmp_path / "run-0"] * 600, base=tmp_path / "base"), memory="10MB")


def test_progress_counts_all_bytes(tmp_path):
    zoo_on_disk(tmp_path)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    calls = []
    ws.gram(zoo, memory=2_500_000, progress=lambda done, total: calls.append((done, total)))
    total = sum(checkpoint.nbytes for checkpoint in zoo.checkpoints)
    assert calls[0] == (0, total)
    assert calls[-1] == (total, total)
    assert len(calls) > 3
    assert calls == sorted(calls)
