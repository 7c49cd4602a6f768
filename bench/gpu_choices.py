"""Methods that choose elements on the device, against the bits of the CPU path."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from wkernels import cpu, elementwise
from wkernels.arguments import pointers_to
from wkernels.gpu import kept, means, ranks, scores
from wspace.recipes import Problems, merge_recipe, parse_recipe, plan_recipe

RECIPES = {
    "ties": "weight: 0.7, density: 0.3",
    "dare_ties": "weight: 0.4, density: 0.6, rescale: true",
    "breadcrumbs": "weight: 0.7, density: 0.6, gamma: 0.05",
    "ties/paper": "density: 0.3",
    "sce": "select_topk: 0.4",
    "ramplus_tl": "",
    "nearswap": "t: 0.01",
    "della": "weight: 0.7, density: 0.5, epsilon: 0.1, rescale: true",
    "della/paper": "weight: 0.7, density: 0.5, epsilon: 0.1",
    "arcee_fusion": "",
    "nuslerp": "weight: 0.7, nuslerp_flatten: false, nuslerp_row_wise: true",
}
"""Methods and their parameters."""
MODELS = {"nearswap": 1, "arcee_fusion": 1, "nuslerp": 2}
"""So many; of the others three."""


def statistics(device: torch.device, dtype: torch.dtype, n: int) -> Callable[[], None]:
    """Sums, agreements, variances, pulls and precision means of two tensors in one chunk."""

    def check() -> None:
        generator = torch.Generator().manual_seed(0)
        base, *rows = torch.randn((4, n), generator=generator).to(dtype)
        there = [row.to(device) for row in rows]
        origin = base.to(device)
        segments, firsts = np.array([[0, n // 3], [n // 3, n]]), np.array([0, 16384])
        mask = elementwise.no_mask(2, 3)
        mask.chance[:], mask.key[:] = 0.7, np.arange(6).reshape(2, 3)
        here = pointers_to(rows), pointers_to([base]), segments, firsts, mask
        threads = torch.get_num_threads()
        sums, counts = np.zeros((2, 2, 3, kept.N_SUMS)), np.zeros((2, 2, 3, 2), np.int64)
        cpu.kept_sums(*here, sums[0], threads=threads)
        kept.kept_sums(there, origin, segments, firsts, mask, sums[1])
        assert np.array_equal(sums[0], sums[1]), "sums"
        cpu.agreements(*here, counts[0], threads=threads)
        kept.agreements(there, origin, segments, firsts, mask, counts[1])
        assert np.array_equal(counts[0], counts[1]), "agreements"
        found = torch.full((n,), torch.nan), torch.full((n,), torch.nan, device=device)
        cpu.variances(*here[:2], n, found[0].numpy(), threads=threads)
        scores.variances(there, origin, found[1])
        assert torch.equal(found[0], found[1].cpu()), "variances"
        out, reach = torch.full((2, n), torch.nan, dtype=dtype), np.array([0.1, 1.0])
        outs = out[0], out[1].to(device)
        arguments = segments, reach, pointers_to([outs[0]])
        cpu.pulled(pointers_to(rows[:1]), here[1], *arguments, threads=threads)
        scores.pulled(there[0], origin, segments, reach, outs[1])
        assert torch.equal(outs[0], outs[1].cpu()), "pull"
        weights, floors, wrong = np.ones((2, 3)), np.array([0.0, 0.1]), np.zeros((2, 2, 3), int)
        diagonals = [row.float().square() for row in rows]
        cpu.precision_mean(
            here[0], pointers_to(diagonals), segments, weights, floors, pointers_to([outs[0]]),
            wrong[0], threads=threads,
        )  # fmt: skip
        means.precision_mean(
            there, [row.to(device) for row in diagonals], segments, weights, floors, outs[1],
            wrong[1],
        )  # fmt: skip
        assert torch.equal(outs[0], outs[1].cpu()), "precision mean"

    return check


def lines(device: torch.device, n: int) -> Callable[[], None]:
    """Chances by rank in lines of several kinds, the longest in parts that are merged."""

    def check() -> None:
        row, base = torch.randn((2, n), generator=torch.Generator().manual_seed(0)).bfloat16()
        row[::3] = base[::3]
        middle = n // 2 // 60 * 60
        segments = np.array([[0, middle], [middle, n]])
        for shape in ((middle // 60, 20, 3), (1, middle // 60, 60)):
            shapes = [shape, (1, n - middle, 1)]
            out = torch.full((2, 1, n), torch.nan)
            there = out[1].to(device)
            given = segments, shapes, [0.5], [0.2]
            ranks.rank_chances([row.to(device)], base.to(device), *given, there)
            for (start, stop), one in zip(segments.tolist(), shapes, strict=True):
                parts = [pointers_to([t[start:stop]]) for t in (row, base)]
                cpu.rank_chances(
                    parts[0], parts[1], stop - start, one, 0.5, 0.2,
                    out[0, 0, start:stop].numpy(), threads=torch.get_num_threads(),
                )  # fmt: skip
            assert torch.equal(out[0], there.cpu()), "chances by rank"

    return check


def recipe(device: torch.device, method: str) -> Callable[[], None]:
    """A whole recipe, from files to a file."""

    def check() -> None:
        with tempfile.TemporaryDirectory(prefix="wspace-bench-") as name:
            folder = Path(name)
            n_models = MODELS.get(method, 3)
            _write(folder, n_models)
            lines = [f"merge_method: {method}", f"base_model: {folder}/base", "models:"]
            lines += [f"  - model: {folder}/run-{i}" for i in range(n_models)]
            lines.append(f"parameters: {{{RECIPES[method]}}}")
            problems = Problems("recipe.yml")
            plan = plan_recipe(parse_recipe("\n".join(lines) + "\n", problems), problems)
            made = []
            for where in ("cpu", "cuda" if device.type == "cuda" else "cpu"):
                out = merge_recipe(plan, folder / f"out-{len(made)}", device=where)
                made.append((out / "model.safetensors").read_bytes())
            assert made[0] == made[1], "other bits than on the CPU"

    return check


def _write(folder: Path, n_models: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (300, 170), "b.weight": (7,), "c.weight": (64, 1000)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for i in range(-1, n_models):
        model = {
            name: (t + 0.1 * (i + 1) * torch.randn(t.shape, generator=generator)).bfloat16()
            for name, t in base.items()
        }
        place = folder / ("base" if i < 0 else f"run-{i}")
        place.mkdir()
        save_file(model, place / "model.safetensors")
