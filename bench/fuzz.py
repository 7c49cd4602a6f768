"""Fuzzes what reads untrusted text, guided by coverage: ``python -m bench.fuzz TARGET``.

    headers    the header of a safetensors file, compared with what safetensors itself reads
    index      model.safetensors.index.json, over two shards that are there
    recipes    a recipe's YAML, planned over a small zoo that is there

The only outcomes allowed are a valid object and a refusal (WspaceError, ValueError). Everything
else is a finding: another exception, an object that contradicts itself, more than ``SECONDS`` of
processor time or ``RSS`` MiB for one input. Half of the mutations are libFuzzer's, of bytes; the
others change a value of a text that still is JSON or YAML. The inputs are kept in ``WORK/TARGET``,
findings in ``WORK/TARGET-findings``. The counts go to ``bench/results/<machine>/fuzz.json``, where
those of earlier runs are added up. Needs the extra ``fuzz`` (atheris).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path

from bench import limits
from bench.fuzz_targets import TARGETS, Check, mutator

SECONDS = 5
"""Of processor time, for one input of at most ``LONGEST`` bytes."""
HANGING = 200
"""Seconds by the clock after which libFuzzer ends the process; they count if ``SECONDS`` do."""
RSS = 2048
LONGEST = 4096
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"


class Harness:
    """Runs a check and keeps what is found: one input for each place that raises."""

    def __init__(self, check: Check, findings: Path) -> None:
        self._check, self._findings = check, findings

    def __call__(self, data: bytes) -> None:
        started = time.process_time()
        try:
            self._check(data)
            assert time.process_time() - started < SECONDS, "too slow"
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            place = [f"{Path(f.filename).name}:{f.lineno}" for f in frames][-3:]
            key = hashlib.sha256(f"{type(error).__name__} {place}".encode()).hexdigest()[:12]
            if not (self._findings / key).exists():
                (self._findings / key).write_bytes(data)
                text = "".join(traceback.format_exception(error))
                (self._findings / f"{key}.txt").write_text(text, errors="replace")


def fuzz(target: str, work: Path, seconds: int) -> None:
    """In a process of its own, which libFuzzer ends."""
    atheris = import_module("atheris")  # an extra of its own, and without types
    findings, corpus = work / f"{target}-findings", work / target
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=["wspace", "yaml"], enable_loader_override=False):
        check, seeds = TARGETS[target]()
    for seed in seeds:
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    arguments = [
        sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-timeout={HANGING}",
        f"-rss_limit_mb={RSS}", f"-max_len={LONGEST}", "-print_final_stats=1",
        f"-artifact_prefix={findings}/",
    ]  # fmt: skip
    custom = mutator(target, lambda data, longest: atheris.Mutate(data, longest))
    atheris.Setup(arguments, Harness(check, findings), custom_mutator=custom)
    atheris.Fuzz()


def try_one(target: str, path: Path) -> None:
    """One input by itself, in bounded processor time and memory."""
    check, _ = TARGETS[target]()
    resource.setrlimit(resource.RLIMIT_CPU, (2 * SECONDS, 2 * SECONDS))
    resource.setrlimit(resource.RLIMIT_DATA, (RSS << 20, RSS << 20))
    check(path.read_bytes())


def run(target: str, work: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """This program in a process of its own, in a scratch folder in memory."""
    command = [sys.executable, "-m", "bench.fuzz", target, "--work", str(work), *more]
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as scratch:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", check=False, cwd=scratch, env=environment,
        )  # fmt: skip


def supervise(target: str, work: Path, seconds: int) -> dict[str, int]:
    """Runs until the time is over, again after an input that ended the process; what was counted.

    An input that ends the process and passes by itself (on a machine that stood still) is none.
    """
    started, executions, edges = time.monotonic(), 0, 0
    while (left := seconds - int(time.monotonic() - started)) > 0:
        done = run(target, work, "--child", "--seconds", str(left))
        counts = re.findall(r"stat::number_of_executed_units:\s*(\d+)", done.stdout)
        counts = counts or re.findall(r"^#(\d+)", done.stdout, re.MULTILINE)
        ended = list((work / f"{target}-findings").glob("*-*"))
        if not counts or (done.returncode and not ended):
            raise RuntimeError(done.stdout[-2000:])
        executions += int(counts[-1])
        edges = max([edges, *map(int, re.findall(r"cov: (\d+)", done.stdout))])
        for path in ended:
            if run(target, work, "--one", str(path)).returncode == 0:
                path.unlink()
    return {
        "executions": executions, "seconds": int(time.monotonic() - started), "edges": edges,
    }  # fmt: skip


def record(target: str, work: Path, counted: dict[str, int]) -> None:
    """Add a run to the results."""
    place = RESULTS / limits.machine_name() / "fuzz.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    report = json.loads(place.read_text()) if place.exists() else {"targets": {}}
    report["machine"] = limits.machine() | {"atheris": importlib.metadata.version("atheris")}
    before = report["targets"].get(target, {"executions": 0, "seconds": 0, "edges": 0})
    findings = work / f"{target}-findings"
    report["targets"][target] = before | {
        "executions": before["executions"] + counted["executions"],
        "seconds": before["seconds"] + counted["seconds"],
        "hours": round((before["seconds"] + counted["seconds"]) / 3600, 2),
        "edges": max(before["edges"], counted["edges"]),
        "inputs": len(list((work / target).iterdir())),
        "open_findings": sorted(p.name for p in findings.iterdir() if p.suffix != ".txt"),
    }
    place.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({target: report["targets"][target]}))


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "wspace-fuzz")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--again", type=Path, help="try this input, and no other")
    options = parser.parse_args(given)
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    if options.again:
        done = run(options.target, work, "--one", str(options.again.absolute()))
        print(done.stdout)
        return done.returncode
    if options.one:
        try_one(options.target, options.one)
        return 0
    if options.child:
        fuzz(options.target, work, options.seconds)
    record(options.target, work, supervise(options.target, work, options.seconds))
    return 1 if any((work / f"{options.target}-findings").iterdir()) else 0


if __name__ == "__main__":
    sys.exit(main())
