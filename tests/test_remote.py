"""Checkpoints by URL, from real servers: the same bits, each byte once, whatever goes wrong."""

import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict

import pytest
import torch

import wspace as ws
from tests.adapters import adapter
from tests.checkpoints import assert_same, load
from tests.recipes import merged
from tests.servers import FAULTS, Hub, ObjectStore, RangeServer, first
from tests.zoos import save, state
from wspace.cli.main import main
from wspace.errors import BudgetError, CheckpointError, OutputError, WspaceError
from wspace.storage import asking, reading, remote, writing
from wspace.stream import reading_workspace

SHAPES = {"a": (300, 700), "b": (7,), "c": (64, 512), "d": (), "e": (0, 3), "f": (900, 100)}
WEIGHTS = [[0.3, 0.4]]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "fedcba98" * 5
SMALL = {"config.json": '{"model_type": "x"}', "tokenizer.json": '{"model": {"vocab": {}}}'}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """``base``, ``run-0`` and ``run-1``: one file, two shards with an index, three without."""
    root = tmp_path_factory.mktemp("files")
    base = state(9, shapes=SHAPES)
    kinds = {"base": {}, "run-0": {"shards": 2}, "run-1": {"shards": 3}}
    for seed, (name, layout) in enumerate(kinds.items()):
        tensors = base if name == "base" else state(seed, shapes=SHAPES, like=base)
        save(root / name, tensors | {"steps": torch.tensor([3])}, **layout)
        for file, text in SMALL.items():
            (root / name / file).write_text(text)
    return root


@pytest.fixture(scope="module")
def expected(root, tmp_path_factory):
    """Tensors of the local merge."""
    out = tmp_path_factory.mktemp("expected") / "out"
    ws.merge(local(root), WEIGHTS, out)
    return load(out)


@pytest.fixture
def server(root):
    with RangeServer(root) as server:
        yield server


@pytest.fixture
def copied(root, tmp_path):
    """A server of files that a test may change."""
    with RangeServer(shutil.copytree(root, tmp_path / "files")) as server:
        yield server


@pytest.fixture(scope="session")
def store():
    with ObjectStore() as store:
        yield store


@pytest.fixture
def bucket(store, root, monkeypatch):
    """``s3://zoo`` holds the files."""
    import s3fs

    for name, value in {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "hidden",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": store.url,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    if not files.exists("zoo"):
        files.mkdir("zoo")
    for file in root.glob("*/*"):
        files.pipe_file(f"zoo/{file.parent.name}/{file.name}", file.read_bytes())
    store.log.clear()
    store.log.fault = lambda request: None
    return files


@pytest.fixture
def hub(root, tmp_path, monkeypatch):
    """``hf://org/base`` and so on, whose main branch is at ``COMMIT``."""
    from huggingface_hub import constants

    shutil.copytree(root, tmp_path / "hub" / COMMIT / "org")
    with Hub(tmp_path / "hub", main=COMMIT) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(asking, "PAUSE", 0.002)
    monkeypatch.setattr(reading, "FAR_REQUEST", 100_000)  # a dozen ranges a model


@pytest.fixture(params=["http", "listing", "s3", "hf"])
def place(request):
    """Where the files are: the URL of their folder, and the log of who serves them."""
    if request.param == "s3":
        request.getfixturevalue("bucket")
        return "s3://zoo", request.getfixturevalue("store").log
    if request.param == "hf":
        return "hf://org", request.getfixturevalue("hub").log
    server = request.getfixturevalue("server")
    server.listing = request.param == "listing"
    return server.url, server.log


def local(root):
    return ws.open_zoo([root / "run-0", root / "run-1"], base=root / "base")


def zoo_at(url):
    return ws.open_zoo([f"{url}/run-0", f"{url}/run-1/"], base=f"{url}/base")


def read_once(log, root):
    """Whether what was asked for are all bytes of all weights, once each."""
    asked = defaultdict(list)
    for path, start, stop in log.ranges():
        asked[path].append((start, stop))
    for path, ranges in asked.items():  # in order, and the next begins where one ends
        assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])], path
    sizes = sorted(file.stat().st_size for file in root.glob("*/*.safetensors"))
    whole = [r for r in log.requests if r.method == "GET" and r.path in asked and r.start is None]
    return not whole and sorted(ranges[-1][1] for ranges in asked.values()) == sizes


