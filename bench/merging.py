"""Whole commands that average checkpoints, each as work to time: ours, plain torch's, mergekit's.

Every run starts with its output removed and with nothing left to be flushed by the run before it,
and with the inputs in the page cache, as the first round left them.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

import wspace
from bench import limits, truth
from bench.command import Run, run_command
from bench.limits import Work

MERGEKIT_ROUNDINGS = 12
"""Of four models: its weights, products and partial sums are bfloat16 (``truth.check_mixes``)."""


class Command:
    """A command to time: its work, and what each of its runs took."""

    def __init__(self, words: Sequence[object], amount: float = 0, out: Path | None = None) -> None:
        self.words = [str(word) for word in words]
        self.out = out
        self.runs: list[Run] = []
        self.work = Work(self._run, amount, self._prepare)

    def _run(self) -> None:
        self.runs.append(run_command(self.words))

    def _prepare(self) -> None:
        if self.out is not None:
            shutil.rmtree(self.out, ignore_errors=True)
        os.sync()

    @property
    def peak_bytes(self) -> int:
        return max(run.peak_bytes for run in self.runs)


def shards_of(models: Sequence[Path]) -> list[Path]:
    return [shard for model in models for shard in sorted(model.glob("*.safetensors"))]


def size_bytes(models: Sequence[Path]) -> int:
    return sum(shard.stat().st_size for shard in shards_of(models))


def average_command(models: Sequence[Path], out: Path) -> Command:
    """``wspace merge MODEL... --uniform -o OUT``: inputs read once, one output written, flushed."""
    words = [sys.executable, "-m", "wspace", "merge", *models, "--uniform", "-o", out, "--quiet"]
    return Command(words, size_bytes(models) + size_bytes(models[:1]), out)


def plain_command(models: Sequence[Path], out: Path) -> Command:
    """``load_file``, a float32 sum and ``save_file``, shard by shard; nothing is flushed."""
    words = [sys.executable, "-m", "bench.plain", "merge", out, *models]
    return Command(words, size_bytes(models) + size_bytes(models[:1]), out)


def mergekit_command(program: str, models: Sequence[Path], out: Path) -> Command:
    """mergekit's linear method on the same models, with equal weights; nothing is flushed."""
    recipe = {
        "merge_method": "linear",
        "dtype": "bfloat16",
        "models": [
            {"model": str(model), "parameters": {"weight": 1 / len(models)}} for model in models
        ],
    }
    file = out.with_suffix(".yml")
    file.write_text(json.dumps(recipe, indent=2))  # JSON is YAML
    words = [program, file, out, "--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
    return Command(words, size_bytes(models) + size_bytes(models[:1]), out)


def import_torch() -> Command:
    return Command([sys.executable, "-c", "import torch"])


def cat(models: Sequence[Path]) -> Work:
    return limits.read_files(shards_of(models))


def write(models: Sequence[Path], scratch: Path) -> Work:
    """Writes and flushes as many bytes as one merged model has."""
    work = limits.write_file(scratch / "written", size_bytes(models[:1]))

    def prepare() -> None:
        work.prepare()
        os.sync()

    return work._replace(prepare=prepare)


def check_average(out: Path, models: Sequence[Path], roundings: int = 1) -> int:
    """Compares a few tensors of a merged checkpoint with the float64 mean; returns how many.

    All names must be there. ``roundings``: see :func:`bench.truth.check_mixes`.
    """
    read, names = tensors_of(out)
    readers = [tensors_of(model) for model in models]
    assert names == readers[0][1], "the merged model has other tensors than its inputs"
    chosen = sorted(names)[:: max(1, len(names) // 12)]
    weights = torch.full((1, len(models)), 1 / len(models), dtype=torch.float64)
    for name in chosen:
        rows = [reader(name).flatten() for reader, _ in readers]
        truth.check_mixes([read(name).flatten()], rows, weights, roundings=roundings)
    return len(chosen)


def check_gram_of_files(gram: wspace.Gram, models: Sequence[Path], base: Path) -> int:
    """Compares the matrices of a few tensors with float64; returns how many."""
    assert gram.per_tensor is not None
    readers = [tensors_of(model)[0] for model in models]
    origin, names = tensors_of(base)
    assert set(gram.tensors) == names, "the Gram matrix covers other tensors than the files hold"
    chosen = range(0, len(gram.tensors), max(1, len(gram.tensors) // 12))
    for t in chosen:
        name = gram.tensors[t]
        x = torch.stack([reader(name).flatten() for reader in readers])
        expected = truth.gram_in_float64(x, origin(name).flatten())
        truth.check_gram(gram.per_tensor[t], expected, x.shape[1], based=True)
    total = gram.per_tensor.sum(0)
    truth.check_gram(gram.total, total, len(gram.tensors), based=False)
    return len(chosen)


def tensors_of(model: Path) -> tuple[Callable[[str], torch.Tensor], set[str]]:
    """A function that reads a tensor of a checkpoint by name, and the names."""
    homes = {}
    for shard in shards_of([model]):
        with safe_open(shard, "pt") as file:
            homes.update(dict.fromkeys(file.keys(), shard))

    def read(name: str) -> torch.Tensor:
        with safe_open(homes[name], "pt") as file:
            return file.get_tensor(name)

    return read, set(homes)
