"""Recipes, by ``wspace merge`` and by mergekit: ``python -m bench.bench_recipes --mergekit PATH``.

Four checkpoints of 582M bfloat16 parameters and their base, in the page cache; every method, its
result checked, against its floor (reading the inputs as often as the method must, and writing the
output) and against mergekit. Then sweeps, and the planning of a checkpoint of 100,000 tensors.
Writes ``bench/results/<machine>/recipes.json`` and ``recipes.md``, anew after every figure: a run
that is interrupted leaves what it measured. ``--repeats 1`` takes about ten minutes.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import limits, merging, recipe_truth, zoo
from bench.figures import BUSY_LOAD
from bench.limits import Work, interleave, spread
from bench.merging import Command
from bench.moe import make_headers
from bench.recipe_cases import CASES, RecipeCase
from bench.report import Figure, as_markdown, timings, write_report
from wspace.recipes import Problems, cost, parse_recipe, plan_outputs, plan_recipe
from wspace.recipes.methods import METHODS
from wspace.recipes.references import ModelReference, Models

SWEEPS = {
    "sweep": ("task_arithmetic", "lambda", (0.5, 1, 1.5, 2)),
    "sweep-ties": ("ties", "density", (0.3, 0.5, 0.7, 0.9)),
}
"""A method, its parameter that is swept, and four values."""

N_TENSORS, N_MODELS = 100_000, 4
"""Of the planning figure: a mixture of experts, headers alone."""


class Starts:
    """What starting up takes: ``--help`` of each program."""

    def __init__(self, mergekit: str | None, repeats: int) -> None:
        commands = {"wspace": Command([sys.executable, "-m", "wspace", "--help"])}
        if mergekit:
            commands["mergekit"] = Command([mergekit, "--help"])
        works = {name: command.work for name, command in commands.items()}
        self._seconds = interleave(works, repeats)
        self.figure = Figure(
            "Start-up", "`--help` of each program.", timings(works, self._seconds), {}, "nothing"
        )

    def of(self, program: str) -> float:
        return spread(self._seconds[program]).median


def recipe_figure(
    case: RecipeCase,
    folder: Path,
    scratch: Path,
    mergekit: str | None,
    starts: Starts,
    repeats: int,
) -> Figure:
    """One method. mergekit runs once, after: its runs take minutes, and vary little.

    Its kernels are compiled before, on a small zoo; and the inputs are in the page cache.
    """
    small = scratch / f"small-{case.method}.yml"
    small.write_text(case.text(scratch / "small"))
    merge = [sys.executable, "-m", "wspace", "merge"]
    Command([*merge, small, "-o", scratch / "compiled", "--quiet"], 0).work.run()
    shutil.rmtree(scratch / "compiled")
    recipe = scratch / f"{case.method}.yml"
    recipe.write_text(case.text(folder))
    inputs = case.inputs(folder)
    outputs = plan_outputs(recipe.read_text(), Problems(str(recipe)))
    # one read of whole tensors may do where they fit in memory
    read = min(case.reads * merging.size_bytes(inputs), outputs.cost().read_bytes)
    reads = read / merging.size_bytes(inputs)
    written = merging.size_bytes(inputs[:1])
    ours = Command(
        [*merge, recipe, "-o", scratch / "ours", "--quiet"], read + written, scratch / "ours"
    )
    works = {
        "cat of the inputs, once": merging.cat(inputs),
        "write and fsync of the output": merging.write(inputs, scratch),
        "wspace merge": ours.work,
    }
    seconds = interleave(works, repeats, warmups=0)
    checked = recipe_truth.check(case, scratch / "ours", folder)
    turns = zip(*seconds.values(), strict=True)
    floors = [(m, reads * cat + write) for cat, write, m in turns]
    net = [mine - starts.of("wspace") for mine, _ in floors]
    ratios = {
        "wall / floor": spread(mine / floor for mine, floor in floors),
        "wall net of --help / floor": spread(
            n / floor for n, (_, floor) in zip(net, floors, strict=True)
        ),
    }
    peaks = {"peak memory, wspace merge": ours.peak_bytes}
    if mergekit:
        theirs = _mergekit(mergekit, recipe, scratch / "mergekit", read + written)
        works["mergekit"] = theirs.work
        theirs.work.prepare()
        seconds["mergekit"] = [limits.seconds_of(theirs.work)]
        (whole,) = seconds["mergekit"]
        ratios["times as fast as mergekit, whole commands"] = spread(
            whole / mine for mine, _ in floors
        )
        goal = f" (goal {case.goal:g})" if case.goal else ""
        ratios[f"times as fast as mergekit, each net of its --help{goal}"] = spread(
            (whole - starts.of("mergekit")) / n for n in net
        )
        peaks["peak memory, mergekit"] = theirs.peak_bytes
        checked += "; " + recipe_truth.deviations(scratch / "ours", scratch / "mergekit", inputs[0])
        theirs.work.prepare()
    ours.work.prepare()
    return Figure(
        f"{case.method}: {len(inputs)} checkpoints",
        f"`{case.parameters or 'no parameters'}`. The floor reads {len(inputs)} checkpoints "
        f"{reads:.2f} x ({read:,} bytes) and writes one ({written:,} bytes).",
        timings(works, seconds), ratios, checked, peaks,
    )  # fmt: skip


def _mergekit(program: str, recipe: Path, out: Path, amount: float) -> Command:
    words = [program, recipe, out, "--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
    return Command(words, amount, out)


def sweep_figure(
    sweep_of: tuple[str, str, Sequence[float]], folder: Path, scratch: Path, repeats: int
) -> Figure:
    """Four outputs of one read, against one of them; one value is that of the method's case."""
    method, parameter, values = sweep_of
    (case,) = (case for case in CASES if case.method == method)
    single, sweep = scratch / "single.yml", scratch / "sweep.yml"
    single.write_text(case.text(folder))
    swept = f"{parameter}: {{sweep: [{', '.join(map(str, values))}]}}"
    sweep.write_text(case._replace(parameters=swept).text(folder))
    commands = {
        f"{name} of {method}": Command(
            [sys.executable, "-m", "wspace", "merge", file, "-o", scratch / "out", "--quiet"],
            0, scratch / "out",
        )
        for name, file in (("one", single), ("a sweep of four", sweep))
    }  # fmt: skip
    works = {name: command.work for name, command in commands.items()}
    seconds = interleave(works, repeats, warmups=0)
    outputs = sorted((scratch / "out").glob("*/model*.safetensors"))
    assert {path.parent.name for path in outputs} == {f"{parameter}={k}" for k in values}
    given = case.parameters.partition(": ")[2] or "1"
    recipe_truth.check(case, scratch / "out" / f"{parameter}={given}", folder)
    one, four = seconds.values()
    commands[f"one of {method}"].work.prepare()
    return Figure(
        f"Four outputs of {method} from one read", f"`{method}` with `{swept}`.",
        timings(works, seconds),
        {"four singly / in one sweep": spread(4 * a / b for a, b in zip(one, four, strict=True))},
        f"the output of {parameter} = {given} as that of the single recipe",
        {f"peak memory, {name}": command.peak_bytes for name, command in commands.items()},
    )  # fmt: skip


