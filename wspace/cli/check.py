"""``wspace check``: what a recipe will do, from headers alone."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from wspace.cli.options import add_format, add_work, device_said, note
from wspace.cli.tables import printable, show
from wspace.sizes import format_bytes
from wspace.zoo import short_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from wspace.placement import Choice
    from wspace.recipes import Cost, Output, Outputs, Plan, Problems

SUMMARY = "what a recipe will do, from headers alone: numbers, bytes, memory, problems"
DESCRIPTION = """\
Reads a mergekit recipe and the headers of its models, and no weights. Prints each output
tensor with its inputs and its effective numbers, then the bytes to read and write and the
memory needed. All problems are printed, one a line with their place in the file; the exit
status is then 1. json holds everything, csv the tensors."""
EXAMPLE = "wspace check recipe.yml --format csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a mergekit recipe, in YAML")
    parser.add_argument(
        "--include", action="append", default=[], metavar="PATTERN",
        help="only output tensors whose names match; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN",
        help="no output tensors whose names match; may be repeated",
    )  # fmt: skip
    add_strict(parser)
    add_format(parser)
    add_work(parser)


def add_strict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strict", action="store_true", help="unknown keys of a recipe are errors, not warnings"
    )


def is_recipe(path: str) -> bool:
    return path.endswith((".yml", ".yaml"))


def outputs_of(options: argparse.Namespace, path: str) -> Outputs:
    """What a recipe's file makes; tells its warnings, and its errors, one a line."""
    from wspace.recipes import Problems, RecipeError, read_outputs

    problems = Problems(path, strict=options.strict)
    try:
        outputs = read_outputs(path, problems, include=options.include, exclude=options.exclude)
    except RecipeError as error:
        _tell(options, problems)
        for line in error.problems[:-1]:
            print(f"error: {printable(line)}", file=sys.stderr)
        raise RecipeError(error.problems[-1:]) from None
    _tell(options, problems)
    return outputs


def run(options: argparse.Namespace) -> None:
    if options.format == "json":
        _run_json(options)
        return
    outputs = outputs_of(options, options.recipe)
    device = device_said(options, _device_for(outputs, options.device))
    total = outputs.cost(device=device, memory=options.memory)
    show(*_tables(outputs), options.format)
    for line in _summary(outputs, total, options.memory):
        if options.format == "table":
            print(line)
        else:
            note(options, line)


def _summary(outputs: Outputs, total: Cost, memory: str) -> Iterator[str]:
    for output in outputs:
        plan = output.plan
        donor = plan.references[plan.donor]
        files = f"config and tokenizer from {donor}"
        if plan.tokenizer.folder != plan.checkpoints[plan.donor].folder:
            files = f"config from {donor}, tokenizer from {plan.tokenizer}"
        yield (
            f"{output.name}{': ' if output.name else ''}{len(plan.tensors)} tensors from "
            f"{len(plan.checkpoints)} models; left out: {len(plan.left_out)}; {files}"
        )
    yield (
        f"read {format_bytes(total.read_bytes)}, write {format_bytes(total.write_bytes)}, memory "
        f"{format_bytes(total.memory_bytes)} of --memory {memory}"
    )


def _run_json(options: argparse.Namespace) -> None:
    from wspace.recipes import Problems, RecipeError, read_outputs

    problems = Problems(options.recipe, strict=options.strict)
    patterns = {"include": options.include, "exclude": options.exclude}
    try:
        outputs = read_outputs(options.recipe, problems, **patterns)
        device = _device_for(outputs, options.device).name
        total = outputs.cost(device=device, memory=options.memory)
    except RecipeError as error:
        print(json.dumps(_found(problems, error.problems), indent=1, ensure_ascii=False))
        raise RecipeError(error.problems[-1:]) from None
    content = _found(problems, ()) | total._asdict()
    content["outputs"] = [_content(output) for output in outputs]
    print(json.dumps(content, indent=1, ensure_ascii=False))


def _device_for(outputs: Outputs, device: str) -> Choice:
    from wspace.recipes import device_for

    return device_for([output.plan for output in outputs], device)


def _found(problems: Problems, errors) -> dict[str, Any]:
    return {"errors": list(errors), "warnings": problems.warnings, "notes": problems.notes}


def _tell(options: argparse.Namespace, problems: Problems) -> None:
    for line in problems.warnings:
        print(f"warning: {printable(line)}", file=sys.stderr)
    for line in problems.notes:
        note(options, f"note: {line}")


def _content(output: Output) -> dict[str, Any]:
    plan = output.plan
    columns, rows = _table(plan)
    return {
        "name": output.name,
        "reads_outputs": list(output.reads),
        "method": plan.recipe.method,
        "models": [str(reference) for reference in plan.references],
        "donor": str(plan.references[plan.donor]),
        "left_out": plan.left_out,
        "tensors": [
            {k: v for k, v in zip(columns, row, strict=True) if v is not None} for row in rows
        ],
    }


def _tables(outputs: Outputs) -> tuple[list[str], list[list[Any]]]:
    """The tables of all outputs as one."""
    tables = [(output.name, *_table(output.plan)) for output in outputs]
    if len(tables) == 1:
        return tables[0][1:]
    columns = list(dict.fromkeys(name for _, names, _ in tables for name in names))
    rows = []
    for output, names, table in tables:
        for row in table:
            values = dict(zip(names, row, strict=True))
            rows.append([output, *(values.get(name) for name in columns)])
    return ["output", *columns], rows


def _table(plan: Plan) -> tuple[list[str], list[list[Any]]]:
    """A row for each tensor; a column for each number, and for each of each model's."""
    names = short_names([str(reference) for reference in plan.references])
    numbers: dict[str, None] = {}
    table = []
    for tensor in plan.tensors:
        models = [names[row] for row in tensor.rows]
        inputs = models
        if tensor.inputs:
            called = zip(models, tensor.inputs, strict=True)
            inputs = [m if name == tensor.name else f"{m}:{name}" for m, name in called]
        values: dict[str, float | None] = {}
        step = tensor.step
        if step:
            for name, row_values in step.numbers.each.items():
                own = models[1:] if plan.method.base == "first" else models
                values |= {f"{name}[{m}]": v for m, v in zip(own, row_values, strict=False)}
            values |= step.numbers.overall
        numbers |= dict.fromkeys(values)
        head = [tensor.name, "x".join(map(str, tensor.shape)), tensor.dtype,
                plan.recipe.method if step else "copy", " ".join(inputs)]  # fmt: skip
        table.append((head, values))
    columns = ["tensor", "shape", "dtype", "method", "from", *numbers]
    return columns, [[*head, *(values.get(name) for name in numbers)] for head, values in table]