def files_below(*folders):
    return {file.name for folder in folders for file in folder.rglob("*") if file.is_file()}


def test_the_same_bits_and_every_byte_once(place, root, expected, tmp_path, monkeypatch):
    url, log = place
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    zoo = zoo_at(url)
    ws.merge(zoo, WEIGHTS, tmp_path / "out")
    assert read_once(log, root)
    assert not [
        name for name in files_below(tmp_path / "temporary") if name.endswith(".safetensors")
    ]
    assert_same(load(tmp_path / "out"), expected)
    assert files_below(tmp_path / "out") >= SMALL.keys()
    record = json.loads((tmp_path / "out" / "wspace.json").read_text())
    assert record["made"]["models"] == [f"{url}/run-0", f"{url}/run-1"]
    assert all(stamp["version"] for stamp in record["inputs"].values())
    assert len(record["inputs"]) == 6 + 3  # weights and configs
    assert "hidden" not in json.dumps(record)


def test_every_other_way_in(server, root, tmp_path, capsys):
    url = server.url
    assert torch.equal(ws.gram(zoo_at(url)).total, ws.gram(local(root)).total)
    one = ws.open_checkpoint(f"{url}/base/model.safetensors")
    assert one.tensors == ws.open_checkpoint(root / "base").tensors
    for command in (["inspect", "--statistics"], ["distances"]):
        said = []
        for where in (url, root):
            models = [f"{where}/run-0", f"{where}/run-1", "--base", f"{where}/base"]
            assert main([command[0], *models, *command[1:], "--format", "json"]) == 0
            said.append(json.loads(capsys.readouterr().out))
        assert said[0] == said[1]
    recipe = (
        "merge_method: {}\nbase_model: {}/base\nparameters: {{weight: 0.4, density: 0.5}}\n"
        "models: [{{model: {}/run-0}}, {{model: {}/run-1}}]\n"
    )
    for method in ("ties", "slerp"):
        text = recipe if method == "ties" else recipe.replace(", {{model: {}/run-1}}", "").replace(
            "weight: 0.4, density: 0.5", "t: 0.3"
        )  # fmt: skip
        found = [
            merged(text.format(method, *[where] * 3), tmp_path / f"{method}-{k}")
            for k, where in enumerate((url, root))
        ]
        assert_same(*found)
    assert not [name for name in files_below(tmp_path) if name.endswith("partial")]


def test_adapters(root, tmp_path, server, expected):
    shutil.copytree(root / "base", tmp_path / "files" / "base")
    adapter(tmp_path / "files" / "lora", 1, {"layer.a": (300, 700)})
    save(tmp_path / "files" / "model", {"layer.a.weight": state(1, shapes=SHAPES)["a"]})
    with RangeServer(tmp_path / "files") as own:
        url, here = own.url, tmp_path / "files"
        for name, names in {
            "member": ([f"{url}/lora"], f"{url}/model"),
            "joined": ([f"{url}/model+{url}/lora"], None),
            "mixed": ([f"{here}/lora"], f"{url}/model"),
        }.items():  # fmt: skip
            ws.merge(ws.open_zoo(names[0], base=names[1]), [[1.0]], tmp_path / name)
    ws.merge(ws.open_zoo(here / "lora", base=here / "model"), [[1.0]], tmp_path / "here")
    for name in ("member", "joined", "mixed"):
        assert_same(load(tmp_path / name), load(tmp_path / "here"))


@pytest.mark.parametrize("kind", ["s3", "listing"])
def test_patterns(kind, server, request):
    server.listing = True
    if kind == "s3":
        request.getfixturevalue("bucket")
    url = "s3://zoo" if kind == "s3" else server.url
    zoo = ws.open_zoo(f"{url}/run-*", base=f"{url}/base")
    assert [str(member) for member in zoo.members] == [f"{url}/run-0", f"{url}/run-1"]
    with pytest.raises(CheckpointError, match="matches no checkpoint"):
        ws.open_zoo(f"{url}/nothing-*")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_may_pass_is_tried_again(server, expected, tmp_path, monkeypatch, fault):
    if fault == "late":
        monkeypatch.setattr(asking, "TIMEOUT", 0.25)
    n = 2 if fault == "late" else 5
    server.log.fault = first(n, fault)
    ws.merge(zoo_at(server.url), WEIGHTS, tmp_path / "out")
    assert_same(load(tmp_path / "out"), expected)
    again = len(server.log.ranges()) - len(set(server.log.ranges()))
    assert again == n or (fault == "late" and again > n)


