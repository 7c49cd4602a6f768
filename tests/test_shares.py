"""Ranges of a merge or a Gram matrix, by processes that know nothing of each other: same bits."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import wspace as ws
from tests.checkpoints import save_model
from tests.zoos import save, state
from wspace.cli.main import main
from wspace.dividing import SPAN, divided, within
from wspace.errors import CheckpointError, OutputError, WspaceError
from wspace.recipes import Problems, merge_outputs, places_of, plan_outputs
from wspace.shares import Share, dealt, parse_share
from wspace.storage import writing
from wspace.storage.checksums import BLOCK
from wspace.storage.headers import BITS, KERNEL_NAMES
from wspace.stream import CUT, ChunkPlan, Piece
from wspace.sums import joined, save_share
from wspace.team import OneOfMany

SHAPES = {"a": (1500, 900), "b": (7,), "c": (64, 512), "d": (), "e": (0, 3), "f": (1300, 1000)}
WEIGHTS = [[0.3, 0.7], [1.0, -0.5]]


class StoppedError(Exception):
    """Something that nobody expects."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """``0``, ``1`` and ``base``: two tensors of more than a span, and integers."""
    root = tmp_path_factory.mktemp("runs")
    base = state(9, shapes=SHAPES)
    steps = {"steps": torch.tensor([3])}
    for seed in range(2):
        save(root / f"{seed}", state(seed, shapes=SHAPES, like=base) | steps, shards=1 + seed)
    save(root / "base", base | steps)
    return root


@pytest.fixture
def zoo(runs):
    return ws.open_zoo([runs / "0", runs / "1"], base=runs / "base")


@pytest.fixture(scope="module")
def expected(runs, tmp_path_factory):
    """Both outputs of one process."""
    outs = [tmp_path_factory.mktemp("expected") / name for name in "xy"]
    zoo = ws.open_zoo([runs / "0", runs / "1"], base=runs / "base")
    ws.merge(zoo, WEIGHTS, outs, max_shard_size="6MB")
    return outs


def merge_share(zoo, index, n, folder, **options):
    outs = [folder / name for name in "xy"]
    team = OneOfMany(Share(index, n))
    return ws.merge(zoo, WEIGHTS, outs, max_shard_size="6MB", team=team, **options)


def same(folder, expected):
    for out in expected:
        files = {path.name: path.read_bytes() for path in out.iterdir()}
        assert {path.name: path.read_bytes() for path in (folder / out.name).iterdir()} == files
    assert sorted(path.name for path in folder.iterdir()) == ["x", "y"]


@pytest.mark.parametrize("order", [[1, 0], [2, 0, 1], [3, 1, 0, 2], list(range(9))], ids=str)
def test_a_merge_in_ranges_has_the_bits_of_one(zoo, expected, tmp_path, order, counted):
    for index in order:
        assert not (tmp_path / "x").exists()
        merge_share(zoo, index, len(order), tmp_path, memory="8MiB")
    same(tmp_path, expected)
    # each range is read by one of them; the integers once, by the first
    assert counted[0] == 3 * (sum(tensor.numel for tensor in zoo.tensors) * 4 + 8)
    merge_share(zoo, 0, len(order), tmp_path)  # again, as a job array may do
    same(tmp_path, expected)
    assert all(ws.verify(tmp_path / name).ok for name in "xy")


def test_a_range_that_was_cut_short_goes_on(zoo, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "COMMIT_SECONDS", 0)
    monkeypatch.setattr(writing, "WRITE", BLOCK)

    def stop(done, total):
        if done > 0.5 * total:
            raise StoppedError

    merge_share(zoo, 1, 2, tmp_path)
    with pytest.raises(StoppedError):
        merge_share(zoo, 0, 2, tmp_path, memory="8MiB", progress=stop)
    assert not (tmp_path / "x").exists()
    said, read = [], []
    merge_share(zoo, 0, 2, tmp_path, note=said.append, progress=lambda done, _: read.append(done))
    assert said
    assert all("going on from" in line and "(its share 0/2), checked" in line for line in said)
    assert read[-1] < 0.6 * sum(tensor.numel * 12 for tensor in zoo.tensors)
    same(tmp_path, expected)


@pytest.mark.parametrize("n", [1, 3], ids=["as one process", "in other ranges"])
def test_what_ranges_have_finished_is_of_use_to_others(zoo, expected, tmp_path, n):
    merge_share(zoo, 1, 2, tmp_path, memory="8MiB")
    read = []
    for index in range(n):
        counts = [0]
        merge_share(
            zoo, index, n, tmp_path, memory="8MiB",
            progress=lambda done, _, counts=counts: counts.append(done),
        )  # fmt: skip
        read.append(counts[-1])
    same(tmp_path, expected)
    assert sum(read) < 0.6 * sum(tensor.numel * 12 for tensor in zoo.tensors)


def test_bytes_of_a_range_that_changed_are_made_again(zoo, expected, tmp_path):
    merge_share(zoo, 1, 2, tmp_path)
    shard = sorted((tmp_path / ".x.partial/output").glob("*.safetensors"))[-1]
    with shard.open("r+b") as file:
        file.seek(-50, 2)
        file.write(b"?")
    said = []
    merge_share(zoo, 1, 2, tmp_path, note=said.append)
    assert "had changed on the disk and are made again" in said[0]
    merge_share(zoo, 0, 2, tmp_path)
    same(tmp_path, expected)


def test_who_is_at_work_publishes_nothing_and_lets_nobody_publish(zoo, expected, tmp_path):
    """A second range ends while the first is still at work; a whole merge is refused meanwhile."""
    seen = []

    def during(done, total):
        if done and not seen:
            seen.append(done)
            merge_share(zoo, 1, 2, tmp_path)
            assert not (tmp_path / "x").exists()
            with pytest.raises(OutputError, match="x: another process is making it"):
                merge_share(zoo, 0, 1, tmp_path)
            with pytest.raises(OutputError, match="x: another process is making it"):
                merge_share(zoo, 0, 2, tmp_path)

    merge_share(zoo, 0, 2, tmp_path, memory="8MiB", progress=during)
    assert seen
    same(tmp_path, expected)


def test_a_range_of_another_merge_is_refused(zoo, tmp_path):
    merge_share(zoo, 1, 2, tmp_path)
    team = OneOfMany(Share(0, 2))
    outs = [tmp_path / name for name in "xy"]
    with pytest.raises(OutputError, match=r"weights was \[0.3, 0.7\], is \[0.5, 0.5\]"):
        ws.merge(zoo, [[0.5, 0.5], [1, -0.5]], outs, max_shard_size="6MB", team=team)


def test_a_refusal_of_the_only_range_leaves_nothing(runs, tmp_path):
    tensors = state(1, shapes=SHAPES) | {"steps": torch.tensor([3])}
    tensors["f"][-1, -1] = torch.nan
    save_model(tmp_path / "bad/1", tensors)
    zoo = ws.open_zoo([runs / "0", tmp_path / "bad/1"], base=runs / "base")
    with pytest.raises(WspaceError, match="'f' has NaN or Inf"):
        merge_share(zoo, 1, 2, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- Gram matrices


def bits(gram):
    return gram.total.view(torch.int64).tolist()


@pytest.mark.parametrize("n", [2, 3, 7])
def test_a_gram_matrix_in_ranges_has_the_bits_of_one(zoo, tmp_path, n, counted):
    expected = ws.gram(zoo, memory="4MiB")
    read = counted[0]
    for index in reversed(range(n)):
        assert save_share(zoo, Share(index, n), tmp_path / "sums", memory="6MiB")
    assert counted[0] == 2 * read
    assert not save_share(zoo, Share(0, n), tmp_path / "sums")
    assert bits(joined(zoo, tmp_path / "sums")) == bits(expected)
    assert counted[0] == 2 * read
    x = torch.stack([_row(member) - _row(zoo.base) for member in zoo.members])
    bound = 2 * torch.finfo(torch.float32).eps * (x.abs() @ x.abs().T)
    assert ((expected.total - x @ x.T).abs() <= bound).all()
    for name, matrix in zip(expected.tensors, expected.per_tensor, strict=True):
        part = torch.stack([_row(m, name) - _row(zoo.base, name) for m in zoo.members])
        bound = 2 * torch.finfo(torch.float32).eps * (part.abs() @ part.abs().T)
        assert ((matrix - part @ part.T).abs() <= bound).all()


def _row(checkpoint, only=None):
    from tests.checkpoints import load

    tensors = load(checkpoint.path)
    names = [only] if only else [n for n in sorted(tensors) if n != "steps"]
    return torch.cat([tensors[name].float().flatten() for name in names]).double()


def test_sums_that_are_not_all_there_or_not_these(zoo, runs, tmp_path):
    folder = tmp_path / "sums"
    with pytest.raises(CheckpointError, match="expected the sums of all of n ranges, found none"):
        joined(zoo, folder)
    save_share(zoo, Share(0, 2), folder)
    with pytest.raises(CheckpointError, match=r"gram-1-of-2.npz: missing; make it with --range"):
        joined(zoo, folder)
    other = ws.open_zoo([runs / "0"], base=runs / "base")
    for refused in (lambda: save_share(other, Share(0, 2), folder), lambda: joined(other, folder)):
        with pytest.raises(CheckpointError, match=r"gram-0-of-2.npz: is of other models"):
            refused()
    with np.load(folder / "gram-0-of-2.npz") as content:
        inputs = content["inputs"]
    np.savez(folder / "gram-1-of-2.npz", pair=np.zeros((2, 3, 3)), inputs=inputs)
    with pytest.raises(CheckpointError, match="expected those of 2 models"):
        joined(zoo, folder)
    (folder / "gram-1-of-2.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match=r"gram-1-of-2.npz: not the sums of a range"):
        joined(zoo, folder)
    save_share(zoo, Share(1, 3), folder)
    with pytest.raises(CheckpointError, match="found of 2 and of 3"):
        joined(zoo, folder)


# ---- recipes


RECIPES = {
    "task_arithmetic": "parameters: {lambda: 0.5}",
    "nuslerp": "parameters: {weight: 0.5, nuslerp_row_wise: true}",
    "model_stock": "",
    "ties": "parameters: {density: 0.4, weight: 1.0}",
    "dare_linear": "parameters: {density: 0.4, weight: {sweep: [0.5, 1.0]}}",
}


def recipe_of(runs, method, parameters=""):
    models = "[{model: 0}, {model: 1}]" if method != "task_arithmetic" else (
        "[{model: 0, parameters: {weight: 0.3}}, {model: 1, parameters: {weight: 0.7}}]"
    )  # fmt: skip
    text = f"merge_method: {method}\nbase_model: base\n{parameters}\nmodels: {models}\n"
    for name in ("0", "1", "base"):
        place = "base_model" if name == "base" else "model"
        text = text.replace(f"{place}: {name}", f"{place}: {runs}/{name}")
    return text


def make(text, folder, **options):
    outputs = plan_outputs(text, Problems("r.yml"))
    places = places_of(outputs, [f"{folder}/{{}}" if len(outputs) > 1 else f"{folder}/out"])
    return merge_outputs(outputs, places, max_shard_size="6MB", **options)


@pytest.mark.parametrize("method", RECIPES)
def test_a_recipe_in_ranges_has_the_bits_of_one(runs, tmp_path, method):
    text = recipe_of(runs, method, RECIPES[method])
    expected = make(text, tmp_path / "expected")
    for index in (2, 0, 1):
        outs = make(text, tmp_path / "found", team=OneOfMany(Share(index, 3)), memory="20MiB")
        assert all(out.exists() is (index == 1) for out in outs)
    assert make(text, tmp_path / "found", team=OneOfMany(Share(2, 3))) == outs  # again
    for out, other in zip(outs, expected, strict=True):
        assert ws.verify(out).ok
        assert {path.name: path.read_bytes() for path in out.iterdir()} == {
            path.name: path.read_bytes() for path in other.iterdir()
        }


def test_tensors_are_shared_out_whole_and_none_twice(runs, tmp_path, counted):
    text = recipe_of(runs, "ties", RECIPES["ties"])
    make(text, tmp_path / "expected")
    whole, counted[0] = counted[0], 0
    reads = []
    for index in range(2):
        make(text, tmp_path / "found", team=OneOfMany(Share(index, 2)))
        reads.append(counted[0])
        counted[0] = 0
    assert sum(reads) == whole
    assert max(reads) < 0.6 * whole


def test_recipes_that_cannot_be_divided_are_refused(runs, tmp_path):
    first = recipe_of(runs, "ties", RECIPES["ties"]) + "\nname: first"
    second = "merge_method: passthrough\nmodels: [{model: first}]"
    refused = {
        recipe_of(runs, "ties/paper", "parameters: {density: 0.4}"): "one threshold for",
        f"{first}\n---\n{second}\n": "some outputs are made of others, for which ranges cannot",
    }
    for text, words in refused.items():
        with pytest.raises(WspaceError, match=words):
            make(text, tmp_path / "found", team=OneOfMany(Share(0, 2)))
    assert list(tmp_path.iterdir()) == []


# ---- the command


def test_the_command_in_ranges(runs, tmp_path, capsys):
    models = [f"{runs}/0", f"{runs}/1", "--base", f"{runs}/base"]
    assert main(["distances", *models]) == 0
    expected = capsys.readouterr().out
    sums = ["--sums", f"{tmp_path}/sums"]
    for part in ("1/2", "0/2", "0/2"):
        assert main(["distances", *models, *sums, "--range", part]) == 0
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.splitlines() == [
        f"range {done}; --sums {tmp_path}/sums without --range joins them"
        for done in ("1/2 is summed", "0/2 is summed", "0/2 is there already")
    ]
    assert main(["distances", *models, *sums]) == 0
    assert capsys.readouterr().out == expected
    assert main(["cluster", *models, "-k", "2", *sums]) == 0
    capsys.readouterr()
    merge = ["merge", *models, "--weights", "1,1", "-o", f"{tmp_path}/out"]
    assert main([*merge, "--range", "1/2"]) == 0
    found = capsys.readouterr()
    assert found.out == ""
    assert "range 1/2 is finished; the last range to finish publishes" in found.err
    assert main([*merge, "--range", "0/2"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/out\n"


REFUSED = {
    "merge {z} --weights 1,1 -o {o} --range 2/2": "range '2/2': expected i/n with i from 0",
    "merge {z} --weights 1,1 -o {o} --range one": "range 'one': expected i/n",
    "merge {z} --weights 1,1 -o {o} --range 0/2 --restart": "--restart with --range would throw",
    "distances {z} --range 0/2": "--range needs --sums FOLDER",
    "distances {z} --range 0/2 --sums {o} --metric l1": "not with l1",
    "cluster {z} -k 1 --sums {o}": "found none; make them with --range",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_refused_in_one_line(runs, tmp_path, capsys, words):
    command = words.format(z=f"{runs}/0 {runs}/1 --base {runs}/base", o=tmp_path / "out")
    assert main(command.split()) == 1
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.count("\n") == 1
    assert found.err.startswith("error: ")
    assert REFUSED[words] in found.err
    assert list(tmp_path.iterdir()) == []


# ---- the parts


def test_spans_hold_whole_cuts_and_blocks():
    assert SPAN % CUT == 0
    for dtype in KERNEL_NAMES:
        assert SPAN * BITS[dtype] // 8 % BLOCK == 0, dtype


def zoo_of(sizes):
    """What of a zoo is needed to divide it."""
    records = [SimpleNamespace(record=SimpleNamespace(dtype="F32"))]
    tensors = [SimpleNamespace(numel=size, stored=records) for size in sizes]
    return SimpleNamespace(tensors=tensors)


SIZES = st.lists(
    st.integers(0, 3 * SPAN) | st.integers(0, 40) | st.just(SPAN), min_size=1, max_size=8
)


@given(SIZES, st.integers(1, 9), st.booleans())
def test_ranges_cover_every_column_once(sizes, n, whole):
    ranges = divided(zoo_of(sizes), [0], n, whole=whole)
    plan = ChunkPlan(tuple(_pieces(sizes)), ("F32",), sum(sizes))
    found = [[(p.tensor, p.start, p.stop) for part in within([plan], columns) for p in part.pieces]
             for columns in ranges]  # fmt: skip
    joined = {}
    for tensor, start, stop in itertools.chain(*found):
        assert joined.get(tensor, 0) == start
        assert start % (SPAN if not whole else 1 << 62) == 0
        joined[tensor] = stop
    assert joined == {k: size for k, size in enumerate(sizes) if size}
    unit = max([SPAN, *sizes] if whole else [SPAN])
    for part in found:
        assert abs(sum(stop - start for _, start, stop in part) - sum(sizes) / n) <= unit


def _pieces(sizes):
    at = 0
    for k, size in enumerate(sizes):
        if size:
            yield Piece(k, 0, size, at)
        at += size


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 8))
def test_items_are_dealt_evenly(sizes, n):
    owners = dealt(sizes, n)
    loads = [sum(s for s, o in zip(sizes, owners, strict=True) if o == k) for k in range(n)]
    assert max(loads) <= sum(sizes) / n + max(sizes, default=0)


def test_a_share_as_text():
    assert parse_share("3/8") == Share(3, 8)
    assert str(Share(3, 8)) == "3/8"
    for text in ("8/8", "-1/8", "1", "1/0", "a/b", "1/2/3", "0x1/2"):
        with pytest.raises(ValueError, match="expected i/n"):
            parse_share(text)
