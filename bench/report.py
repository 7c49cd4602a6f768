"""What one run measured, as ``report.json`` for programs and ``report.md`` to read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.limits import Spread, Work, rate, spread


class Timing(NamedTuple):
    """The seconds of one work in each repeat, and its rate where it has an amount."""

    seconds: list[float]
    rate: Spread | None
    unit: str


def timings(works: Mapping[str, Work], seconds: Mapping[str, list[float]]) -> dict[str, Timing]:
    return {
        name: Timing(seconds[name], rate(work, seconds[name]) if work.amount else None, work.unit)
        for name, work in works.items()
    }


@dataclasses.dataclass
class Figure:
    """One thing measured, in turns with everything it is compared to, and checked."""

    name: str
    what: str
    timings: Mapping[str, Timing]
    ratios: Mapping[str, Spread]
    checked: str
    bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)  # memory peaks, bytes read

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "what": self.what,
            "timings": {name: _timing_as_json(timing) for name, timing in self.timings.items()},
            "ratios": {name: ratio._asdict() for name, ratio in self.ratios.items()},
            "bytes": dict(self.bytes),
            "checked": self.checked,
        }

    def as_markdown(self) -> list[str]:
        lines = [f"## {self.name}", "", self.what, "", "| | seconds | rate |", "|---|---|---|"]
        for name, timing in self.timings.items():
            seconds = spread(timing.seconds)
            times = f"{seconds.median:.3f} ({seconds.low:.3f}..{seconds.high:.3f})"
            shown = f"{timing.rate.median:.2f} {timing.unit}" if timing.rate else ""
            lines.append(f"| {name} | {times} | {shown} |")
        lines += ["", "| ratio | median (min..max) |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in self.ratios.items()]
        if self.bytes:
            lines += ["", "| bytes | MB |", "|---|---|"]
            lines += [f"| {name} | {value / 1e6:,.0f} |" for name, value in self.bytes.items()]
        return [*lines, "", f"Checked in the same run: {self.checked}.", ""]


def _timing_as_json(timing: Timing) -> dict[str, object]:
    result: dict[str, object] = {"seconds": spread(timing.seconds)._asdict()}
    if timing.rate:
        result.update(rate=timing.rate._asdict(), unit=timing.unit)
    return {**result, "all_seconds": timing.seconds}


def as_json(
    machine: Mapping[str, object], figures: Sequence[Figure], remarks: Sequence[str]
) -> str:
    content = {
        "machine": dict(machine),
        "figures": [figure.as_json() for figure in figures],
        "remarks": list(remarks),
    }
    return json.dumps(content, indent=1) + "\n"


def as_markdown(
    machine: Mapping[str, object], figures: Sequence[Figure], remarks: Sequence[str]
) -> str:
    lines = ["# Measured on one machine, in one run", ""]
    lines += ["; ".join(f"{key} {value}" for key, value in machine.items()) + ".", ""]
    lines += [
        "A cell is the median of the repeats, and their range. Works are timed in turns; a ratio "
        "is formed within each turn, and then its median is taken.",
        "",
    ]
    for figure in figures:
        lines += figure.as_markdown()
    return "\n".join([*lines, *(f"{remark}\n" for remark in remarks)])


def write_report(
    folder: Path,
    machine: Mapping[str, object],
    figures: Sequence[Figure],
    remarks: Sequence[str],
    name: str = "report",
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(as_json(machine, figures, remarks))
    (folder / f"{name}.md").write_text(as_markdown(machine, figures, remarks))
