"""Measures launch configurations: ``python -m bench.tune --write`` on a GPU.

On stdout the table of this GPU's family as it is to be committed, on stderr what was tried. Every
candidate's result is compared with that of the configuration in use; of those that are right, the
fastest median wins, and the one in use stays unless another is more than one percent faster. Most
of the time is compiling: some ten minutes an operation, of which ``--operation`` chooses.

``--write`` puts the table where launches look it up, anew after every entry: what is cut off is
kept, and another call goes on with other operations.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton

from bench import trial as trial_run
from bench import truth, tune_choices
from bench.gpu_session import TRIAL, Clock, EventClock, StepClock, described
from bench.limits import MiB, spread
from wkernels import moments
from wkernels.gpu import chips, configs, products, statistics, weighted_sum
from wkernels.gpu.configs.families import FAMILIES
from wkernels.gpu.configs.shapes import SUM_COLUMNS, Choose, Mix, Read, Tile
from wkernels.gpu.configs.tables import TABLES
from wkernels.gpu.configs.text import as_text

BETTER = 0.99
"""Of the time in use: what a candidate must stay below to replace it."""
OPERATIONS = ("WEIGHTED_SUM", "STATISTICS", "CHOICES", "PRODUCTS")
SECONDS = 540
"""After which entries are left as they are: a call of ten minutes ends with what it has."""
TYPES = {1: torch.float8_e4m3fn, 2: torch.bfloat16, 4: torch.float32, 8: torch.float64}
OUTPUTS = {1: torch.bfloat16}
"""What sums of a type that is not written are written as."""


@dataclass(frozen=True)
class Trial:
    """An entry of the table, what else it might be, and work that it decides on."""

    operation: str
    key: Any
    candidates: list
    run: Callable[[], torch.Tensor]
    exact: bool  # every right result has the same bits


def trials(
    device: torch.device, row_bytes: int, family: str, operations: Sequence[str] = OPERATIONS
) -> Iterator[Trial]:
    """The entries of the family's table, one at a time: their inputs take most of the memory."""
    makers = {
        "WEIGHTED_SUM": _mix, "STATISTICS": _statistics, "CHOICES": _choices, "PRODUCTS": _products
    }  # fmt: skip
    for operation in operations:
        for key, entry in getattr(TABLES[family], operation).items():
            yield makers[operation](device, row_bytes, key, entry)


