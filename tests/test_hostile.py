"""Hostile files at the command line: refused in bounded time and memory, with nothing written."""

import json
import os
import re
import socket
import zipfile
from pathlib import Path

import pytest
import torch

from bench.limited import Limited
from tests.checkpoints import entry, load, save_model, save_pickle, save_shards, write_safetensors
from wspace.storage.checkpoints import INDEX
from wspace.storage.headers import MAX_HEADER
from wspace.storage.opening import MAX_TEXT

STATE = {"x": torch.arange(6.0).view(2, 3), "y": torch.ones(4)}
MODEL = ["merge", "model", "--uniform", "-o", "out"]
RECIPE = ["merge", "r.yml", "-o", "out"]
SECONDS = 5
"""Of processor time. Most take some hundredths."""
MEMORY = 256 << 20
"""A header of 100 MB takes twice that, as bytes and as text."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with Limited(tmp_path_factory.mktemp("said")) as limited:

        def run(command, folder, memory=512 << 20):
            return limited.run(command, folder, memory, margin=0, seconds=20)

        yield run


def everything_under(folder):
    return sorted((str(p), p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.rglob("*"))


def pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def listen(path):
    path.unlink()
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(os.path.relpath(path))  # an absolute one may be too long


def link(path, target):
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def sparse(path, length, head):
    with path.open("wb") as file:
        file.write(head)
        file.truncate(length)


def archive(path, compression=zipfile.ZIP_STORED, **changed):
    """What ``torch.save`` wrote, as another archive, with some entries exchanged."""
    save_pickle(path, STATE)
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in parts.items():
            new.writestr(name, changed.get(name.rpartition("/")[2].replace(".", "_"), content))


def grow_entry(path, n):
    """The directory says that the first tensor's entry is ``n`` bytes long."""
    archive(path)
    content = bytearray(path.read_bytes())
    place = content.rfind(b"PK\1\2", 0, content.rfind(b"/data/0"))
    content[place + 20 : place + 28] = n.to_bytes(4, "little") * 2
    path.write_bytes(content)


PAIRS = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
HASHED = b"\x80\x02}K\x01\x85q\0" + PAIRS + b"K\x01s."
"""A dict whose key is a tuple of a tuple twice, and so on: 2**60 objects to hash."""

