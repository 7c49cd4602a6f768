"""Commands in processes of their own, in bounded time and memory, and what they took.

One process imports everything once; each command runs in a fork of it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

SERVER = """
import json, os, resource, signal, sys
import torch, yaml
import wspace.merging, wspace.recipes
from wspace.cli.main import main

def field(name):
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) << 10

def limited(task):
    os.chdir(task["folder"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(task[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    resource.setrlimit(resource.RLIMIT_AS, (field("VmSize") + task["memory"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (task["seconds"],) * 2)
    with open(task["out"] + ".before", "w") as file:
        file.write(str(field("VmRSS")))
    signal.alarm(300)  # whoever waits without end takes no processor time
    try:
        return main(task["arguments"])
    except SystemExit as stopped:
        return stopped.code

print(flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = limited(json.loads(line))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, status, used = os.wait4(child, 0)
    result = [os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime,
              used.ru_maxrss << 10]
    print(json.dumps(result), flush=True)
"""


class Result(NamedTuple):
    status: int
    out: str
    err: str
    seconds: float  # of processor time
    nbytes: int  # of memory at the most, over what importing takes


class Limited:
    """``with Limited(folder) as limited: limited.run(arguments)``; ``folder`` takes the outputs."""

    def __init__(self, folder: Path):
        self._said = {"out": str(folder / "stdout"), "err": str(folder / "stderr")}

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._process.stdout.readline()
        return self

    def __exit__(self, *error):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def run(self, arguments, folder, *, memory=512 << 20, seconds=20) -> Result:
        """``memory``: bytes of address space over those of the process, at which it fails."""
        task = {"arguments": [str(a) for a in arguments], "folder": str(folder), "memory": memory,
                "seconds": seconds, **self._said}  # fmt: skip
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        status, took, peak = json.loads(self._process.stdout.readline())
        out, err = (Path(path).read_text() for path in self._said.values())
        before = int(Path(self._said["out"] + ".before").read_text())
        return Result(status, out, err, took, peak - before)
