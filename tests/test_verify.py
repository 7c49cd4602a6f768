"""Outputs carry checksums, and reading them again finds any bit that changed, and names it."""

import json
import os
from random import Random

import pytest
import torch

import wspace as ws
from tests.checkpoints import save_model
from tests.recipes import plan
from wspace import sinks
from wspace.cli.main import main
from wspace.errors import CheckpointError
from wspace.recipes import merge_recipe
from wspace.storage.checksums import BLOCK, checksum, checksum_of_blocks
from wspace.storage.headers import read_header


def state(seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (700, 600), "b": (7,), "c": (64, 512), "d": (), "e": (0, 3)}
    return {n: torch.randn(s, generator=generator) for n, s in shapes.items()}


@pytest.fixture
def out(tmp_path):
    """A merge in two shards."""
    for seed in range(2):
        save_model(tmp_path / f"runs/{seed}", state(seed) | {"steps": torch.tensor([3])}, {"x": 1})
    zoo = ws.open_zoo(f"{tmp_path}/runs/*")
    return ws.merge(zoo, [0.5, 0.5], tmp_path / "out", max_shard_size="1.7MB")[0]


@pytest.mark.parametrize("memory", ["1MiB", "1GiB"])  # chunks that are less than a block, and more
def test_kernels_take_the_checksums_that_xxhash_gives(out, tmp_path, monkeypatch, memory):
    monkeypatch.setattr(sinks, "digest_function", lambda: 0)
    zoo = ws.open_zoo(f"{tmp_path}/runs/*")
    other = ws.merge(zoo, [0.5, 0.5], tmp_path / "other", memory=memory)[0]
    assert checksums(other)["tensors"] == checksums(out)["tensors"]


def flip(file, position, bit=0):
    with file.open("r+b") as opened:
        opened.seek(position)
        (byte,) = opened.read(1)
        opened.seek(position)
        opened.write(bytes([byte ^ 1 << bit]))


def checksums(out):
    return json.loads((out / "wspace.json").read_text())["checksums"]


def test_a_whole_output_is_verified(out):
    found = ws.verify(out)
    assert found.ok
    assert found.damages == ()
    assert (found.tensors, found.files) == (6, 4)
    names = {file.name for file in out.iterdir()} - {"wspace.json"}
    assert checksums(out)["files"].keys() == names


def test_checksums_are_as_documented(out):
    for shard in out.glob("*.safetensors"):
        data = shard.read_bytes()
        for name, record in read_header(shard).tensors.items():
            content = data[record.start : record.start + record.nbytes]
            blocks = [content[k : k + BLOCK] for k in range(0, len(content), BLOCK)]
            expected = checksum_of_blocks(map(checksum, blocks))
            assert checksums(out)["tensors"][name] == expected
    assert checksums(out)["tensors"].keys() == {*state(0), "steps"}


def test_they_do_not_depend_on_chunks_or_shards(out, tmp_path):
    zoo = ws.open_zoo(f"{tmp_path}/runs/*")
    for options in ({"memory": "2MiB"}, {"max_shard_size": 1}):
        (other,) = ws.merge(zoo, [0.5, 0.5], tmp_path / f"other-{len(options)}", **options)
        assert checksums(other)["tensors"] == checksums(out)["tensors"]
        (tmp_path / "other-1").rename(tmp_path / f"done-{next(iter(options))}")


@pytest.mark.parametrize("name", ["a", "b", "c", "d", "steps"])
def test_one_flipped_bit_is_found_and_its_tensor_named(out, name):
    file = next(f for f in out.glob("*.safetensors") if name in read_header(f).tensors)
    record = read_header(file).tensors[name]
    for position in {record.start, record.start + record.nbytes - 1}:
        flip(file, position)
        found = ws.verify(out)
        assert [damage[:3] for damage in found.damages] == [("tensor", name, file.name)]
        assert found.damages[0].problem == "its bytes have another checksum"
        flip(file, position)
    assert ws.verify(out).ok