# what is done to the folder "model", and what is said
MODELS = {
    "header of 2**63 bytes": (
        lambda m: (m / "model.safetensors").write_bytes(b"\0" * 7 + b"\x80{}"),
        "model/model.safetensors: header length 9223372036854775808 does not fit",
    ),
    "header of a gigabyte that is there": (
        lambda m: sparse(m / "model.safetensors", 2 << 30, (1 << 30).to_bytes(8, "little")),
        "model/model.safetensors: header length 1073741824 does not fit",
    ),
    "header of all that is allowed, of zeros": (
        lambda m: sparse(m / "model.safetensors", MAX_HEADER + 8, MAX_HEADER.to_bytes(8, "little")),
        "model/model.safetensors: header is not JSON: Expecting value",
    ),
    "header a million arrays deep": (
        lambda m: write_safetensors(m / "model.safetensors", b"[" * 10**6),
        "model/model.safetensors: header is not JSON: maximum recursion depth",
    ),
    "header of a million empty arrays": (
        lambda m: write_safetensors(m / "model.safetensors", b'{"a":[%b[]]}' % (b"[]," * 10**6)),
        "tensor 'a': expected dtype, shape and data_offsets",
    ),
    "offsets of NaN": (
        lambda m: write_safetensors(
            m / "model.safetensors", {"x": entry() | {"data_offsets": [0, float("nan")]}}, bytes(8)
        ),
        r"tensor 'x': data_offsets: expected two byte offsets, found \[0, nan\]",
    ),
    "a shape that overflows": (
        lambda m: write_safetensors(
            m / "model.safetensors", {"x": entry(shape=[2**40] * 4, offsets=[0, 0])}
        ),
        r"takes 2\*\*63 bytes or more",
    ),
    "a name of a megabyte": (
        lambda m: write_safetensors(m / "model.safetensors", {"\x1b" * 10**6: entry()}, b""),
        r"tensor '\\x1b.* lie outside the 0 bytes of data",
    ),
    "a pipe for weights": (
        lambda m: pipe(m / "model.safetensors"),
        "model/model.safetensors: is no regular file",
    ),
    "a socket for weights": (
        lambda m: listen(m / "model.safetensors"),
        "model/model.safetensors: is no regular file",
    ),
    "a pipe for a config": (lambda m: pipe(m / "config.json"), "model/config.json: is no regular"),
    "a pipe for an index": (lambda m: pipe(m / INDEX), f"model/{INDEX}: is no regular file"),
    "a pipe for a .bin": (lambda m: pipe(m / "pytorch_model.bin"), "bin: is no regular file"),
    "a pipe for an adapter": (
        lambda m: ((m / "config.json").unlink(), pipe(m / "adapter_config.json")),
        "model/adapter_config.json: (cannot be read: )?is no regular file",
    ),
    "a device for weights": (
        lambda m: link(m / "model.safetensors", "/dev/zero"),
        "model/model.safetensors: is no regular file",
    ),
    "a device for a tokenizer": (
        lambda m: link(m / "tokenizer.json", "/dev/zero"),
        "model/tokenizer.json: is no regular file",
    ),
    "a link to itself": (
        lambda m: link(m / "model.safetensors", "model.safetensors"),
        "model/model.safetensors: cannot be read: Too many levels of symbolic links",
    ),
    "weights linked from elsewhere": (
        lambda m: link(m / "model.safetensors", "../other/model.safetensors"),
        "model/model.safetensors: is a link out of its folder, to .*/other/model.safetensors; ",
    ),
    "a config linked from elsewhere": (
        lambda m: link(m / "config.json", "../other/secret"),
        "model/config.json: is a link out of its folder, to .*/other/secret; expected a file of",
    ),
    "a text linked from elsewhere": (
        lambda m: link(m / "notes.txt", (m / "../other/secret").resolve()),
        "model/notes.txt: is a link out of its folder, to .*/other/secret; ",
    ),
    "a link to a link out of the folder": (
        lambda m: (link(m / "inner", "../other/secret"), link(m / "a.json", "inner")),
        "model/a.json: is a link out of its folder, to .*/other/secret; ",
    ),
    "an index out of the folder": (
        lambda m: (m / INDEX).write_text('{"weight_map": {"x": "../other/model.safetensors"}}'),
        "shard '../other/model.safetensors' is not a file name in this folder",
    ),
    "an index of more than there may be": (
        lambda m: sparse(m / INDEX, MAX_TEXT + 1, b"{"),
        f"{INDEX}: cannot be read: has 100000001 bytes, expected at most 100000000",
    ),
    "an index that names one of two shards": (
        lambda m: (
            save_shards(m, {"x": STATE["x"]}, {"y": STATE["y"]}),
            (m / INDEX).write_text('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}'),
        ),
        "shard model-00002-of-00002.safetensors is in the folder, but not in it",
    ),
    "a compressed .bin": (
        lambda m: (
            (m / "model.safetensors").unlink(),
            archive(m / "pytorch_model.bin", zipfile.ZIP_DEFLATED, data_pkl=b"]" * (64 << 20)),
        ),
        r"entry '.*' is compressed, \d+ bytes for \d+; expected it stored as it is, as torch.save",
    ),
    "an entry longer than its file": (
        lambda m: ((m / "model.safetensors").unlink(), grow_entry(m / "pytorch_model.bin", 10**9)),
        r"entry '.*/data/\d' has 1000000000 bytes from byte \d+ on; expected it to end before",
    ),
    "an entry that runs into the next": (
        lambda m: ((m / "model.safetensors").unlink(), grow_entry(m / "pytorch_model.bin", 200)),
        r"entry '.*/data/\d' has 200 bytes from byte \d+ on; expected it to end before byte",
    ),
    "a .bin with bytes after its end": (
        lambda m: (
            (m / "model.safetensors").unlink(),
            archive(m / "pytorch_model.bin"),
            os.truncate(m / "pytorch_model.bin", 2000),
        ),
        "expected the end of the archive in the file's last 22 bytes",
    ),
    "a .bin with a key that no time is enough to hash": (
        lambda m: (
            (m / "model.safetensors").unlink(),
            archive(m / "pytorch_model.bin", data_pkl=HASHED),
        ),
        "pytorch_model.bin: its pickle has tuples of over 20000000 objects",
    ),
    "a .bin that calls a function": (
        lambda m: (
            (m / "model.safetensors").unlink(),
            archive(m / "pytorch_model.bin", data_pkl=b"cposix\nsystem\nX\x06\0\0\0touch x\x85R."),
        ),
        "(weights-only loader refuses it|is no archive of torch.save)",
    ),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model", "other"):
        save_model(tmp_path / name, STATE, {"dtype": "float32"})
    (tmp_path / "other/secret").write_text('{"token": "a key"}')
    return tmp_path


def assert_refused(result, words, folder, before):
    assert re.search(words, result.err), result
    assert result.err.startswith("error: ")
    assert (result.err.count("\n"), result.status, result.out) == (1, 1, ""), result
    assert len(result.err) < 1000
    assert result.err[:-1].isprintable()
    assert result.seconds < SECONDS
    assert result.peak < MEMORY, f"{result.peak / 2**20:.0f} MiB"
    assert everything_under(folder) == before


@pytest.mark.parametrize("case", MODELS)
def test_files_that_lie_are_refused(run, folder, case):
    spoil, words = MODELS[case]
    spoil(folder / "model")
    before = everything_under(folder)
    assert_refused(run(MODEL, folder, memory=1 << 30), words, folder, before)


ALIASES = "\n".join(
    ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    + [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 30)]
)
MERGED = "\n".join(
    ["a0: &a0 {x: 1}"]
    + [f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 10)}]}}" for k in range(1, 30)]
)
SWEPT = "models: [{model: model, parameters: {weight: {sweep: [%s]}}}]\nmerge_method: linear\n%s"

