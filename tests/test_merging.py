"""The write pass: rounded once, the same bits however it is run, and nothing dropped."""

import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import wspace as ws
from tests.zoos import save, state, zoo_on_disk
from wspace import devices, stream
from wspace.errors import MisalignedZooError, NonFiniteError, OutputError, WeightsError
from wspace.storage import files

WEIGHTS = [[0.25, 0.25, 0.5], [32.0, -1.0, 2.5], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


def load(folder):
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def same_bits(a, b):
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype
        and a[k].shape == b[k].shape
        and torch.equal(a[k].view(-1).view(torch.uint8), b[k].view(-1).view(torch.uint8))
        for k in a
    )


def outs_of(root, n):
    return [root / f"mix-{j}" for j in range(n)]


def assert_rounded_once(out, states, weights, based, name):
    """One rounding at the store, and what a float32 chain over the models may lose."""
    x = torch.stack([tensors[name].double() for tensors in states[:-1]])
    origin = states[-1][name].double() if based else torch.zeros(())
    row = torch.tensor(weights, dtype=torch.float64).view(-1, *[1] * (x.ndim - 1))
    truth = origin + (row * (x - origin)).sum(0)
    terms = origin.abs() + (row.abs() * (x - origin).abs()).sum(0)
    info = torch.finfo(out.dtype)
    store = 0.5 * info.eps * truth.abs().clamp_min(info.smallest_normal)
    error = (out.double() - truth).abs()
    assert (error <= store + (len(x) + 2) * torch.finfo(torch.float32).eps * terms).all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_mixes_around_a_base(tmp_path, dtype):
    states = zoo_on_disk(tmp_path, dtype=dtype)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    outs = ws.merge(zoo, WEIGHTS, outs_of(tmp_path, 4))
    for row, out in zip(WEIGHTS, outs, strict=True):
        mixed = load(out)
        assert mixed.keys() == states[0].keys()
        for name, tensor in mixed.items():
            assert tensor.dtype == dtype
            assert_rounded_once(tensor, states, row, True, name)
    assert same_bits(load(outs[2]), states[3]), "zero weights give back the base"
    assert same_bits(load(outs[3]), states[1]), "a centroid of one is that one"


