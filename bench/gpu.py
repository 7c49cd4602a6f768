"""Checks and times every kernel on the GPU: ``python -m bench.gpu [--out DIR] [--quick]``.

Writes ``DIR/<gpu-name>/report.json`` and ``report.md``. Exit status 1 without a GPU, and if any
result was wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench import gpu_cases, gpu_checks, gpu_report
from bench.gpu_session import EventClock, Session, Sizes

RESULTS = Path(__file__).parent / "results"

BENCHMARKS = (
    gpu_cases.weighted_sums,
    gpu_cases.state_dicts,
    gpu_cases.row_statistics,
    gpu_cases.grams,
)


def run(session: Session) -> dict[str, Any]:
    """All checks and all benchmarks; returns the report's data."""
    facts = gpu_report.about(session.device) | {"clocks before": gpu_report.clocks()}
    checks = gpu_checks.run_all(session.device, session.log, past_int32=session.sizes.past_int32)
    gpu_cases.make_limits(session)
    rates = {name: (session.rate_of(name), work.unit) for name, work in session.limits.items()}
    for name, (rate, unit) in rates.items():
        session.log(f"{name}: {rate} {unit}")
    for benchmark in BENCHMARKS:
        benchmark(session)
        if session.device.type == "cuda":
            torch.cuda.empty_cache()
    overheads = gpu_cases.call_overhead(session)
    facts["clocks after"] = gpu_report.clocks()
    return gpu_report.as_data(facts, checks, rates, session.results, overheads)


def all_right(data: dict[str, Any]) -> bool:
    """No check failed, and our arm of every benchmark that was started gave the right result."""
    wrong = [
        result
        for result in data["benchmarks"]
        if gpu_report.OURS not in result["seconds"] and "all" not in result["notes"]
    ]
    return not wrong and not any(data["checks"].values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: bench/results")
    parser.add_argument("--quick", action="store_true", help="smaller inputs, fewer repeats")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: no GPU found: torch.cuda.is_available() is false", file=sys.stderr)
        return 1
    start = time.monotonic()
    device = torch.device("cuda", torch.cuda.current_device())
    memory = torch.cuda.get_device_properties(device).total_memory
    session = Session(
        EventClock(device),
        Sizes.of(memory, quick=arguments.quick),
        log=lambda text: print(f"{time.monotonic() - start:6.1f} s  {text}", file=sys.stderr),
    )
    data = run(session)
    folder = arguments.out / gpu_report.folder_name(torch.cuda.get_device_name(device))
    gpu_report.write(folder, data)
    print(folder / "report.md")
    if not all_right(data):
        print("error: a result was wrong: see the report", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