RECIPES = {
    "an alias of aliases of aliases": (ALIASES, r"r.yml:\d+: an alias that repeats without end"),
    "merged mappings of merged mappings": (MERGED, r"r.yml:\d+: an alias that repeats"),
    "an alias of itself": ("a: &a {b: *a}", "r.yml:1: an alias that repeats without end"),
    "ten thousand lists deep": ("[" * 10**4, "r.yml: nested too deeply"),
    "a hundred thousand mappings deep": ("? " * 10**5, "r.yml: nested too deeply"),
    "ten thousand documents": ("---\na: 1\n" * 10**4, r"r.yml: \d+ outputs, expected at most 1000"),
    "more than a recipe may have": (
        "#" * (1 << 20),
        "r.yml: cannot be read: has 1048576 bytes, ex",
    ),
    "a sweep of a long text": (
        SWEPT % (", ".join(map(str, range(999))), "#" * 10**5),
        r"r.yml: \d+ characters, with all documents and sweeps written out; expected at most",
    ),
    "many sweeps": (
        "a: [" + ", ".join(f"{{k{k}: {{sweep: [1, 2]}}}}" for k in range(64)) + "]",
        "18446744073709551616 outputs: the sweeps make more than 1000",
    ),
    "a sweep of itself": ("a: &a\n  sweep:\n  - 1\n  - *a\n", "r.yml"),
    "a binary file": (b"\x80\x02}q\0.", "r.yml: not a text in UTF-8"),
    "a NUL": (b"a: \0", "r.yml: not YAML: unacceptable character #x0000"),
    "a NUL after a separator": (b"---\n---\nb: \0", "r.yml: not YAML: unacceptable character"),
    "an object of Python": ("a: !!python/name:os.system ''", "r.yml:1:4: not YAML"),
    "a truth that is none": ("a: !!bool 3", "r.yml:1: '3' is not of type bool"),
    "a number beyond numbers": (
        "a: " + ":".join(["1"] * 500) + ".5",
        "r.yml:1: '1:1.* is not of type float",
    ),
    "a model with a name too long": (
        f"merge_method: linear\nmodels: [{{model: {'x' * 5000}, parameters: {{weight: 1}}}}]",
        "r.yml:2: x* ?.*File name too long",
    ),
    "a name of several lines": (
        'merge_method: linear\nmodels: [{model: "a\\nb\\e[2J", parameters: {weight: 1}}]',
        r"r.yml:2: a b\\x1b\[2J: no such file or folder",
    ),
}


