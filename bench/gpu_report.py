"""The findings of a run on a GPU, for programs and for readers."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import gpu_goals, limits
from bench.gpu_goals import OURS
from bench.gpu_session import Result
from bench.limits import Spread


def about(device: torch.device) -> dict[str, Any]:
    """The machine, its GPU, and the state in which the GPU was found."""
    facts: dict[str, Any] = dict(limits.machine())
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "l2_mib": round(getattr(properties, "L2_cache_size", 0) / 2**20, 1),
            "cuda": torch.version.cuda or f"ROCm {torch.version.hip}",
        }
    return facts


def clocks() -> str:
    """Clocks, power limit and temperature as they are; nothing is set."""
    query = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={query},driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown: nvidia-smi did not answer"
    return f"{query},driver_version: {done.stdout.strip()}"


def folder_name(device_name: str) -> str:
    """``NVIDIA H100 80GB HBM3`` -> ``nvidia-h100-80gb-hbm3``."""
    return "-".join(re.findall(r"[a-z0-9]+", device_name.lower()))


def as_data(
    facts: Mapping[str, Any],
    checks: Mapping[str, str | None],
    rates: Mapping[str, tuple[Spread, str]],
    results: list[Result],
    overheads: Mapping[str, Spread],
) -> dict[str, Any]:
    """All of it as plain values; a spread is median, low, high."""
    return {
        "about": dict(facts),
        "checks": dict(checks),
        "limits": {name: rate._asdict() | {"unit": unit} for name, (rate, unit) in rates.items()},
        "benchmarks": [
            {
                "name": result.name,
                "moved": result.moved,
                "bytes": result.bytes,
                "flops": result.flops,
                "seconds": {arm: value._asdict() for arm, value in result.seconds.items()},
                "ratios": {
                    arm: {limit: value._asdict() for limit, value in ratios.items()}
                    for arm, ratios in result.ratios.items()
                },
                "notes": result.notes,
            }
            for result in results
        ],
        "microseconds_a_call": {name: value._asdict() for name, value in overheads.items()},
    }


def joined(earlier: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """What was found now, and before what was not looked for now: of each its own version."""
    names = {result["name"] for result in data["benchmarks"]}
    kept = [result for result in earlier["benchmarks"] if result["name"] not in names]
    return dict(data) | {
        "checks": {**earlier["checks"], **data["checks"]},
        "benchmarks": [*kept, *data["benchmarks"]],
        "microseconds_a_call": {**earlier["microseconds_a_call"], **data["microseconds_a_call"]},
        "runs": [*earlier.get("runs", [earlier["about"]]), data["about"]],
    }


def as_markdown(data: Mapping[str, Any]) -> str:
    """The report: limits, then each benchmark's ratio to them. Ratios are median (low..high)."""
    facts = data["about"]
    failed = {name: error for name, error in data["checks"].items() if error}
    lines = [
        f"# {facts.get('gpu', 'no GPU')}",
        "",
        ", ".join(f"{key} {value}" for key, value in facts.items()),
        "",
        *_earlier(data.get("runs", [])),
        f"Results compared with float64, and with the bits of the CPU path: "
        f"{len(data['checks']) - len(failed)} of {len(data['checks'])} checks passed.",
        *(f"- {name}: {error}" for name, error in failed.items()),
        "",
        *gpu_goals.as_markdown(data),
        "",
        "## Limits",
        "",
        "| limit | rate |",
        "|---|---|",
    ]
    for name, rate in data["limits"].items():
        lines.append(f"| {name} | {_spread(rate)} {rate['unit']} |")
    lines += [
        "",
        "## Kernels",
        "",
        "Time on the device between two events, L2 evicted before; limits are timed again in every "
        "turn, and a ratio is formed within it. An arm counts only if its result was checked.",
        "",
        "| benchmark | arm | ms | GB/s | ratio to the limit |",
        "|---|---|---|---|---|",
    ]
    for result in data["benchmarks"]:
        for arm, seconds in result["seconds"].items():
            ratios = "; ".join(
                f"{_spread(value)} of {limit}" for limit, value in result["ratios"][arm].items()
            )
            name = f"{result['name']} ({result['moved']})" if arm == OURS else ""
            rate = result["bytes"] / seconds["median"] / 1e9
            lines.append(
                f"| {name} | {arm} | {seconds['median'] * 1e3:.3f} | {rate:.0f} | {ratios} |"
            )
        for arm, note in result["notes"].items():
            lines.append(f"| {result['name']} | {arm} | not counted: {note} | | |")
    lines += ["", "## Host time of one call", "", "| call | us |", "|---|---|"]
    for name, value in data["microseconds_a_call"].items():
        lines.append(f"| {name} | {_spread(value)} |")
    return "\n".join(lines) + "\n"


def _earlier(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of a report that several runs made in parts: when, and with what."""
    if not runs:
        return []
    words = "{} (torch {}, triton {})"
    said = (words.format(*(one.get(key) for key in ("date", "torch", "triton"))) for one in runs)
    return ["Parts were measured in runs of their own: " + "; ".join(said) + ".", ""]


def write(folder: Path, data: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / "report.md").write_text(as_markdown(data))


def _spread(value: Mapping[str, float]) -> str:
    return str(Spread(value["median"], value["low"], value["high"]))