def test_mixes_without_a_base(tmp_path):
    states = zoo_on_disk(tmp_path, dtype=torch.bfloat16)
    zoo = ws.open_zoo(f"{tmp_path}/run-*")
    weights = torch.tensor([[0.5, 0.3, 0.2], [0, 0, 1]])
    outs = ws.merge(zoo, weights, outs_of(tmp_path, 2))
    for name, tensor in load(outs[0]).items():
        assert_rounded_once(tensor, states, weights[0].tolist(), False, name)
    assert same_bits(load(outs[1]), states[2])
    with pytest.raises(WeightsError, match=r"row 0 sums to 0.9000; without a base"):
        ws.merge(zoo, [[0.5, 0.4, 0.0]], tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_signs_of_zero_survive(tmp_path):
    zeros = {"w": torch.tensor([-0.0, 0.0, -0.0, 1.0])}
    for name in ("run-0", "run-1", "base"):
        save(tmp_path / name, zeros)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    outs = ws.merge(zoo, [[0, 0], [1, 0]], outs_of(tmp_path, 2))
    assert all(same_bits(load(out), zeros) for out in outs)


def test_bits_depend_on_nothing_but_the_numbers(tmp_path, monkeypatch):
    states = zoo_on_disk(tmp_path / "a", dtype=torch.bfloat16)
    for i, tensors in enumerate(states[:-1]):
        save(tmp_path / "b" / f"run-{i}", tensors, shards=3, reverse=i % 2 == 0, index=i != 1)
    save(tmp_path / "b" / "base", states[-1], shards=2, reverse=True)
    zoo = ws.open_zoo(f"{tmp_path}/a/run-*", base=f"{tmp_path}/a/base")
    expected = load(ws.merge(zoo, WEIGHTS[1], tmp_path / "expected")[0])
    zoo = ws.open_zoo(f"{tmp_path}/b/run-*", base=f"{tmp_path}/b/base")

    def again(name, **settings):
        return load(ws.merge(zoo, WEIGHTS[1], tmp_path / name, **settings)[0])

    assert same_bits(again("layout"), expected)
    assert same_bits(again("memory", memory=1_100_000), expected)
    assert same_bits(again("shards", max_shard_size="50KB"), expected)
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    for threads in (1, 3):
        monkeypatch.setattr(devices, "processors", lambda threads=threads: threads)
        assert same_bits(again(f"threads-{threads}"), expected)
    monkeypatch.setattr(stream, "SLOTS", 1)
    assert same_bits(again("slots"), expected)
    several = ws.merge(zoo, [*WEIGHTS, WEIGHTS[1]], outs_of(tmp_path, 5))
    assert same_bits(load(several[4]), expected)
    assert same_bits(load(several[1]), expected)


def test_dtypes_may_differ_and_the_output_follows_the_base(tmp_path):
    base = state(0)
    half = {name: tensor.to(torch.float16) for name, tensor in state(1, like=base).items()}
    bf16 = {name: tensor.to(torch.bfloat16) for name, tensor in state(2, like=base).items()}
    base["layers.0.weight"] = base["layers.0.weight"].bfloat16()
    states = [half, bf16, base]
    for name, tensors in zip(("run-0", "run-1", "base"), states, strict=True):
        save(tmp_path / name, tensors)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    mixed = load(ws.merge(zoo, [0.5, 0.7], tmp_path / "out")[0])
    for name, tensor in mixed.items():
        assert tensor.dtype == base[name].dtype
        assert_rounded_once(tensor, states, [0.5, 0.7], True, name)
    record = json.loads((tmp_path / "out" / "wspace.json").read_text())
    assert ["F16", "BF16", "F32"] in record["mixed_dtypes"]
    first = load(ws.merge(ws.open_zoo(f"{tmp_path}/run-*"), [0.5, 0.5], tmp_path / "plain")[0])
    assert {tensor.dtype for tensor in first.values()} == {torch.float16}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_chosen_dtype(tmp_path, dtype):
    states = zoo_on_disk(tmp_path, dtype=torch.float32)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    for name, tensor in load(ws.merge(zoo, WEIGHTS[0], tmp_path / "o", dtype=dtype)[0]).items():
        assert tensor.dtype == getattr(torch, dtype)
        assert_rounded_once(tensor, states, WEIGHTS[0], True, name)
    with pytest.raises(OutputError, match="'int8': expected float64"):
        ws.merge(zoo, WEIGHTS[0], tmp_path / "p", dtype="int8")


def test_eight_bit_inputs_become_bfloat16(tmp_path):
    base = state(0)
    eight = [{k: t.to(torch.float8_e4m3fn) for k, t in base.items()},
             {k: t.to(torch.float8_e5m2) for k, t in base.items()}]  # fmt: skip
    for name, tensors in zip(("run-0", "run-1"), eight, strict=True):
        save(tmp_path / name, tensors)
    zoo = ws.open_zoo(f"{tmp_path}/run-*")
    for name, tensor in load(ws.merge(zoo, [0.25, 0.75], tmp_path / "out")[0]).items():
        assert tensor.dtype == torch.bfloat16
        assert_rounded_once(tensor, [*eight, base], [0.25, 0.75], False, name)


def test_integers_are_copied_where_equal_and_refused_where_not(tmp_path):
    ids = {"position_ids": torch.arange(2_000_000), "mask": torch.tensor([True, False])}
    zoo_on_disk(tmp_path, extra=ids)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    mixed = load(ws.merge(zoo, WEIGHTS[0], tmp_path / "out", memory=1_300_000)[0])
    assert all(torch.equal(mixed[name], tensor) for name, tensor in ids.items())
    ids["position_ids"][1_900_000] = 0
    save(tmp_path / "run-2", state(3) | ids)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    with pytest.raises(MisalignedZooError, match=r"'position_ids' \(I64\) differs between .*run-2"):
        ws.merge(zoo, WEIGHTS[0], tmp_path / "no")
    assert not [path for path in tmp_path.iterdir() if "no" in path.name]


def test_models_without_weight_are_not_read(tmp_path):
    states = zoo_on_disk(tmp_path)
    states[2]["embed.weight"][0, 0] = torch.nan
    save(tmp_path / "run-2", states[2])
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    totals = []

    def progress(done, total):
        totals.append(total)

    ws.merge(zoo, [1.5, 0.5, 0], tmp_path / "out", progress=progress)
    assert totals[-1] == sum(c.nbytes for c in (*zoo.members[:2], zoo.base))
    with pytest.raises(NonFiniteError, match=r"run-2/model.safetensors: tensor 'embed.weight'"):
        ws.merge(zoo, [1.5, 0.5, 1e-9], tmp_path / "no")


def test_non_finite_is_found_in_copies_too(tmp_path):
    states = zoo_on_disk(tmp_path)
    states[0]["scale"] = torch.tensor(torch.inf)
    save(tmp_path / "run-0", states[0])
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    with pytest.raises(NonFiniteError, match=r"run-0/model.safetensors: tensor 'scale'"):
        ws.merge(zoo, [1, 0, 0], tmp_path / "no")
    out = ws.merge(zoo, [1, 0, 0], tmp_path / "yes", allow_non_finite=True)[0]
    assert same_bits(load(out), states[0])


def test_overflow_of_the_output_type_is_refused(tmp_path):
    zoo_on_disk(tmp_path, dtype=torch.float16)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    with pytest.raises(NonFiniteError, match="exceeds the range of float16"):
        ws.merge(zoo, [1e8, 0, 0.5], tmp_path / "no")


def test_the_record_says_how_it_was_made(tmp_path):
    zoo_on_disk(tmp_path, extra={"ids": torch.arange(3)})
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base", exclude="head.*")
    (out,) = ws.merge(zoo, [0.5, 0.25, 0.25], tmp_path / "out")
    record = json.loads((out / "wspace.json").read_text())
    assert record["made"] == {
        "version": ws.VERSION,
        "method": "linear",
        "models": [str(tmp_path / f"run-{i}") for i in range(3)],
        "base": str(tmp_path / "base"),
        "weights": [0.5, 0.25, 0.25],
        "dtype": None,
    }
    assert record["tensors"]["left_out"] == {"head.weight": "excluded by head.*"}
    assert list(record["tensors"]["copied"]) == ["ids"]
    with safe_open(out / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["wspace"]) == record["made"]
        assert file.metadata()["format"] == "pt"
        assert "head.weight" not in file.keys()  # noqa: SIM118


def test_one_output_for_each_row(tmp_path):
    zoo_on_disk(tmp_path)
    zoo = ws.open_zoo(f"{tmp_path}/run-*", base=tmp_path / "base")
    with pytest.raises(OutputError, match="1 outputs for 2 rows"):
        ws.merge(zoo, WEIGHTS[:2], tmp_path / "one")
    with pytest.raises(OutputError, match="two outputs have the same path"):
        ws.merge(zoo, WEIGHTS[:2], [tmp_path / "one", tmp_path / "x" / ".." / "one"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results_are_written_from_where_they_are(tmp_path, monkeypatch, dtype):
    """A tensor that is no whole number of pages moves all later ones off the pages of the file."""
    sizes = {"a": 4096, "b": 1536, "c": 300_000, "d": 64, "e": 200_000}
    for model in range(2):
        tensors = {name: torch.full((n,), model + 1.0) for name, n in sizes.items()}
        save(tmp_path / f"run-{model}", {name: t.bfloat16() for name, t in tensors.items()})
    direct, write_pages = [], files.OutputFile._write_pages

    def record(file, view, position):
        if position:  # not the header
            direct.append(view.ctypes.data % files.PAGE)
        write_pages(file, view, position)

    monkeypatch.setattr(files.OutputFile, "_write_pages", record)
    zoo = ws.open_zoo(f"{tmp_path}/run-*")
    outs = ws.merge(zoo, [[0.5, 0.5], [0.25, 0.75]], outs_of(tmp_path, 2), dtype=dtype)
    for out, value in zip(outs, (1.5, 1.75), strict=True):
        assert all((tensor == value).all() for tensor in load(out).values())
    assert direct == [0] * len(direct)
    assert direct or not hasattr(os, "O_DIRECT")