@pytest.mark.parametrize("case", RECIPES)
def test_recipes_that_lie_are_refused(run, folder, case):
    content, words = RECIPES[case]
    content = content if isinstance(content, bytes) else content.encode()
    (folder / "r.yml").write_bytes(content)
    before = everything_under(folder)
    result = run(RECIPE, folder)
    # a problem of the recipe is a line, and there may be several
    first = result.err.splitlines()[-1] + "\n" if result.err else ""
    assert_refused(result._replace(err=first), words, folder, before)
    assert result.err.count("error: ") + result.err.count("warning: ") == result.err.count("\n")


def test_a_pipe_for_a_recipe_is_not_waited_for(run, folder):
    pipe(folder / "r.yml")
    before = everything_under(folder)
    words = "r.yml: cannot be read: is no regular file"
    assert_refused(run(RECIPE, folder), words, folder, before)


def test_the_limits_are_there(run, folder):
    """What takes too much would be seen."""
    path = folder / "model/model.safetensors"
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    text = content[8:end] + b" " * (32 << 20)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
    assert run(MODEL, folder).peak > 32 << 20
    # with less than a thread needs to begin, Python's start of one waits for ever
    refused = run([*MODEL[:-1], "again"], folder, memory=4 << 20)
    assert refused.status == 1 and refused.err == "error: MemoryError\n"


def test_no_name_of_a_recipe_leads_out_of_the_outputs_folder(run, folder):
    text = (SWEPT % ("1, 2", "")).replace("weight:", 'weight: 1, "../../evil":')
    (folder / "r.yml").write_text(text)
    before = everything_under(folder.parent)
    result = run(RECIPE, folder)
    assert result.status == 0, result.err
    made = {str(p.relative_to(folder)) for p in folder.glob("out/*")}
    assert made == {"out/.._.._evil=1", "out/.._.._evil=2"}
    assert {p for p, _, _ in everything_under(folder.parent)} > {p for p, _, _ in before}
    assert not (folder.parent / "evil=1").exists()


def test_links_inside_a_folder_are_followed(run, folder):
    (folder / "model/model.safetensors").rename(folder / "model/weights")
    link(folder / "model/model.safetensors", "weights")
    assert run(MODEL, folder).status == 0
    assert load(folder / "out").keys() == STATE.keys()


@pytest.mark.parametrize("shared", [False, True], ids=["of a repository", "of the cache"])
def test_the_cache_of_the_hub_is_followed(run, folder, shared):
    """Snapshots are links to blobs; those may be links to blobs that repositories share."""
    repository = folder / "hub/models--a--b"
    snapshot, blobs = repository / "snapshots/0123abcd", repository / "blobs"
    (repository / "snapshots").mkdir(parents=True)
    (folder / "model").rename(snapshot)
    for number, file in enumerate(sorted(snapshot.iterdir())):
        blobs.mkdir(exist_ok=True)
        file.rename(blobs / str(number))
        if shared:
            other = folder / "hub/blobs/ab"
            other.mkdir(parents=True, exist_ok=True)
            (blobs / str(number)).rename(other / f"ab{number}")
            link(blobs / str(number), f"../../blobs/ab/ab{number}")
        link(file, f"../../blobs/{number}")
    result = run(["merge", snapshot, "--uniform", "-o", "out"], folder)
    assert result.status == 0, result.err
    assert json.loads((folder / "out/config.json").read_text()) == {"dtype": "float32"}
    link(snapshot / "config.json", "../../../../other/secret")
    result = run(["merge", snapshot, "--uniform", "-o", "again"], folder)
    assert re.search("config.json: is a link out of its folder", result.err)
    assert not Path(folder / "again").exists()