def test_a_flipped_bit_of_any_file_is_told(out):
    """Headers, index and config as a whole, and of the weights some."""
    random, flipped = Random(0), 0
    for file in sorted(out.iterdir()):
        size = file.stat().st_size
        start = data_start(file) if file.suffix == ".safetensors" else size
        places = [*random.sample(range(start), min(start, 60)), size - 1]
        places += [random.randrange(start, size) for _ in range(8) if start < size]
        for position in places:
            bit = random.randrange(8)
            flip(file, position, bit)
            try:
                told = any(file.name == damage.file for damage in ws.verify(out).damages)
            except CheckpointError as error:
                told = str(file) in str(error)
            assert told, (file.name, position, bit)
            flip(file, position, bit)
            flipped += 1
    assert ws.verify(out).ok
    assert flipped > 200


def data_start(file):
    return min(record.start for record in read_header(file).tensors.values())


def test_files_that_differ_are_named(out):
    flip(out / "config.json", 3)
    (out / "model.safetensors.index.json").unlink()
    shard = out / "model-00001-of-00002.safetensors"
    text = shard.read_bytes()
    at = text.index(b'"format":"pt"') + 10
    shard.write_bytes(text[:at] + b"xx" + text[at + 2 :])
    os.truncate(out / "model-00002-of-00002.safetensors", 5000)
    (out / "notes.txt").write_text("added since")
    found = {damage.name: damage.problem for damage in ws.verify(out).damages}
    lost = {n for n in found if n not in checksums(out)["files"]}
    assert found.pop("config.json") == "it has another checksum"
    assert found.pop("model.safetensors.index.json") == "cannot be read: No such file or directory"
    assert found.pop("model-00001-of-00002.safetensors") == "its header has another checksum"
    assert "lie outside the" in found.pop("model-00002-of-00002.safetensors")
    assert set(found) == lost
    assert set(found.values()) == {"is in no file that can be read"}


def test_recipes_have_checksums_too(tmp_path):
    for seed in range(2):
        save_model(tmp_path / f"runs/{seed}", state(seed))
    text = f"merge_method: ties\nbase_model: {tmp_path}/runs/0\nparameters: {{density: 0.5}}\n"
    text += f"models: [{{model: {tmp_path}/runs/1, parameters: {{weight: 1.0}}}}]"
    out = merge_recipe(plan(text)[0], tmp_path / "out")
    found = ws.verify(out)
    assert found.ok
    assert found.tensors == 5
    flip(out / "model.safetensors", (out / "model.safetensors").stat().st_size - 1)
    assert not ws.verify(out).ok


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "not an output of wspace: wspace.json cannot be read: No such file"),
        ("{", "wspace.json: expected a JSON object; it is damaged"),
        ("[]", "wspace.json: expected a JSON object; it is damaged"),
        ("[" * 100_000, "wspace.json: expected a JSON object; it is damaged"),
        ("{}", "wspace.json: has no checksums; an older version of wspace made it"),
        ('{"checksums": 3}', "wspace.json: its checksums are damaged"),
        ('{"checksums": {"algorithm": "x", "block": 1, "tensors": {}, "files": {}}}',
         r"checksums of kind \('x', 1\); this version knows"),
        ('{"checksums": {"algorithm": "xxh3_128", "block": 262144, "tensors": {}, '
         '"files": {"../x": ""}}}', "'../x' is not a file name in this folder"),
    ],
)  # fmt: skip
def test_records_that_say_nothing_are_refused(tmp_path, text, words):
    if text is not None:
        (tmp_path / "wspace.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        ws.verify(tmp_path)


def test_any_change_of_the_record_is_found(out):
    record = out / "wspace.json"
    whole = record.read_bytes()
    for position in range(0, len(whole), 7):
        flip(record, position)
        with pytest.raises(CheckpointError, match=r"wspace\.json"):
            ws.verify(out)
        record.write_bytes(whole)
    assert ws.verify(out).ok


def test_the_command(out, capsys):
    assert main(["verify", str(out)]) == 0
    assert "6 tensors and 4 files (1.81 MB) are as they were written" in capsys.readouterr().out
    assert main(["verify", str(out), "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    file = out / "model-00001-of-00002.safetensors"
    flip(file, read_header(file).tensors["a"].start)
    assert main(["verify", str(out)]) == 1
    said = capsys.readouterr()
    assert said.err == f"error: {out}: differs from what was written: a\n"
    assert "its bytes have another checksum" in said.out
    assert main(["verify", str(out), "--format", "json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert [damage["name"] for damage in found["damages"]] == ["a"]