def test_object_stores_that_are_busy(bucket, store, root, expected, tmp_path):
    store.log.fault = first(2, "busy")
    ws.merge(zoo_at("s3://zoo"), WEIGHTS, tmp_path / "out")
    assert_same(load(tmp_path / "out"), expected)


def test_any_faults_end_in_the_right_output_or_one_clear_line(
    server, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(writing, "COMMIT_SECONDS", 0)
    monkeypatch.setattr(asking, "ATTEMPTS", 3)
    draw = random.Random(7)
    kinds = [*FAULTS[:-1] * 2, "whole", "refused"]
    server.log.fault = lambda request: draw.choice(kinds) if draw.random() < 0.06 else None
    ended = {"right": 0, "refused": 0}
    for k in range(12):
        out = tmp_path / str(k)
        try:
            ws.merge(zoo_at(server.url), WEIGHTS, out)
        except WspaceError as error:
            assert "\n" not in str(error) and server.url in str(error)
            assert not out.exists()
            ended["refused"] += 1
        else:
            assert_same(load(out), expected)
            ended["right"] += 1
    assert all(ended.values()), ended


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("drop", "disconnected"), ("cut", "not enough data|ContentLength"), ("busy", "503 Service"),
        ("short", r"\d+ bytes came from byte \d+ on, expected"), ("late", "silent for too long"),
        ("refused", "403 Forbidden"), ("whole", "range requests"),
    ],
)  # fmt: skip
def test_what_does_not_pass_is_one_line(server, tmp_path, capsys, monkeypatch, fault, said):
    monkeypatch.setattr(asking, "ATTEMPTS", 2)
    if fault == "late":
        monkeypatch.setattr(asking, "TIMEOUT", 0.25)
    url = server.url
    server.log.fault = lambda request: fault if (request.start or 0) > 100_000 else None
    started = time.monotonic()
    models = [f"{url}/run-0", f"{url}/run-1", "--base", f"{url}/base", "--uniform"]
    assert main(["merge", *models, "-o", str(tmp_path / "out"), "--quiet"]) == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"error: {url}/"), captured.err
    assert re.search(said, lines[0]), lines[0]
    assert not (tmp_path / "out").exists() and captured.out == ""
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("how", ["etag", "unchecked", "shorter", "gone"])
def test_a_file_that_changes(copied, tmp_path, how):
    copied.checks_etags = how != "unchecked"
    file = copied.root / "run-1" / "model-00001-of-00003.safetensors"
    zoo = zoo_at(copied.url)
    content = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-1] if how == "shorter" else content[:-1] + b"\1")
    with pytest.raises(CheckpointError) as caught:
        ws.merge(zoo, WEIGHTS, tmp_path / "out")
    line = str(caught.value)
    assert line.startswith(f"{copied.url}/run-1/{file.name}: changed while it was being read"), line
    now = {
        "shorter": f"{len(content)} bytes before, {len(content) - 1} now",
        "gone": "gone",
    }.get(how, f'version "{len(content)}-')
    assert now in line
    # seen at once where the server compares ETags, else at the end
    assert ("nothing was published" in line) == (how == "unchecked"), line
    assert not (tmp_path / "out").exists()


