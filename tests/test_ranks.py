"""Ranks of torchrun: the bits of one process, and a clean end when one of them fails or dies."""

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

import wspace as ws
from tests.checkpoints import save_model
from tests.test_shares import SHAPES, runs  # noqa: F401 - a fixture
from tests.zoos import state
from wspace.cli.main import main
from wspace.ranks import Ranks
from wspace.team import torchrun_rank
from wspace.watching import First, Meeting, Other

SLOWLY = """
import sys, time
from wspace.storage import writing
from wspace.cli.main import main
writing.COMMIT_SECONDS = 0
writing.WRITE = 1 << 18
write = writing.CheckpointWriter._write
def slow(self, *arguments):
    time.sleep(0.03)
    write(self, *arguments)
writing.CheckpointWriter._write = slow
sys.exit(main(sys.argv[1:]))
"""


def started(n, command, program=("-m", "wspace")):
    """What torchrun starts: ``n`` processes that are told so by their environment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = []
    for rank in range(n):
        environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(n),
                       "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(n),
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
        processes.append(
            subprocess.Popen(
                [sys.executable, *program, *map(str, command)], env=environment,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    return processes


def ended(processes):
    """Exit statuses, and what each said on stdout and stderr, but for torch."""
    said = [process.communicate() for process in processes]
    errors = ["".join(line for line in err.splitlines(True) if "ProcessGroup" not in line
                      and "socket.cpp" not in line) for _, err in said]  # fmt: skip
    return [process.returncode for process in processes], [out for out, _ in said], errors


def test_four_ranks_print_the_distances_of_one(runs, capsys):  # noqa: F811
    command = ["distances", f"{runs}/0", f"{runs}/1", f"{runs}/1", "--base", f"{runs}/base",
               "--format", "json"]  # fmt: skip
    assert main(command) == 0
    statuses, outs, errors = ended(started(4, command))
    assert statuses == [0] * 4
    # two are the same model: measured again, by all of them
    assert outs == [capsys.readouterr().out, "", "", ""]
    assert errors == [""] * 4


def test_a_rank_that_dies_fails_the_job_and_torchrun_goes_on_to_the_bits_of_one(
    runs,  # noqa: F811
    tmp_path,
):
    zoo = ws.open_zoo([runs / "0", runs / "1"], base=runs / "base")
    expected = [tmp_path / "a", tmp_path / "b"]
    ws.merge(zoo, [[0.3, 0.7], [1.0, -0.5]], expected, max_shard_size="6MB")
    command = ["merge", f"{runs}/0", f"{runs}/1", "--base", f"{runs}/base", "--weights", "0.3,0.7",
               "--weights", "1,-0.5", "-o", f"{tmp_path}/x", "-o", f"{tmp_path}/y",
               "--max-shard-size", "6MB", "--memory", "8MiB"]  # fmt: skip
    processes = started(2, command, ["-c", SLOWLY])
    journals = [
        tmp_path / f".{out}.partial/journal-{rank}-of-2" for out in "xy" for rank in range(2)
    ]
    while not all(path.exists() and path.stat().st_size for path in journals):
        assert all(process.poll() is None for process in processes)
        time.sleep(0.002)
    processes[1].kill()
    before = time.monotonic()
    statuses, outs, errors = ended(processes)
    assert time.monotonic() - before < 20  # a second or two, and what else the machine has to do
    assert statuses == [1, -9]
    assert outs == ["", ""]
    assert errors[0] == "error: rank 1 died; nothing was published: run the same command again\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".x.partial",
        ".y.partial",
        "a",
        "b",
    ]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, "-m", "wspace", *command], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{tmp_path}/x\n{tmp_path}/y\n"
    for out in "xy":
        assert done.stderr.count(f"{tmp_path}/{out}: going on from") == 1
    assert done.stderr.count("merged 2 models") == 1
    for found, other in zip("xy", expected, strict=True):
        files = {path.name: path.read_bytes() for path in other.iterdir()}
        assert {p.name: p.read_bytes() for p in (tmp_path / found).iterdir()} == files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "x", "y"]


def test_what_one_rank_refuses_the_first_says(runs, tmp_path):  # noqa: F811
    tensors = state(1, shapes=SHAPES) | {"steps": torch.tensor([3])}
    tensors["f"][-1, -1] = torch.nan
    save_model(tmp_path / "bad/1", tensors)
    statuses, outs, errors = ended(
        started(2, ["merge", f"{runs}/0", tmp_path / "bad/1", "--uniform", "-o", tmp_path / "x"])
    )
    assert statuses == [1, 1]
    assert outs == ["", ""]
    file = tmp_path / "bad/1/model.safetensors"
    assert errors[0] == (
        f"error: rank 1: {file}: tensor 'f' has NaN or Inf; allow it with --allow-non-finite, or "
        "leave it out with --exclude 'f'\n"
    )
    assert errors[1] == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


# ---- in one process


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("wspace.cli.main.SAYING_SECONDS", 0)
    return lambda rank: monkeypatch.setenv("RANK", str(rank))


RANGE = "--range is for processes without torchrun, which divides by itself"
REFUSED = {
    "inspect m": "wspace inspect is done by one process: run it without torchrun",
    "verify m": "wspace verify is done by one process: run it without torchrun",
    "merge m": "the following arguments are required: -o/--output (try 'wspace merge --help')",
    "merge m -o x --range 0/2": RANGE,
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_is_not_divided_is_refused_once(two, capsys, command):
    two(0)
    assert status_of(command) == 1
    assert capsys.readouterr().err == f"error: {REFUSED[command]}\n"
    if "--range" not in command:
        two(1)
        assert status_of(command) == 1
        assert capsys.readouterr().err == ""


def status_of(command):
    try:
        return main(command.split())
    except SystemExit as error:
        return error.code


def test_one_process_of_torchrun_is_one_process(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    assert torchrun_rank() is None


class Watched:
    """A job's watches, in threads: what each said, and whether it was ended."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        first = self.ranks[0]
        first.close()
        for rank in self.ranks[1:]:
            rank.close()

    def __init__(self, n):
        self.said, self.ended = [], [threading.Event() for _ in range(n)]

        def end(rank):
            return lambda status: self.ended[rank].set()

        first = First(n, "127.0.0.1", self.said.append, end(0))
        self.ranks = [first]
        for rank in range(1, n):
            self.ranks.append(Other(rank, "127.0.0.1", first.meeting, self.said.append, end(rank)))
        until = time.monotonic() + 20
        while sum(peer.rank > 0 for peer in list(first._peers.values())) < n - 1:
            assert time.monotonic() < until
            time.sleep(0.001)

    def all_end(self, *but):
        return all(e.wait(20) for k, e in enumerate(self.ended) if k not in but)


