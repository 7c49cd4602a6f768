"""All cases on all targets, in as many processes as there are processors."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields

from wkernels.gpu.compiled.assembly import Assembly, read
from wkernels.gpu.compiled.cases import CASES
from wkernels.gpu.compiled.targets import compiling


def compile_case(target: str, case: str) -> list[dict]:
    """What each kernel that the case launches is on the target."""
    with compiling(target) as compiled:
        CASES[case]()
    return [{"target": target, "case": case} | asdict(read(kernel)) for kernel in compiled]


def compile_all(targets: Sequence[str], cases: Sequence[str]) -> list[dict]:
    """One row for each kernel, case and target."""
    pairs = [(target, case) for case in cases for target in targets]
    # not forked: a process that has started threads (torch has) may hang in its copy
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), context) as pool:
        found = pool.map(compile_case, *zip(*pairs, strict=True), chunksize=4)
        return [row for rows in found for row in rows]


_NUMBERS = {field.name: field.type for field in fields(Assembly) if field.type != "str"}


def from_text(text: str) -> list[dict]:
    """The rows of :func:`as_text`."""
    names, *lines = (re.split(r" {2,}", line) for line in text.splitlines())
    rows = [dict(zip(names, [*line, ""], strict=False)) for line in lines]
    kinds = {"int": int, "float": float}
    return [
        {name: kinds[_NUMBERS[name]](value) if name in _NUMBERS else value
         for name, value in row.items()}
        for row in rows
    ]  # fmt: skip


def as_text(rows: Sequence[dict]) -> str:
    names = list(rows[0])
    lines = [names, *([str(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