class Planning:
    """From headers to a plan and its cost, as a command has it: nothing is known before."""

    def __init__(self, models: Sequence[Path]) -> None:
        self._paths = [str(model) for model in models]
        lines = [f"  - {{model: {m}, parameters: {{weight: [0.1, 0.9]}}}}" for m in models]
        self._text = "merge_method: linear\nmodels:\n" + "\n".join(lines) + "\n"
        self.models, self.plan = Models(), None

    def works(self, which: str) -> dict[str, Work]:
        return {
            f"open: parse and check {which}": Work(self._open, 0, self._forget),
            f"plan every tensor, {which}": Work(self._plan, 0),
            f"cost, {which}": Work(lambda: cost(*filter(None, [self.plan])), 0),
        }

    def _forget(self) -> None:
        self.models, self.plan = Models(), None

    def _open(self) -> None:
        for path in self._paths:
            self.models.open(ModelReference(path))

    def _plan(self) -> None:
        recipe = parse_recipe(self._text, Problems("recipe.yml"))
        self.plan = plan_recipe(recipe, Problems("recipe.yml"), models=self.models)


def planning_figure(scratch: Path, n_tensors: int, repeats: int) -> Figure:
    """Planning alone: headers of a mixture of experts, whose files are holes."""
    kinds = {
        "equal headers": [make_headers(scratch / f"moe-{i}", n_tensors) for i in range(N_MODELS)],
        "headers that differ": [
            make_headers(scratch / f"other-{i}", n_tensors, shards=4 + i) for i in range(N_MODELS)
        ],
    }
    plannings = {which: Planning(models) for which, models in kinds.items()}
    works = {
        name: work
        for which, planning in plannings.items()
        for name, work in planning.works(which).items()
    }
    gc.disable()  # as the commands do
    try:
        seconds = interleave(works, repeats)
    finally:
        gc.enable()
    for planning in plannings.values():
        assert planning.plan
        assert len(planning.plan.tensors) == n_tensors
    millions = n_tensors * N_MODELS / 1e6
    sums = {
        f"all three, {which}": [
            sum(turn)
            for turn in zip(*(seconds[name] for name in planning.works(which)), strict=True)
        ]
        for which, planning in plannings.items()
    }
    return Figure(
        f"Planning {n_tensors:,} tensors x {N_MODELS} models",
        "A gradient over the layers of a mixture of experts. No weights are read.",
        timings(works, seconds),
        {
            f"seconds per million tensors x models, {name}": spread(s / millions for s in times)
            for name, times in (seconds | sums).items()
        },
        "every tensor is planned",
    )


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"
    machine = limits.machine()
    figures: list[Figure] = []
    started = time.perf_counter()
    chosen = [case for case in CASES if not options.only or case.method in options.only]
    missing = [case.method for case in chosen if case.method not in METHODS]
    kept = options.out or Path(__file__).parent / "results" / limits.machine_name()
    trial = options.out is None and (options.scale != 1 or options.only is not None)

    def add(figure: Figure, left: Sequence[str]) -> None:
        figures.append(figure)
        print("\n".join(figure.as_markdown()), file=sys.stderr, flush=True)
        remarks = _remarks(machine, missing, options)
        remarks.append(f"The run so far took {time.perf_counter() - started:.0f} s.")
        if left:
            remarks.append(f"Interrupted; still to be measured: {', '.join(left)}.")
        if not trial:
            write_report(kept, machine, figures, remarks, name="recipes")
        elif not left:
            print(as_markdown(machine, figures, remarks))

    with tempfile.TemporaryDirectory(prefix="wspace-recipes-", dir=options.scratch) as name:
        scratch = Path(name)
        folder = options.zoo or scratch / "zoo"
        if options.zoo is None:
            size = "582m" if options.scale >= 0.5 else "tiny"
            list(zoo.make_llama(folder, parameters=size, step=1e-2))
        list(zoo.make_llama(scratch / "small", step=1e-2))
        merging.cat(sorted(folder.iterdir())).run()  # into the page cache
        starts = Starts(options.mergekit, options.repeats)
        against = options.against
        if against is None:
            against = [case.method for case in CASES if case.goal]
        steps: dict[str, Callable[[], Figure]] = {
            case.method: lambda case=case: recipe_figure(
                case, folder, scratch,
                options.mergekit if case.method in against else None, starts,
                options.repeats if case.goal else min(2, options.repeats),
            )
            for case in chosen
            if case.method not in missing
        }  # fmt: skip
        n_tensors = N_TENSORS if options.scale >= 0.5 else N_TENSORS // 50
        others: dict[str, Callable[[], Figure]] = {
            name: lambda sweep=sweep: sweep_figure(sweep, folder, scratch, options.repeats)
            for name, sweep in SWEEPS.items()
        }
        others |= {
            "planning": lambda: planning_figure(scratch, n_tensors, options.repeats),
        }
        steps |= {k: f for k, f in others.items() if not options.only or k in options.only}
        add(starts.figure, list(steps))
        for k, step in enumerate(steps.values()):
            add(step(), list(steps)[k + 1 :])
    if not trial:
        print(kept / "recipes.md")
    return 0