def test_an_object_that_changes(bucket, root, tmp_path):
    zoo = zoo_at("s3://zoo")
    name = "run-0/model-00001-of-00002.safetensors"
    content = (root / name).read_bytes()
    bucket.pipe_file(f"zoo/{name}", content[:-1] + b"\1")
    with pytest.raises(CheckpointError, match=f"s3://zoo/{name}: changed while .* before, .* now"):
        ws.merge(zoo, WEIGHTS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_bucket_that_does_not_list_its_files(bucket, store, expected, tmp_path):
    store.log.fault = lambda request: "refused" if request.path.strip("/") == "zoo" else None
    zoo = ws.open_zoo(["s3://zoo/run-0"], base="s3://zoo/base")
    ws.merge(zoo, [[0.0]], tmp_path / "out")
    assert files_below(tmp_path / "out") >= SMALL.keys()
    with pytest.raises(
        CheckpointError, match=r"^s3://zoo/none: cannot be read: HTTP 403 Forbidden"
    ):
        ws.open_checkpoint("s3://zoo/none")


def test_a_branch_that_moves(hub, root, expected, tmp_path):
    with_other = hub.root / OTHER / "org"
    for name in ("base", "run-0", "run-1"):
        save(with_other / name, state(77, shapes=SHAPES) | {"steps": torch.tensor([3])})
    zoo = zoo_at("hf://org")
    hub.branches["main"] = OTHER
    ws.merge(zoo, WEIGHTS, tmp_path / "out")
    assert_same(load(tmp_path / "out"), expected)
    record = json.loads((tmp_path / "out" / "wspace.json").read_text())
    assert record["made"]["base"] == "hf://org/base"
    assert {path.split("/")[3] for path in record["inputs"]} == {
        f"{name}@{COMMIT}" for name in ("base", "run-0", "run-1")
    }
    moved = ws.open_checkpoint("hf://org/run-0")
    assert moved.path != zoo.members[0].path
    assert ws.open_checkpoint(f"hf://org/run-0@{COMMIT}").stamps == zoo.members[0].stamps
    for name in ("hf://org/none", "hf://org/base@none"):
        with pytest.raises(CheckpointError, match=f"^{name}: cannot be opened: HTTP 404 Not Found"):
            ws.open_checkpoint(name)


def journaled(out):
    """Bytes that the journal of one who is at work says are finished."""
    journal = out.parent / f".{out.name}.partial" / "journal"
    lines = journal.read_text().split("\n")[:-1] if journal.exists() else []
    return sum(int(line.split()[2]) for line in lines)


def wait_for(out, nbytes):
    until = time.monotonic() + 120
    while journaled(out) < nbytes and time.monotonic() < until:
        time.sleep(0.01)


def cut_off(server, out, at, **options):
    """A merge that stops because the server does, at a byte of each file, when the two blocks
    before it are finished."""

    def fault(request):
        if (request.start or 0) <= at:
            return None
        wait_for(out, 500_000)
        return "refused"

    server.log.fault = fault
    with pytest.raises(CheckpointError, match="cannot be read: HTTP 403"):
        ws.merge(zoo_at(server.url), WEIGHTS, out, **options)
    assert not out.exists()
    server.log.fault = lambda request: None
    server.log.clear()


def test_it_goes_on(copied, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "COMMIT_SECONDS", 0)
    out, notes = tmp_path / "out", []
    options = {"memory": remote.FAR_WORKSPACE + (2 << 20), "note": notes.append}
    cut_off(copied, out, 600_000, **options)
    zoo = zoo_at(copied.url)
    ws.merge(zoo, WEIGHTS, out, **options)
    assert_same(load(out), expected)
    assert "going on from" in notes[-1]
    read = sum(stop - start for _, start, stop in copied.log.ranges())
    assert read < 0.8 * sum(file.stat().st_size for file in copied.root.glob("*/*.safetensors"))


def test_it_does_not_go_on_from_other_bytes(copied, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "COMMIT_SECONDS", 0)
    out, options = tmp_path / "out", {"memory": remote.FAR_WORKSPACE + (2 << 20)}
    cut_off(copied, out, 600_000, **options)
    file = copied.root / "run-0" / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    changed = f"{copied.url}/run-0/{file.name} has changed .version .* before, .* now"
    with pytest.raises(OutputError, match=changed):
        ws.merge(zoo_at(copied.url), WEIGHTS, out, **options)
    ws.merge(zoo_at(copied.url), WEIGHTS, out, restart=True, **options)
    ws.merge(local(copied.root), WEIGHTS, tmp_path / "here")
    assert_same(load(out), load(tmp_path / "here"))


def test_it_goes_on_after_a_kill(server, expected, tmp_path):
    """SIGKILL in the middle: the server keeps the rest back until then."""
    url, out = server.url, tmp_path / "out"
    command = [sys.executable, "-m", "wspace", "merge", f"{url}/run-0", f"{url}/run-1"]
    command += ["--base", f"{url}/base", "--weights", "0.3,0.4", "-o", str(out)]
    command += ["--memory", str(remote.FAR_WORKSPACE + (2 << 20))]
    server.late = 1.5
    server.log.fault = lambda request: "late" if (request.start or 0) > 600_000 else None
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for(out, 1)
    process.kill()
    process.wait()
    assert not out.exists()
    server.log.fault = lambda request: None
    server.log.clear()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "going on from" in again.stderr
    assert_same(load(out), expected)


def test_the_budget_holds_what_servers_send(server, root):
    zoo = zoo_at(server.url)
    tensors = [tensor.stored for tensor in zoo.tensors]
    more = reading_workspace(zoo.checkpoints, tensors) - reading_workspace(
        local(root).checkpoints, tensors
    )
    assert more == remote.FAR_WORKSPACE == 2 * remote.FAR_THREADS * remote.FAR_REQUEST
    with pytest.raises(BudgetError):
        ws.gram(zoo, memory=remote.FAR_WORKSPACE)
    ws.gram(local(root), memory=remote.FAR_WORKSPACE)


def test_outputs_are_verified_where_they_are(root, tmp_path, capsys):
    ws.merge(local(root), WEIGHTS, tmp_path / "files" / "out")
    with RangeServer(tmp_path / "files") as server:
        assert main(["verify", f"{server.url}/out"]) == 0
        file = tmp_path / "files" / "out" / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
        assert main(["verify", f"{server.url}/out"]) == 1
        assert "its bytes have another checksum" in "".join(capsys.readouterr())


def test_whatever_fsspec_knows(root, expected, tmp_path):
    import fsspec

    files = fsspec.filesystem("memory")
    files.put(str(root), "/zoo", recursive=True)
    ws.merge(zoo_at("memory://zoo"), WEIGHTS, tmp_path / "out")
    assert_same(load(tmp_path / "out"), expected)
    files.rm("/zoo", recursive=True)
    with pytest.raises(CheckpointError, match=r"^memory://zoo/base: no such file or folder"):
        ws.open_checkpoint("memory://zoo/base")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing://x/y", "nothing://x/y: cannot be read: Protocol not known: nothing"),
        ("http://me:hidden@host/model", "http://host/model: a URL's password or query"),
        ("https://host/m.safetensors?key=hidden", "https://host/m.safetensors: a URL's password"),
        ("SERVER/none", "SERVER/none: expected model.safetensors, .*; weight files: none"),
        ("SERVER/none/model.safetensors", "SERVER/none/model.safetensors: no such file or folder"),
        (
            "SERVER/pickled",
            "SERVER/pickled/pytorch_model.bin: PyTorch's files cannot be read by ranges",
        ),
        ("SERVER/cut", "SERVER/cut/model.safetensors: header length .* does not fit"),
        ("http://127.0.0.1:9/model", "http://127.0.0.1:9/model/.*: cannot be read: "),
    ],
)
def test_what_cannot_be_opened(copied, monkeypatch, name, said):
    monkeypatch.setattr(asking, "ATTEMPTS", 2)
    copied.listing = True
    (copied.root / "pickled").mkdir()
    (copied.root / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    (copied.root / "cut").mkdir()
    (copied.root / "cut" / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(CheckpointError) as caught:
        ws.open_checkpoint(name.replace("SERVER", copied.url))
    assert re.match(said.replace("SERVER", copied.url), str(caught.value)), caught.value
    assert "hidden" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "missing"), [("s3://b/x", "s3fs"), ("hf://o/x", "huggingface_hub"),
                         ("http://h/x", "aiohttp"), ("http://h/x", "fsspec.core")]
)  # fmt: skip
def test_a_package_that_is_missing_is_named(url, missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"from wspace.cli.main import main; sys.exit(main(['inspect', {url!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {url}: a package that reads") and "wspace[remote]" in line


def test_local_work_imports_none_of_it(root):
    code = (
        f"import sys, wspace as ws; ws.gram(ws.open_zoo({str(root)!r} + '/*'))\n"
        "print({'fsspec', 'aiohttp', 'huggingface_hub', 's3fs'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
