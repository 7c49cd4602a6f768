"""Commands in processes of their own, under a hard limit of memory: ``with Limited() as limited``.

What a process takes besides the work (interpreter, libraries, compiled kernels) is no part of a
budget. So one process imports everything and runs each kind of command once, on a small zoo; each
command that is measured runs in a fork of it, which may have ``budget + MARGIN`` bytes more than it
has when it starts. The limit is that of ``RLIMIT_DATA``: all private memory that may be written,
from the moment that it is mapped. Whoever asks for more gets none, and the command fails. Address
space (``RLIMIT_AS``) would count what threads, allocators and compilers reserve and never touch;
the page cache counts in neither. Time is limited too.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

STACK = 512 << 10
"""Bytes of a thread's stack: all of it counts, although a few pages are touched."""

MARGIN = 16 << 20
"""Bytes beyond the budget: stacks of two dozen threads, and what the allocator rounds up."""

SAMPLE_SECONDS = 0.001

PATIENCE = 15
"""Seconds on the clock for each of the processor's that a command may take: whoever waits without
end takes none of those."""


class Outcome(NamedTuple):
    """How a command ended, and what it took over what the process had at its start."""

    status: int
    out: str
    err: str
    seconds: float  # of processor time
    peak: int  # bytes resident at most, as sampled
    limit: int  # bytes that it might have


class Limited:
    """``folder`` takes what commands print. ``warm``: the arguments of commands that are run once,
    in a folder of their own, before any is measured; then none may compile a kernel."""

    def __init__(self, folder: Path, warm: Sequence[Sequence[object]] = ()) -> None:
        self._said = [str(folder / name) for name in (".out", ".err")]
        words = [[str(word) for word in command] for command in warm]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.limited", json.dumps(words)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )  # fmt: skip
        assert self._process.stdin and self._process.stdout
        self._asked, self._told = self._process.stdin, self._process.stdout
        if self._told.readline() != "ready\n":
            raise RuntimeError("a command that was to warm up failed")

    def __enter__(self) -> Limited:
        return self

    def __exit__(self, *error: object) -> None:
        self._asked.close()
        self._process.wait()
        self._told.close()

    def run(
        self, command: Sequence[object], folder: Path, budget: int, *, margin: int = MARGIN,
        seconds: int = 3600,
    ) -> Outcome:  # fmt: skip
        """Run ``wspace`` with these arguments, in ``folder``, in so much processor time at most."""
        words, limit = [str(word) for word in command], budget + margin
        self._asked.write(json.dumps([words, str(folder), limit, seconds, self._said]) + "\n")
        self._asked.flush()
        status, seconds, peak = json.loads(self._told.readline())
        out, err = (Path(path).read_text() for path in self._said)
        return Outcome(status, out, err, seconds, peak, limit)


def _field(name: str, process: int | str = "self") -> int:
    with Path(f"/proc/{process}/status").open() as file:
        lines = [line for line in file if line.startswith(name)]
    return int(lines[0].split()[1]) << 10 if lines else 0  # none of a process that has ended


def _limited(command: list[str], folder: str, extra: int, seconds: int, said: Sequence[str]) -> Any:
    """In the fork."""
    from wspace.cli.main import main

    os.chdir(folder)
    for number, path in zip((1, 2), said, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    most = _field("VmData") + extra
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    signal.alarm(PATIENCE * seconds)
    try:
        return main(command)
    except SystemExit as stopped:
        return stopped.code


def _serve(warm: list[list[str]]) -> None:
    import torch  # noqa: F401 - all that a command may import

    import wspace.merging
    import wspace.recipes  # noqa: F401
    from wkernels.cpu import parallel
    from wspace.cli.main import main
    from wspace.devices import processors

    threading.stack_size(STACK)
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for command in warm:
            if main(command):
                raise SystemExit(f"failed: {' '.join(command)}")
    if "numba" in sys.modules and len(sys.argv) == 2:
        os.dup2(told.fileno(), 1)  # kernels were compiled, which is kept: now they are only loaded
        os.execv(sys.executable, [sys.executable, "-m", "bench.limited", sys.argv[1], "again"])
    # a fork has none of these threads
    parallel._pool(processors()).shutdown()
    parallel._pool.cache_clear()
    ctypes.CDLL(None).malloc_trim(0)  # what importing left free would hide as much of the work
    print("ready", file=told, flush=True)
    if warm:  # a budget has no room for compiling: libraries would look for it without end
        sys.modules["numba"] = None  # type: ignore[assignment]
    for line in sys.stdin:
        before = _field("RssAnon")
        child = os.fork()
        if child == 0:
            status = 99
            try:
                status = _limited(*json.loads(line))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        peak = 0
        while not (ended := os.wait4(child, os.WNOHANG))[0]:
            peak = max(peak, _field("RssAnon", child) + _field("RssShmem", child) - before)
            time.sleep(SAMPLE_SECONDS)
        _, status, used = ended
        result = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, peak
        print(json.dumps(result), file=told, flush=True)


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
