"""Fixtures of the benchmarks: limits of the machine, and results as ratios to them.

``pytest bench`` runs all at full size; ``--bench-scale 0.05`` runs small, to see that it works.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from bench import limits as measures
from bench import truth, zoo
from bench.limits import Spread, Work, seconds_of, spread

_LINES = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bench")
    group.addoption("--bench-scale", type=float, default=float(os.environ.get("BENCH_SCALE", "1")),
                    help="sizes of the inputs; below 0.5 the checkpoints are tiny")  # fmt: skip
    group.addoption("--bench-zoo", type=Path, help="a folder made by `python -m bench.zoo llama`")
    group.addoption("--mergekit", default=os.environ.get("MERGEKIT"),
                    help="path of mergekit-yaml, an external program to compare with")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_LINES] = []


def pytest_report_header(config: pytest.Config) -> str:
    about = measures.machine()
    return "machine: " + ", ".join(f"{key} {value}" for key, value in about.items())


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.stash[_LINES]:
        terminalreporter.section("ratios: median (min..max) of the rounds")
        for line in config.stash[_LINES]:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def scale(pytestconfig: pytest.Config) -> float:
    return float(pytestconfig.getoption("--bench-scale") or 1)


class Limits:
    """The limits of the machine, each made when it is first asked for."""

    @cached_property
    def copy(self) -> Work:
        return measures.copy()

    @cached_property
    def read(self) -> Work:
        return measures.read()

    @cached_property
    def sgemm(self) -> Work:
        return measures.gemm(torch.float32)

    @cached_property
    def dgemm(self) -> Work:
        return measures.gemm(torch.float64)


@pytest.fixture(scope="session")
def limits() -> Limits:
    return Limits()


@pytest.fixture(scope="session")
def rows(scale: float) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """``rows(n_models, n, dtype)``: a zoo in memory and its base; ``n`` is scaled, one is kept."""

    @lru_cache(maxsize=1)
    def make(n_models: int, n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        return truth.make_rows(n_models, max(1001, int(n * scale)), dtype)

    return make


@pytest.fixture
def measure(benchmark, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """``measure(work, limits, rounds=5, together={})``: times the work in turns with limits.

    ``limits`` maps a name to a limit and the amount of it that the work cannot do without (bytes
    or operations). The work's share of a limit is the time of that amount over the work's own, in
    each round; ``together`` names functions of those times (``sum``, ``max``) that make further
    limits. All of it goes to ``extra_info`` and to the summary. Returns the work's last result.
    """

    def run(
        work: Work,
        limits: Mapping[str, tuple[Work, float]],
        rounds: int = 5,
        together: Mapping[str, Callable[[Iterable[float]], float]] = MappingProxyType({}),
    ) -> Any:
        taken: dict[str, list[float]] = {name: [] for name in limits}

        def before() -> None:
            for name, (limit, amount) in limits.items():
                taken[name].append(seconds_of(limit) * amount / limit.amount)
            work.prepare()

        result = benchmark.pedantic(work.run, setup=before, rounds=rounds, warmup_rounds=1)
        if benchmark.stats is None:  # --benchmark-disable
            return result
        seconds = benchmark.stats.stats.data
        needed = {name: times[-len(seconds) :] for name, times in taken.items()}
        for name, join in together.items():
            needed[name] = [
                join(turn) for turn in zip(*(needed[key] for key in limits), strict=True)
            ]
        shares = {
            name: spread(need / mine for need, mine in zip(times, seconds, strict=True))
            for name, times in needed.items()
        }
        rate = measures.rate(work, seconds)
        benchmark.extra_info.update(bytes=work.amount, gigabytes_per_second=rate._asdict())
        benchmark.extra_info["ratios"] = {name: value._asdict() for name, value in shares.items()}
        request.config.stash[_LINES].append(_line(request.node.name, rate, shares))
        return result

    return run


def _line(name: str, rate: Spread, shares: dict[str, Spread]) -> str:
    parts = [f"{limit} {value}" for limit, value in shares.items()]
    return f"{name}: {rate.median:.1f} GB/s; " + "; ".join(parts)


@pytest.fixture(scope="session")
def checkpoints(scale: float, pytestconfig: pytest.Config) -> Iterator[Path]:
    """A folder with ``base`` and ``model-0`` ... ``model-3``: 582M parameters, tiny if scaled."""
    given = pytestconfig.getoption("--bench-zoo")
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="wspace-bench-") as folder:
        size = "582m" if scale >= 0.5 else "tiny"
        list(zoo.make_llama(Path(folder) / "zoo", parameters=size))
        yield Path(folder) / "zoo"
