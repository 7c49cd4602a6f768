"""The same work as a user writes it by hand, with torch and safetensors: what ours is compared to.

``python -m bench.plain merge OUT MODEL...`` averages checkpoints of equal shard layout.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Rows = Sequence[torch.Tensor]
Mix = Callable[[Rows, Sequence[float]], torch.Tensor]

BLOCK = 1 << 20  # elements


def stack_and_sum(rows: Rows, weights: Sequence[float]) -> torch.Tensor:
    """The line that most merging code has, in the rows' own type."""
    factors = torch.tensor(weights, dtype=rows[0].dtype)[:, None]
    return (torch.stack(list(rows)) * factors).sum(0)


def accumulate(rows: Rows, weights: Sequence[float]) -> torch.Tensor:
    """A float32 accumulator of the whole length, one ``add_`` a model."""
    total = torch.zeros(len(rows[0]), dtype=torch.float32)
    for row, weight in zip(rows, weights, strict=True):
        total.add_(row, alpha=weight)
    return total.to(rows[0].dtype)


def foreach(rows: Rows, weights: Sequence[float]) -> torch.Tensor:
    """``_foreach_add_`` over the tensors of a state dict, here 64 pieces of the row."""
    total = torch.zeros(len(rows[0]), dtype=torch.float32)
    sums = list(total.tensor_split(64))
    for row, weight in zip(rows, weights, strict=True):
        pieces = list(row.tensor_split(64))
        torch._foreach_add_(sums, pieces, alpha=weight)  # pyright: ignore[reportPrivateImportUsage]
    return total.to(rows[0].dtype)


def blocks(rows: Rows, weights: Sequence[float]) -> torch.Tensor:
    """``add_`` into a float32 block that stays in the cache: the best that plain torch does."""
    out = torch.empty_like(rows[0])
    total = torch.empty(BLOCK, dtype=torch.float32)
    for start in range(0, len(out), BLOCK):
        stop = min(start + BLOCK, len(out))
        part = total[: stop - start].zero_()
        for row, weight in zip(rows, weights, strict=True):
            part.add_(row[start:stop], alpha=weight)
        out[start:stop] = part
    return out


def compiled() -> Mix | None:
    """The sum through ``torch.compile``; None where it does not work, as without a C++ compiler."""

    def mix(rows: list[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
        total = rows[0].float() * weights[0]
        for i in range(1, len(rows)):
            total = total + rows[i].float() * weights[i]
        return total.to(rows[0].dtype)

    programs = []  # made within run: torch's own modules warn when they are imported

    def run(rows: Rows, weights: Sequence[float]) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not programs:
                programs.append(torch.compile(mix, dynamic=False))
            return programs[0](list(rows), torch.tensor(weights, dtype=torch.float32))

    try:
        run([torch.ones(1024), torch.ones(1024)], [0.5, 0.5])
    except Exception:  # a missing compiler shows itself as one of many exceptions
        return None
    return run


def merge_files(models: Sequence[Path], out: Path) -> None:
    """Averages checkpoints shard by shard: ``load_file``, a float32 sum, ``save_file``."""
    out.mkdir(parents=True)
    for shard in sorted(models[0].glob("*.safetensors")):
        rows = [load_file(model / shard.name) for model in models]
        mixed = {}
        for name, first in rows[0].items():
            total = first.float() / len(models)
            for row in rows[1:]:
                total.add_(row[name], alpha=1 / len(models))
            mixed[name] = total.to(first.dtype)
        save_file(mixed, out / shard.name, metadata={"format": "pt"})
    for file in models[0].glob("*.json"):
        shutil.copy(file, out)


def gram_files(models: Sequence[Path], base: Path) -> torch.Tensor:
    """The Gram matrix of task vectors: ``load_file`` of every shard, float32 differences."""
    total = torch.zeros((len(models), len(models)), dtype=torch.float64)
    for shard in sorted(base.glob("*.safetensors")):
        rows = [load_file(model / shard.name) for model in models]
        for name, origin in load_file(shard).items():
            deltas = [row[name].float() - origin.float() for row in rows]
            stacked = torch.stack([delta.flatten() for delta in deltas])
            total += (stacked @ stacked.T).double()
    return total


if __name__ == "__main__":
    merge_files([Path(name) for name in sys.argv[3:]], Path(sys.argv[2]))