def _remarks(machine, missing: Sequence[str], options: argparse.Namespace) -> list[str]:
    remarks = []
    if float(machine["load_average_1min"]) > BUSY_LOAD:
        remarks.append("The machine was busy when the run began: take the ratios with care.")
    if options.scale != 1:
        remarks.append("Sizes were scaled down: a trial.")
    if missing:
        remarks.append(f"Not measured, as they are not there: {', '.join(missing)}.")
    if not options.mergekit:
        remarks.append("mergekit was not at hand.")
    return remarks


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.bench_recipes", description="Measure recipes, against mergekit."
    )
    parser.add_argument("--zoo", type=Path, help="made by `bench.zoo llama --parameters 582m`")
    parser.add_argument("--mergekit", default=os.environ.get("MERGEKIT"), metavar="PATH",
                        help="mergekit-yaml, an external program to compare with")  # fmt: skip
    parser.add_argument("--out", type=Path, help="default: bench/results/<machine>")
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to be measured")
    parser.add_argument(
        "--only", nargs="+", choices=[*(case.method for case in CASES), *SWEEPS, "planning"],
        metavar="METHOD", help="only these methods, sweeps or planning; kept where --out is given",
    )  # fmt: skip
    parser.add_argument(
        "--against", nargs="*", choices=[case.method for case in CASES], metavar="METHOD",
        help="methods that mergekit runs too; default: those that have a goal",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="less than 1: a trial, not kept")
    return parser


if __name__ == "__main__":
    sys.exit(main())