def at_once(*calls):
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_watch_ends_the_others_and_says_it_once(monkeypatch):
    monkeypatch.setattr("wspace.watching.OWN_SECONDS", 0.05)
    with Watched(4) as job:
        job.ranks[2]._first.shutdown(socket.SHUT_RDWR)  # as a process that dies leaves it
        assert job.all_end()
        assert job.said == ["rank 2 died; nothing was published: run the same command again"]
    with Watched(3) as job:
        assert job.ranks[1].failed("x: exists") is True
        assert job.all_end(1)
        assert not job.ended[1].is_set()  # it has its own way to the end
        assert job.said == ["rank 1: x: exists"]
    with Watched(3) as job:
        assert job.ranks[0].failed("no space") is True
        assert job.all_end(0)
        assert job.said == ["no space"]


def test_what_all_find_the_first_says_in_its_own_words(monkeypatch):
    monkeypatch.setattr("wspace.watching.OWN_SECONDS", 20)
    with Watched(3) as job:

        def fail_a_little_later():
            time.sleep(0.1)
            job.ranks[0].failed("x")

        others = [lambda rank=rank: rank.failed("x") for rank in job.ranks[1:]]
        at_once(*others, fail_a_little_later)
        assert job.said == ["x"]


def test_when_the_first_dies_the_second_says_so():
    with Watched(3) as job:
        for connection in list(job.ranks[0]._peers):
            connection.shutdown(socket.SHUT_RDWR)
        assert job.all_end(0)
        assert job.said == ["rank 0 died; nothing was published: run the same command again"]


def test_a_job_that_is_done_ends_nobody():
    for order in itertools.permutations(range(3)):
        with Watched(3) as job:
            at_once(*[job.ranks[rank].close for rank in order])
            assert job.said == []
            assert not any(event.is_set() for event in job.ended)


def test_strangers_are_not_heard():
    with Watched(2) as job:
        port = job.ranks[0].meeting.port
        for words in (b"GET / HTTP/1.1\r\n\r\n", b'{"rank": 1, "token": ""}\n{"failed": "no"}\n',
                      b'{"failed": "no"}\n', b"[]\n", b"\xff" * (1 << 17)):  # fmt: skip
            with (
                socket.create_connection(("127.0.0.1", port)) as stranger,
                contextlib.suppress(OSError),
            ):
                stranger.sendall(words)
        meeting = Meeting(port, "guessed")
        guest = Other(1, "127.0.0.1", meeting, lambda text: None, lambda status: None)
        guest.failed("no")
        guest.close()
        time.sleep(0.2)
        assert job.said == []
        at_once(*[rank.close for rank in job.ranks])
        assert not any(event.is_set() for event in job.ended)


def test_each_rank_of_a_machine_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    ranks = Ranks.__new__(Ranks)
    for local, expected in (("0", "cuda:0"), ("3", "cuda:3"), ("5", "cuda:1")):
        monkeypatch.setenv("LOCAL_RANK", local)
        assert ranks.device("cuda") == expected
        assert ranks.device("cpu") == "cpu"
        assert ranks.device("cuda:2") == "cuda:2"
