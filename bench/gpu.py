"""Checks and times every kernel on the GPU: ``python -m bench.gpu [--out DIR] [--only PART ...]``.

Writes ``DIR/<gpu-name>/report.json`` and ``report.md``, in under eight minutes: each part has its
time, after which the rest of it is left out, and the report is written after every part, also of a
run that is cut off. With ``--only`` what other parts found before stays in the report. Exit status
1 without a GPU, and if any result was wrong.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import (
    gpu_cases,
    gpu_checks,
    gpu_elementwise,
    gpu_goals,
    gpu_passes,
    gpu_report,
    trial,
)
from bench.gpu_session import (
    TRIAL,
    EventClock,
    Result,
    Session,
    Sizes,
    StepClock,
    described,
)
from bench.limits import Spread

RESULTS = Path(__file__).parent / "results"

PARTS: tuple[tuple[str, float, Callable[[Session], None]], ...] = (
    ("weighted sums", 100, gpu_cases.weighted_sums),
    ("state dicts", 30, gpu_cases.state_dicts),
    ("row statistics", 20, gpu_cases.row_statistics),
    ("Gram matrices", 60, gpu_cases.grams),
    ("fast Gram matrices", 40, gpu_cases.fast_grams),
    ("methods that choose elements", 50, gpu_elementwise.choices),
    ("passes", 75, gpu_passes.passes),
)
"""What is timed, and the seconds that each may take before it leaves out the rest of itself."""
CHECKS_SECONDS = 90
DEADLINE = 475
"""Seconds after which the run ends with what it has."""
CHECKS = "checks"
NAMES = (CHECKS, *(name for name, _, _ in PARTS))


class CutOffError(BaseException):
    """The run has to end: no error of a part, which others would go on after."""


def run(
    session: Session, save: Callable[[dict[str, Any]], None], only: Sequence[str] | None = None
) -> dict[str, Any]:
    """The checks and the benchmarks, of all parts or ``only`` some; returns the report's data.

    ``save`` gets what there is after each part: whatever happens then, there is a report.
    """
    facts = gpu_report.about(session.device) | {"clocks before": gpu_report.clocks()}
    checks: dict[str, str | None] = {}
    rates: dict[str, tuple[Spread, str]] = {}
    overheads: dict[str, Spread] = {}

    def data() -> dict[str, Any]:
        return gpu_report.as_data(facts, checks, rates, session.results, overheads)

    if only is None or CHECKS in only:
        session.begin(CHECKS_SECONDS)
        gpu_checks.run_all(session, checks)
        save(data())
    gpu_cases.make_limits(session)
    for name, work in session.limits.items():
        rates[name] = session.rate_of(name), work.unit
        session.log(f"{name}: {rates[name][0]} {work.unit}")
    overheads |= gpu_cases.call_overhead(session)
    for name, seconds, part in PARTS:
        if only is not None and name not in only:
            continue
        session.begin(seconds)
        try:
            part(session)
        except Exception as error:  # a part that cannot even prepare its inputs
            session.results.append(Result(name, "", 0, 0, notes={"wkernels": described(error)}))
            session.log(f"{name}: {described(error)}")
        finally:
            save(data())
        if session.device.type == "cuda":
            torch.cuda.empty_cache()
    facts["clocks after"] = gpu_report.clocks()
    return data()


def all_right(data: dict[str, Any]) -> bool:
    """No check failed, and our arm of every benchmark that was started gave the right result."""
    wrong = [
        result
        for result in data["benchmarks"]
        if gpu_goals.OURS not in result["seconds"] and "all" not in result["notes"]
    ]
    return not wrong and not any(data["checks"].values())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: bench/results")
    parser.add_argument("--quick", action="store_true", help="smaller inputs, fewer repeats")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, metavar="PART",
        help=f"of {', '.join(map(repr, NAMES))}; what others found before is kept",
    )  # fmt: skip
    parser.add_argument(
        "--trial", action="store_true",
        help="without a GPU: all of it on tiny tensors in the interpreter, the report to stdout",
    )  # fmt: skip
    arguments = parser.parse_args()
    if arguments.trial:
        return _trial(arguments.only)
    if not torch.cuda.is_available():
        print(
            "error: no GPU found: torch.cuda.is_available() is false; --trial does without one",
            file=sys.stderr,
        )
        return 1
    start = time.monotonic()
    device = torch.device("cuda", torch.cuda.current_device())
    memory = torch.cuda.get_device_properties(device).total_memory
    session = Session(
        EventClock(device),
        Sizes.of(memory, quick=arguments.quick),
        log=lambda text: print(f"{time.monotonic() - start:6.1f} s  {text}", file=sys.stderr),
    )
    folder = arguments.out / gpu_report.folder_name(torch.cuda.get_device_name(device))
    earlier = before(folder) if set(arguments.only) < set(NAMES) else None
    saved: list[dict[str, Any]] = []

    def save(data: dict[str, Any]) -> None:
        saved.append(data if earlier is None else gpu_report.joined(earlier, data))
        gpu_report.write(folder, saved[-1])

    for number in (signal.SIGALRM, signal.SIGTERM):
        signal.signal(number, _stop)
    signal.alarm(DEADLINE)
    try:
        save(run(session, save, arguments.only))
    except CutOffError as error:
        print(f"error: {error}; the report has what was done before", file=sys.stderr)
        return 1
    finally:
        signal.alarm(0)
    data = saved[-1]
    print(folder / "report.md")
    if not all_right(data):
        print("error: a result was wrong: see the report", file=sys.stderr)
        return 1
    return 0


def before(folder: Path) -> dict[str, Any] | None:
    """The report of an earlier run, if there is one."""
    file = folder / "report.json"
    return json.loads(file.read_text()) if file.exists() else None


def _trial(only: Sequence[str]) -> int:
    trial.begin("bench.gpu")
    session = Session(StepClock(), TRIAL, log=lambda text: print(text, file=sys.stderr))
    data = run(session, lambda data: None, only)
    print(gpu_report.as_markdown(data), end="")
    return 0 if all_right(data) else 1


def _stop(_signal: int, _frame: object) -> None:
    raise CutOffError(f"not done after {DEADLINE} seconds, or ended from outside")


if __name__ == "__main__":
    sys.exit(main())
