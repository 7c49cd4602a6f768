"""Runs a command as a process of its own and tells its wall time and peak memory.

The command is started by a small interpreter in between (this file, as a script): Linux counts the
pages of the process that starts a program towards that program's peak, and a benchmark is large.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Run(NamedTuple):
    """What one run of a command took, from its start to its end."""

    seconds: float
    peak_bytes: int  # of resident memory, mapped files included
    output: str


class CommandError(RuntimeError):
    """A command that was to be measured failed; its output is in the message."""


def run_command(command: Sequence[object], environment: Mapping[str, str] | None = None) -> Run:
    """Runs a command to its end, offline, and measures it. Raises CommandError if it fails.

    Modules are compiled once, as those of an installation are, whatever the environment says: to
    compile wspace's at every start would take 0.2 s.
    """
    words = [str(word) for word in command]
    surroundings = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-I", "-S", __file__, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env={**surroundings, "HF_HUB_OFFLINE": "1", **(environment or {})},
    )
    output, _, report = done.stdout.rstrip("\n").rpartition("\n")
    if done.returncode:
        raise CommandError(f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout}")
    return Run(**json.loads(report), output=output)


def _measure(words: list[str]) -> int:
    start = time.perf_counter()
    child = os.posix_spawnp(words[0], words, os.environ)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - start
    kilobytes = usage.ru_maxrss  # Linux counts in KiB
    print("\n" + json.dumps({"seconds": seconds, "peak_bytes": kilobytes * 1024}))
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(abs(_measure(sys.argv[1:])))
