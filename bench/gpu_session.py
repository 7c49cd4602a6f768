"""Timing on a GPU: arms and limits in turns; a timing counts only if its result was right."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from bench.limits import MiB, Spread, Work, rate_ratio, spread


class Clock(Protocol):
    """Seconds that a piece of work takes on a device."""

    device: torch.device

    def seconds(self, run: Callable[[], object]) -> float: ...

    def synchronize(self) -> None: ...


class StepClock:
    """No clock: the first run took one second, the next two, and so on. For trials."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self._steps = itertools.count(1)

    def seconds(self, run: Callable[[], object]) -> float:
        run()
        return float(next(self._steps))

    def synchronize(self) -> None:
        pass


class EventClock:
    """Time on the GPU between two events, with a cold L2 and the host ahead of the device."""

    def __init__(self, device: torch.device):
        self.device = device
        self._evictor = torch.empty(512 * MiB, dtype=torch.uint8, device=device)

    def seconds(self, run: Callable[[], object]) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._evictor.zero_()
        # about a millisecond, in which the host gets ahead: else its own time would be measured
        torch.cuda._sleep(2_000_000)
        start.record()
        run()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Arm:
    """One way to do a piece of work, and how to tell that its result is right."""

    run: Callable[[], Any]
    check: Callable[[Any], None]


@dataclass
class Result:
    """What a benchmark found. Without ``seconds`` an arm does not count, and ``notes`` say why."""

    name: str
    moved: str  # what is counted as bytes, in words
    bytes: float
    flops: float
    seconds: dict[str, Spread] = field(default_factory=dict)
    ratios: dict[str, dict[str, Spread]] = field(default_factory=dict)  # arm, then limit
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sizes:
    """How large the inputs are; the defaults fit a GPU of 80 GB in under eight minutes."""

    row_bytes: int = 1024 * MiB  # of one model, and of the copy that is the limit
    gram_bytes: int = 8192 * MiB  # of all rows together
    link_bytes: int = 256 * MiB
    tensor_scale: int = 1  # divides the widths of the state dict
    gemm: int = 8192
    float64_gemm: int = 4096
    stream_models: int = 32
    stream_bytes: int = 96 * MiB  # of one model's file
    many_models: int = 500  # whose Gram matrix is to be hidden behind the transfer
    many_bytes: int = 8 * MiB
    calls: int = 1000
    repeats: int = 9
    past_int32: bool = True  # also check rows of more than 2**31 elements
    checks_smaller: int = 1  # divides the lengths of rows that are checked

    @staticmethod
    def of(memory: int, *, quick: bool) -> Sizes:
        """For a device with so many bytes; the largest benchmark holds 48 rows of ``row_bytes``."""
        fitting = max(16, int(0.85 * memory) // (48 * MiB))
        row = min(256 if quick else 1024, fitting) * MiB
        large = memory > 40 * 1024 * MiB and not quick
        return Sizes(
            row_bytes=row,
            gram_bytes=8 * row,
            repeats=5 if quick else 9,
            past_int32=large,
        )


TRIAL = Sizes(
    row_bytes=2048, gram_bytes=4096, link_bytes=4096, tensor_scale=256, gemm=32, float64_gemm=32,
    calls=1, repeats=1, past_int32=False, stream_models=3, stream_bytes=40_000,
    many_models=5, many_bytes=4_000, checks_smaller=500,
)  # fmt: skip
"""For the interpreter."""


class Session:
    """All that a benchmark needs: the clock, the sizes, the limits, and where results go."""

    def __init__(self, clock: Clock, sizes: Sizes, log: Callable[[str], None]):
        self.clock, self.sizes, self.log = clock, sizes, log
        self.limits: dict[str, Work] = {}
        self.results: list[Result] = []
        self._stop_at = math.inf

    @property
    def device(self) -> torch.device:
        return self.clock.device

    def begin(self, seconds: float) -> None:
        """A part of the session, with so much time of its own."""
        self._stop_at = time.monotonic() + seconds

    def late(self) -> bool:
        """The part's time is used up: what is not started yet is left out, and says so."""
        return time.monotonic() > self._stop_at

    def rate_of(self, limit: str) -> Spread:
        """A limit on its own, in units of 1e9 a second."""
        work = self.limits[limit]
        self.clock.seconds(work.run)
        times = [self.clock.seconds(work.run) for _ in range(self.sizes.repeats)]
        return spread(work.amount / seconds / 1e9 for seconds in times)

    def measure(
        self,
        name: str,
        arms: Mapping[str, Arm],
        *,
        moved: str,
        n_bytes: float,
        flops: float = 0,
        limits: tuple[str, ...] = ("copy",),
    ) -> Result:
        """Checks every arm's result, then times arms and limits in turns.

        Ratios are the arm's rate over the limit's within each turn: of bytes, or for a limit that
        multiplies matrices of floating-point operations.
        """
        result = Result(name, moved, n_bytes, flops)
        self.results.append(result)
        if self.late():
            result.notes["all"] = "left out: the time was used up"
            return result
        right = {}
        for arm_name, arm in arms.items():
            try:
                arm.check(arm.run())
                right[arm_name] = arm.run
            except Exception as error:  # whatever it is, the other arms go on
                result.notes[arm_name] = described(error)
        runs = {name: self.limits[name].run for name in limits} | right
        times: dict[str, list[float]] = {name: [] for name in runs}
        for repeat in range(-1, self.sizes.repeats):
            for run_name, run in runs.items():
                elapsed = self.clock.seconds(run)
                if repeat >= 0:
                    times[run_name].append(elapsed)
        for arm_name in right:
            result.seconds[arm_name] = spread(times[arm_name])
            result.ratios[arm_name] = {
                limit: rate_ratio(
                    times[arm_name],
                    n_bytes if self.limits[limit].unit == "GB/s" else flops,
                    times[limit],
                    self.limits[limit].amount,
                )
                for limit in limits
            }
        self.log(line(result))
        return result


def described(error: Exception) -> str:
    return f"{type(error).__name__}: {[*str(error).splitlines(), ''][0]}"


def line(result: Result) -> str:
    """A result in one line, for whoever watches."""
    parts = [
        f"{arm} {seconds.median * 1e3:.3f} ms"
        + "".join(f", {value.median:.2f} of {name}" for name, value in result.ratios[arm].items())
        for arm, seconds in result.seconds.items()
    ]
    return f"{result.name}: " + "; ".join([*parts, *map(": ".join, result.notes.items())])
