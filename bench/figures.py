"""The figures to be quoted, measured in one run on one machine: ``python -m bench.figures``.

Writes ``bench/results/<machine>/report.json`` and ``report.md``. Takes about ten minutes with
mergekit, half of that without, and 12 GB of memory; the checkpoints take 6 GB of disk. Nothing
else should run meanwhile.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

import wkernels
import wspace
from bench import limits, merging, plain, truth, zoo
from bench.limits import MiB, Spread, Work, interleave, rate_ratio, spread
from bench.merging import Command
from bench.report import Figure, as_markdown, timings, write_report

MINILM_PARAMETERS = 22_713_216
BUSY_LOAD = 0.5  # processes that ran on average in the minute before

Seconds = Mapping[str, Sequence[float]]


def weighted_sum_figure(dtype: torch.dtype, scale: float, repeats: int) -> Figure:
    n_models, n = 8, max(1001, int(64 * MiB * scale))
    x, _ = truth.make_rows(n_models, n, dtype)
    weights = truth.make_weights(1, n_models)
    out = torch.full((1, n), torch.nan, dtype=dtype)
    rows, factors = x.unbind(), weights[0].tolist()
    moved = x.nbytes + out.nbytes
    works = {
        "copy": limits.copy(),
        "wkernels.weighted_sum": Work(lambda: wkernels.weighted_sum(x, weights, out=out), moved),
        "torch, blocks of 1Mi": Work(lambda: plain.blocks(rows, factors), moved),
        "torch, float32 accumulator": Work(lambda: plain.accumulate(rows, factors), moved),
        "torch, stack and sum": Work(lambda: plain.stack_and_sum(rows, factors), moved),
    }
    seconds = interleave(works, repeats)
    truth.check_mixes(out, x, weights)
    ours = seconds["wkernels.weighted_sum"]
    ratios = {"share of copy bandwidth": _share(works, seconds, "wkernels.weighted_sum", "copy")}
    for name in list(works)[2:]:
        ratios[f"times as fast as {name}"] = _quotient(seconds[name], ours)
    kind = str(dtype).removeprefix("torch.")
    return Figure(
        f"CPU weighted sum, {n_models} models x {n:,} {kind}",
        f"One mix of {n_models} rows in memory. Bytes: each row read once, the mix written once "
        f"({moved:,}); those of the copy are read and written.",
        timings(works, seconds), ratios, "the mix against float64 at both ends and in the middle",
    )  # fmt: skip


def gram_figure(scale: float, repeats: int) -> Figure:
    n_models, n = 16, max(1001, int(MINILM_PARAMETERS * scale))
    x, _ = truth.make_rows(n_models, n, torch.float32)
    results: dict[str, torch.Tensor] = {}

    def ours() -> None:
        results["ours"] = wkernels.gram(x)

    def torch_float64() -> None:
        wide = x.double()
        results["float64"] = wide @ wide.T

    works = {
        "copy": limits.copy(),
        "sgemm": limits.gemm(torch.float32),
        "dgemm": limits.gemm(torch.float64),
        "wkernels.gram": Work(ours, x.nbytes),
        "torch X @ X.T, float32": Work(lambda: x @ x.T, x.nbytes),
        "torch X @ X.T, float64": Work(torch_float64, x.nbytes),
    }
    seconds = interleave(works, repeats)
    truth.check_gram(results["ours"], truth.gram_in_float64(x), n, based=False)
    operations = 2 * n_models**2 * n
    mine = seconds["wkernels.gram"]
    copying = [x.nbytes / works["copy"].amount * s for s in seconds["copy"]]
    products = {
        kind: [operations / works[kind].amount * s for s in seconds[kind]]
        for kind in ("sgemm", "dgemm")
    }
    turns = list(zip(mine, copying, products["sgemm"], strict=True))
    ratios = {
        "share of copy bandwidth": _quotient(copying, mine),
        "share of sgemm rate": _quotient(products["sgemm"], mine),
        "share of dgemm rate": _quotient(products["dgemm"], mine),
        "share of the slower of copy and sgemm": spread(max(c, g) / s for s, c, g in turns),
        "share of the faster of copy and sgemm": spread(min(c, g) / s for s, c, g in turns),
        "times as fast as torch in float32": _quotient(seconds["torch X @ X.T, float32"], mine),
        "times as fast as torch in float64": _quotient(seconds["torch X @ X.T, float64"], mine),
    }
    return Figure(
        f"CPU Gram matrix, {n_models} models x {n:,} float32",
        f"Products and sums in float64. Bytes: each row read once ({x.nbytes:,}); operations: "
        f"2 n^2 an element ({operations:,}), as a full product takes.",
        timings(works, seconds), ratios, "the whole matrix against float64",
    )  # fmt: skip


def merge_figure(folder: Path, scratch: Path, mergekit: str | None, repeats: int) -> Figure:
    models = [folder / f"model-{i}" for i in range(4)]
    commands = {
        "import torch": merging.import_torch(),
        "wspace --help": Command([sys.executable, "-m", "wspace", "--help"]),
        "wspace merge": merging.average_command(models, scratch / "ours"),
        "by hand (load_file, save_file)": merging.plain_command(models, scratch / "by-hand"),
    }
    if mergekit:
        commands["mergekit --help"] = Command([mergekit, "--help"])
        commands["mergekit"] = merging.mergekit_command(mergekit, models, scratch / "mergekit")
    works = {
        "cat of the inputs": merging.cat(models),
        "write and fsync of the output": merging.write(models, scratch),
        **{name: command.work for name, command in commands.items()},
    }
    seconds = interleave(works, repeats)
    n_checked = merging.check_average(scratch / "ours", models)
    merging.check_average(scratch / "by-hand", models)
    if mergekit:
        merging.check_average(scratch / "mergekit", models, merging.MERGEKIT_ROUNDINGS)
    ours = seconds["wspace merge"]
    files = list(
        map(sum, zip(seconds["cat of the inputs"], seconds["write and fsync of the output"],
                     strict=True))
    )  # fmt: skip
    goal = [1.25 * f + t for f, t in zip(files, seconds["import torch"], strict=True)]
    ratios = {
        "wall / (cat + write)": _quotient(ours, files),
        "wall / (1.25 x (cat + write) + import torch)": _quotient(ours, goal),
        "times as fast as by hand": _quotient(seconds["by hand (load_file, save_file)"], ours),
    }
    if mergekit:
        theirs = seconds["mergekit"]
        ratios["times as fast as mergekit, whole commands"] = _quotient(theirs, ours)
        ratios["times as fast as mergekit, each net of its --help"] = _quotient(
            _differences(theirs, seconds["mergekit --help"]),
            _differences(ours, seconds["wspace --help"]),
        )
    return Figure(
        f"Whole command: average of {len(models)} checkpoints",
        f"{merging.size_bytes(models):,} bytes in the page cache read, "
        f"{merging.size_bytes(models[:1]):,} written; ours are flushed to the disk, by hand and "
        "mergekit's are not. Peak memory is resident, with mapped files.",
        timings(works, seconds), ratios,
        f"{n_checked} tensors of the output against the float64 mean",
        {f"peak memory, {name}": command.peak_bytes for name, command in commands.items()},
    )  # fmt: skip


def gram_of_files_figure(folder: Path, repeats: int) -> Figure:
    models, base = [folder / f"model-{i}" for i in range(4)], folder / "base"
    cat = merging.cat([*models, base])
    results: list[wspace.Gram] = []
    read: list[int] = []

    def ours() -> None:
        before = _bytes_read()
        results[:] = [wspace.gram(wspace.open_zoo(models, base=base), device="cpu")]
        read.append(_bytes_read() - before)

    distances = Command(
        [sys.executable, "-m", "wspace", "distances", *models, "--base", base, "--format", "json",
         "--device", "cpu", "--quiet"], cat.amount)  # fmt: skip
    works = {
        "cat": cat,
        "wspace.gram": Work(ours, cat.amount),
        "wspace distances, the whole command": distances.work,
        "by hand (load_file)": Work(lambda: plain.gram_files(models, base), cat.amount),
    }
    seconds = interleave(works, repeats)
    n_checked = merging.check_gram_of_files(results[0], models, base)
    mine = seconds["wspace.gram"]
    ratios = {
        "share of cat": _share(works, seconds, "wspace.gram", "cat"),
        "times as fast as by hand": _quotient(seconds["by hand (load_file)"], mine),
    }
    return Figure(
        f"Gram matrix of files: {len(models)} checkpoints and their base",
        f"{int(cat.amount):,} bytes of files in the page cache.",
        timings(works, seconds), ratios, f"the matrices of {n_checked} tensors against float64",
        {
            "files": int(cat.amount),
            "read in one pass, as the system counts": max(read),
            "peak memory, wspace distances": distances.peak_bytes,
        },
    )  # fmt: skip


def _share(works: Mapping[str, Work], seconds: Seconds, name: str, limit: str) -> Spread:
    return rate_ratio(seconds[name], works[name].amount, seconds[limit], works[limit].amount)


def _quotient(above: Iterable[float], below: Iterable[float]) -> Spread:
    return spread(a / b for a, b in zip(above, below, strict=True))


def _differences(whole: Iterable[float], part: Iterable[float]) -> list[float]:
    return [w - p for w, p in zip(whole, part, strict=True)]


def _bytes_read() -> int:
    """Bytes that this process has read through system calls, so far."""
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["rchar"])


@contextmanager
def _checkpoints(given: Path | None, scratch: Path, scale: float) -> Iterator[Path]:
    if given is not None:
        yield given
    else:
        _tell("making the checkpoints")
        size = "582m" if scale >= 0.5 else "tiny"
        list(zoo.make_llama(scratch / "zoo", parameters=size))
        yield scratch / "zoo"


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"
    machine = limits.machine()
    scale, repeats = options.scale, options.repeats
    figures: list[Figure] = []

    def add(figure: Figure) -> None:
        figures.append(figure)
        _tell("\n".join(figure.as_markdown()))

    with tempfile.TemporaryDirectory(prefix="wspace-figures-", dir=options.scratch) as folder:
        scratch = Path(folder)
        for dtype in (torch.float32, torch.bfloat16):
            add(weighted_sum_figure(dtype, scale, repeats))
        add(gram_figure(scale, repeats))
        with _checkpoints(options.zoo, scratch, scale) as checkpoints:
            add(merge_figure(checkpoints, scratch, options.mergekit, repeats))
            add(gram_of_files_figure(checkpoints, repeats))
    remarks = [_gpu_remark()]
    if float(machine["load_average_1min"]) > BUSY_LOAD:
        remarks.append("The machine was busy when the run began: take the ratios with care.")
    if scale != 1:
        remarks.append(f"Sizes were scaled by {scale}.")
    if options.out is None and scale != 1:
        print(as_markdown(machine, figures, remarks))
        return 0
    out = options.out or Path(__file__).parent / "results" / limits.machine_name()
    write_report(out, machine, figures, remarks)
    print(out / "report.md")
    return 0


def _gpu_remark() -> str:
    if torch.cuda.is_available():
        return f"GPU: {torch.cuda.get_device_name()}; `python -m bench.gpu` measures it."
    return "GPU: not measured: no GPU on this machine."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.figures", description="Measure the figures to be quoted."
    )
    parser.add_argument("--zoo", type=Path, help="made by `bench.zoo llama --parameters 582m`")
    parser.add_argument("--mergekit", default=os.environ.get("MERGEKIT"), metavar="PATH",
                        help="mergekit-yaml, an external program to compare with")  # fmt: skip
    parser.add_argument("--out", type=Path, help="default: bench/results/<machine>")
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to be measured")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="less than 1: a trial, not kept")
    return parser


if __name__ == "__main__":
    sys.exit(main())