def _rows(device, n_rows: int, n: int, width: int) -> list[torch.Tensor]:
    pattern = truth.make_rows(n_rows, min(n, truth.PERIOD), TYPES[width])[0].to(device)
    return [row.repeat(-(-n // len(row)))[:n] for row in pattern]


def _mix(device, row_bytes: int, key: tuple[int, int], entry: Mix) -> Trial:
    width, models = key
    rows = _rows(device, models or 32, row_bytes // width, width)
    dtype = OUTPUTS.get(width, TYPES[width])
    n_mixes = 1 if models else 8
    out = torch.empty((n_mixes, len(rows[0])), dtype=dtype, device=device)
    weights = truth.make_weights(n_mixes, len(rows)).to(device)
    weights = weights if width == 8 else weights.float()

    def run() -> torch.Tensor:
        weighted_sum.launch(rows, weights, list(out), None)
        return out

    kept = [Mix(v, w, 0, 1) for v, w in itertools.product((1, 2, 4), (2, 4, 8))] if models else []
    passing = [
        Mix(1, w, batch, group) for w, batch, group in itertools.product((4, 8), (4, 8), (4, 8))
    ]
    candidates = [*kept, *(passing if models in (0, 16) else [])]
    return Trial("WEIGHTED_SUM", key, _others(entry, candidates), run, exact=True)


def _statistics(device, row_bytes: int, width: int, entry: Read) -> Trial:
    rows = _rows(device, 8, row_bytes // width, width)
    whole = np.array([[0, len(rows[0])]])

    def run() -> torch.Tensor:
        sums = torch.zeros((1, len(rows), moments.N), dtype=torch.float64, device=device)
        statistics.launch(rows, None, whole, sums)
        return sums

    candidates = [
        entry._replace(n_loads=n_loads, num_warps=num_warps)
        for n_loads, num_warps in itertools.product((1, 2, 4, 8), (2, 4, 8))
    ]
    return Trial("STATISTICS", width, _others(entry, candidates), run, exact=False)


def _choices(device, row_bytes: int, key: tuple[str, int], entry: Choose) -> Trial:
    kernel, width = key
    *rows, base = _rows(
        device, tune_choices.N_ROWS + 1, row_bytes // width // tune_choices.SMALLER, width
    )
    out = torch.empty(len(base), dtype=OUTPUTS.get(width, TYPES[width]), device=device)
    lanes = chips.current().lanes
    if kernel == "sums":  # its columns are shared by the threads that there are
        candidates = [Choose(SUM_COLUMNS // lanes // w, w) for w in (2, 4, 8)]
    else:
        widths = [n for n in (1, 2, 4, 8, 16) if n * width <= configs.VECTOR_BYTES]
        candidates = [Choose(n, w) for n, w in itertools.product(widths[-3:], (2, 4, 8))]
    run = tune_choices.work(kernel, rows, base, out)
    return Trial("CHOICES", key, _others(entry, candidates), run, exact=kernel != "importances")


def _products(device, row_bytes: int, key: tuple[str, int, int], entry: Tile) -> Trial:
    engine, width, tile = key
    # the largest tiles are for any number of rows: four of them
    n_rows = tile * (2 if tile >= 64 else 1)
    # the elements of a tile of 8 rows, so that every trial reads as much
    n = max(1, 8 * row_bytes // width // n_rows)
    rows = _rows(device, n_rows, n, width)
    based = {"bfloat16": torch.bfloat16, "tfloat32": torch.float32}.get(engine)
    base = None if based is None else torch.zeros(n, dtype=based, device=device)
    whole = np.array([[0, n]])

    def run() -> torch.Tensor:
        out = torch.zeros((1, n_rows, n_rows), dtype=torch.float64, device=device)
        products.launch("dot", rows, None, base, whole, out, fast=engine != "float64")
        return out

    warps = sorted({max(1, entry.num_warps // 2), entry.num_warps, min(8, 2 * entry.num_warps)})
    steps = sorted({max(16, entry.step // 2), entry.step, min(128, 2 * entry.step)})
    candidates = [
        Tile(step, num_warps, stages)
        for step, num_warps, stages in itertools.product(steps, warps, (2, 3, 4))
    ]
    return Trial("PRODUCTS", key, _others(entry, candidates), run, exact=False)


def _others(entry, candidates: list) -> list:
    return [candidate for candidate in candidates if candidate != entry]


@contextmanager
def using(table: dict, key: Any, entry: Any) -> Iterator[None]:
    """Inside, launches find this entry."""
    before, table[key] = table[key], entry
    try:
        yield
    finally:
        table[key] = before


def best(trial: Trial, table: dict, clock: Clock, repeats: int, log: Callable[[str], None]) -> Any:
    """The fastest of the candidates whose result is right."""
    in_use = table[trial.key]
    expected = trial.run().clone()
    times = {in_use: _median(trial.run, clock, repeats)}
    for candidate in trial.candidates:
        try:
            with using(table, trial.key, candidate):
                _check(trial.run(), expected, exact=trial.exact)
                times[candidate] = _median(trial.run, clock, repeats)
        except Exception as error:  # too much shared memory, a compiler that fails: not a candidate
            log(f"  {candidate}: {described(error)}")
    fastest = min(times, key=lambda candidate: times[candidate])
    chosen = fastest if times[fastest] < BETTER * times[in_use] else in_use
    log(
        f"{trial.operation} {trial.key}: {chosen}, {times[chosen] * 1e3:.3f} ms; in use "
        f"{times[in_use] * 1e3:.3f} ms, of {len(times)} tried"
    )
    return chosen


def _median(run: Callable[[], object], clock: Clock, repeats: int) -> float:
    clock.seconds(run)
    return spread(clock.seconds(run) for _ in range(repeats)).median


def _check(found: torch.Tensor, expected: torch.Tensor, *, exact: bool) -> None:
    if exact:
        assert torch.equal(found, expected), "other bits"
        return
    error = (found - expected).abs().max() / expected.abs().max()
    assert error <= 1e-6, f"differs by {error:.1e}"


def measured(
    clock: Clock, family: str, operations: tuple[str, ...], *, row_bytes: int, repeats: int,
    log: Callable[[str], None], most: int | None = None, seconds: float = SECONDS,
    keep: Callable[[dict[str, dict]], None] = lambda found: None,
) -> dict[str, dict]:  # fmt: skip
    """The family's table, with what was measured in place of what was in use.

    Of each entry's candidates the first ``most`` are tried, if it is given. ``keep`` gets the table
    after every entry.
    """
    stop_at = time.monotonic() + seconds
    tables = {name: getattr(TABLES[family], name) for name in OPERATIONS}
    found = {name: dict(entries) for name, entries in tables.items()}
    for entry in trials(clock.device, row_bytes, family, operations):
        if time.monotonic() > stop_at:
            log(f"the time was used up before {entry.operation} {entry.key}: the rest is as it was")
            break
        del entry.candidates[most or len(entry.candidates) :]
        table = tables[entry.operation]
        found[entry.operation][entry.key] = best(entry, table, clock, repeats, log)
        keep(found)
    return found


def _trial(family: str, operations: tuple[str, ...]) -> int:
    trial_run.begin("bench.tune")
    found = measured(
        StepClock(), family, operations, row_bytes=TRIAL.row_bytes, repeats=1, most=2,
        log=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    print(as_text(family, found, "a trial: nothing was measured"), end="")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tune", description=__doc__)
    parser.add_argument(
        "--operation", action="append", choices=OPERATIONS, help="may be repeated; default: all"
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"default: {SECONDS}")
    parser.add_argument(
        "--write", action="store_true", help="also to the module of the family, after every entry"
    )
    parser.add_argument(
        "--trial", metavar="FAMILY", choices=FAMILIES,
        help="without a GPU: few candidates, tiny and interpreted; not to be committed",
    )  # fmt: skip
    arguments = parser.parse_args()
    operations = tuple(arguments.operation or OPERATIONS)
    if arguments.trial:
        return _trial(arguments.trial, operations)
    if not torch.cuda.is_available():
        print("error: no GPU found: torch.cuda.is_available() is false", file=sys.stderr)
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    name, family = torch.cuda.get_device_name(device), chips.current().family
    memory = torch.cuda.get_device_properties(device).total_memory
    origin = f"measured on {name}, triton {triton.__version__}"
    module = Path(str(TABLES[family].__file__))

    def keep(found: dict[str, dict]) -> None:
        if arguments.write:
            module.write_text(as_text(family, found, origin))

    found = measured(
        EventClock(device), family, operations,
        row_bytes=min(256 * MiB, memory // 128), repeats=arguments.repeats,
        log=lambda text: print(text, file=sys.stderr), seconds=arguments.seconds, keep=keep,
    )  # fmt: skip
    if name != FAMILIES[family].chip:
        print(f"note: the {family} family's table was made for {FAMILIES[family].chip}",
              file=sys.stderr)  # fmt: skip
    print(as_text(family, found, origin), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
