"""Recipes run by wspace and by mergekit, and how far the results are apart.

    python -m bench.compare_recipes --mergekit PATH/mergekit-yaml

Makes tiny random models (a Llama, a GPT-2 and a BERT), runs every recipe by both programs, and
prints for each the largest difference relative to the largest value of its tensor. Exits with
status 1 if one in float32 is above its limit, or if one program refuses what the other takes.

Elements of arcee_fusion whose importance is nearer to the threshold than float32 can tell go either
way: they are left out, and counted; of models ``near`` their base these are all, so it is not run.
Of merges of bfloat16 models (``half``), the distance of each from the float64 result is printed, in
units in the last place; ours must be within one.

Known to fail, and ours is the float64 result, rounded once: ``bert linear to bfloat16``, where one
element is beside a tie and mergekit's float32 sum goes the other way; ``bert nuslerp of deltas by
columns``: a column of the token types' embeddings has two elements, two deltas are opposite to
8e-4, and with mergekit's float32 cosine the result is a tenth of its value off.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

LIMIT = 1e-6
NEAR_LIMIT = 1e-5
"""For methods whose float32 angles of near-parallel tensors are themselves that uncertain."""

STEP = 0.3
"""Of the models from the base, relative: enough for real angles. ``near`` ones use 0.003."""

LOG_ERROR = 4 * torch.finfo(torch.float32).eps
"""Of the logarithm of a softmax in float32: its exponential, their sum, and the quotient."""

HALF = "half"
"""The family of bfloat16 models: the Llama, rounded."""


class Case(NamedTuple):
    name: str
    text: str
    limit: float = LIMIT

    @property
    def ulps(self) -> bool:
        """Whether both are compared with the float64 result, in units in the last place."""
        return self.name.startswith(HALF)


def _models(family: str, n: int, parameters: list[str] | None = None, first: int = 0) -> str:
    lines = ["models:"]
    for k in range(n):
        lines.append(f"  - model: {family}/m{first + k}")
        if parameters:
            lines.append(f"    parameters: {{{parameters[k]}}}")
    return "\n".join(lines)


def _recipe(method: str, body: str, base: str | None = None, more: str = "") -> str:
    lines = [f"merge_method: {method}", body, "dtype: float32"]
    if base:
        lines.append(f"base_model: {base}")
    return "\n".join([*lines, more]) + "\n"


def cases(family: str, near: bool) -> Iterator[Case]:
    """The recipes for one family of models: ``m0`` to ``m2`` and ``base``, of four layers."""
    base = f"{family}/base"
    limit = NEAR_LIMIT if near else LIMIT
    weights = ["weight: 0.3", "weight: 0.5", "weight: 1.1"]

    def case(name: str, text: str, limit: float = LIMIT) -> Case:
        return Case(f"{family} {name}", text, limit)

    yield case("linear", _recipe("linear", _models(family, 3, weights)))
    yield case(
        "linear, not normalised",
        _recipe("linear", _models(family, 3, weights), more="parameters: {normalize: false}"),
    )
    yield case(
        "linear, gradient and filter",
        _recipe(
            "linear",
            _models(
                family, 2,
                ["weight: [0.2, 0.8, 0.1]",
                 "weight: [{filter: mlp, value: [1, 0]}, {filter: attn, value: 0.25}, {value: 2}]"],
            ),
        ),
    )  # fmt: skip
    yield case("linear with a base listed last", _recipe(
        "linear", _models(family, 2), base, "parameters: {weight: 0.7}"))  # fmt: skip
    yield case("task_arithmetic", _recipe(
        "task_arithmetic", _models(family, 3, weights), base, "parameters: {lambda: 1.7}"
    ))  # fmt: skip
    yield case("task_arithmetic, normalised", _recipe(
        "task_arithmetic", _models(family, 2, ["weight: 2", "weight: [-0.5, 0.5]"]), base,
        "parameters: {normalize: true}",
    ))  # fmt: skip
    for t in ("0.3", "[0, 0.5, 1]", "[{filter: mlp, value: [0, 1]}, {value: 0.25}]", "1.5"):
        yield case(f"slerp t = {t}", _recipe(
            "slerp", _models(family, 1), base, f"parameters: {{t: {t}}}"), limit)  # fmt: skip
    pair = ["weight: 0.3", "weight: 0.9"]
    yield case("nuslerp", _recipe("nuslerp", _models(family, 2, pair)), limit)
    yield case("nuslerp of deltas", _recipe("nuslerp", _models(family, 2, pair), base), limit)
    rows = "parameters: {nuslerp_flatten: false}"
    yield case("nuslerp by rows", _recipe("nuslerp", _models(family, 2, pair), None, rows), limit)
    yield case(
        "nuslerp of deltas by rows", _recipe("nuslerp", _models(family, 2, pair), base, rows), limit
    )
    columns = "parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}"
    for name, origin in (("nuslerp by columns", None), ("nuslerp of deltas by columns", base)):
        yield case(name, _recipe("nuslerp", _models(family, 2, pair), origin, columns), limit)
    yield case("multislerp", _recipe("multislerp", _models(family, 3, weights)), limit)
    yield case(
        "multislerp of deltas", _recipe("multislerp", _models(family, 3, weights), base), limit
    )
    yield case("multislerp, not normalised", _recipe(
        "multislerp", _models(family, 3, weights), base, "parameters: {normalize_weights: false}"
    ), limit)  # fmt: skip
    yield case("karcher of two", _recipe("karcher", _models(family, 2)), limit)
    yield case("karcher of three", _recipe("karcher", _models(family, 3)), limit)
    yield case(
        "karcher, 2 steps",
        _recipe("karcher", _models(family, 3), more="parameters: {max_iter: 2, tol: 0.001}"),
        limit,
    )
    yield case("model_stock", _recipe("model_stock", _models(family, 3), base))
    yield case("model_stock by rows", _recipe(
        "model_stock", _models(family, 2), base, "parameters: {filter_wise: true}"))  # fmt: skip
    yield from _elementwise(family, base)
    if not near:
        fused = _recipe("arcee_fusion", _models(family, 1), base)
        yield case("arcee_fusion", fused, NEAR_LIMIT)
    yield case("passthrough", _recipe("passthrough", _models(family, 1)))
    yield case("passthrough, scaled", _recipe("passthrough", _models(
        family, 1, ["scale: [{filter: mlp, value: [0.5, 2]}, {value: 1.5}]"])))  # fmt: skip
    yield case(
        "slices, passthrough",
        f"""\
merge_method: passthrough
slices:
  - sources: [{{model: {family}/m0, layer_range: [0, 3]}}]
  - sources: [{{model: {family}/m1, layer_range: [1, 3], parameters: {{scale: [0.5, 2]}}}}]
  - sources: [{{model: {family}/m2, layer_range: [3, 4]}}]
dtype: float32
""",
    )
    yield case(
        "slices, linear",
        f"""\
merge_method: linear
slices:
  - sources:
      - {{model: {family}/m0, layer_range: [0, 2], parameters: {{weight: [0.1, 0.9]}}}}
      - {{model: {family}/m1, layer_range: [1, 3], parameters: {{weight: 0.4}}}}
  - sources:
      - {{model: {family}/m2, layer_range: [2, 4]}}
      - model: {family}/m1
        layer_range: [2, 4]
        parameters: {{weight: [{{filter: .3., value: 5}}, {{value: 2}}]}}
    parameters: {{weight: [0.3, 0.6]}}
dtype: float32
""",
    )
    yield case(
        "slices, slerp",
        f"""\
merge_method: slerp
base_model: {base}
slices:
  - sources:
      - {{model: {base}, layer_range: [0, 4]}}
      - {{model: {family}/m1, layer_range: [0, 4]}}
parameters:
  t: [{{filter: mlp, value: [0, 0.5, 0.3, 0.7, 1]}}, {{value: 0.5}}]
dtype: float32
""",
        limit,
    )
    yield Case(
        f"{family} linear to bfloat16",
        _recipe("linear", _models(family, 3, weights), more="out_dtype: bfloat16"),
        2**-8,
    )


def _elementwise(family: str, base: str) -> Iterator[Case]:
    """The deterministic methods that choose elements; gamma is such that no tensor has none."""
    signed = ["weight: 0.5", "weight: 1.25", "weight: -0.25"]

    def three(method: str, own: str, overall: str) -> str:
        parameters = [f"{weight}, {own}" if own else weight for weight in signed]
        return _recipe(method, _models(family, 3, parameters), base, f"parameters: {{{overall}}}")

    def of_all(method: str, n: int, overall: str) -> str:
        return _recipe(method, _models(family, n), base, f"parameters: {{{overall}}}")

    for name, text in {
        "ties": three("ties", "density: 0.4", ""),
        "ties, all kept": three("ties", "", "lambda: 1.5"),
        "ties, not normalised": three("ties", "density: 0.3", "normalize: false, lambda: 0.7"),
        "ties, rescaled": three("ties", "density: 0.3", "rescale: true"),
        "ties, gradient and filter": three(
            "ties", "density: [{filter: mlp, value: [0.2, 0.9]}, {value: 0.5}]", ""
        ),
        "breadcrumbs": three("breadcrumbs", "density: 0.6, gamma: 0.1", ""),
        "breadcrumbs_ties": three("breadcrumbs_ties", "density: 0.6, gamma: 0.1", "lambda: 1.2"),
        "sce": of_all("sce", 3, ""),
        "sce, selected": of_all("sce", 3, "select_topk: 0.3"),
        "ram": of_all("ram", 3, "epsilon: 0.01"),
        "ramplus_tl": of_all("ramplus_tl", 3, "epsilon: 0.01, r: 0.5, alpha: 0.3"),
        "nearswap": of_all("nearswap", 1, "t: 0.02"),
    }.items():
        yield Case(f"{family} {name}", text)
    text = three("ties", "density: 0.4", "")
    yield Case(f"{family} ties to bfloat16", text + "out_dtype: bfloat16\n", 2**-8)


def half_cases() -> Iterator[Case]:
    """Merges of bfloat16 models, written in bfloat16."""
    base, weights = f"{HALF}/base", [f"weight: {w}" for w in (0.3333, 0.3333, 0.3333)]
    three = _models(HALF, 3, weights)
    dense = _models(HALF, 3, [f"{weight}, density: 0.4" for weight in weights])
    for name, method, models, origin, more in (
        ("linear", "linear", three, None, ""),
        ("task_arithmetic", "task_arithmetic", three, base, "parameters: {lambda: 1.7}"),
        ("slerp", "slerp", _models(HALF, 1), base, "parameters: {t: 0.3}"),
        ("karcher", "karcher", _models(HALF, 3), None, ""),
        ("model_stock", "model_stock", _models(HALF, 3), base, ""),
        ("ties", "ties", dense, base, ""),
    ):
        text = _recipe(method, models, origin, more).replace("dtype: float32", "dtype: bfloat16")
        yield Case(f"{HALF} {name}", text, 1.0)


def make_models(root: Path) -> dict[str, bool]:
    """Folders ``FAMILY/base`` and ``FAMILY/m0`` ...; which families are near their base."""
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        BertConfig,
        GPT2Config,
        LlamaConfig,
    )
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    llama = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        tie_word_embeddings=False,
    )  # fmt: skip
    gpt2 = GPT2Config(vocab_size=64, n_embd=32, n_layer=4, n_head=4, n_positions=64)
    bert = BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    # enough for a density to keep some: of less than one mergekit keeps one, and wspace none
    bert.num_labels = 8
    families = {
        "llama": (AutoModelForCausalLM, llama, STEP),
        "near": (AutoModelForCausalLM, llama, STEP / 100),
        "gpt2": (AutoModelForCausalLM, gpt2, STEP),
        "bert": (AutoModelForSequenceClassification, bert, STEP),
    }
    for family, (kind, config, step) in families.items():
        torch.manual_seed(0)
        module = kind.from_config(config)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2)
            origin = [parameter.clone() for parameter in module.parameters()]
            module.save_pretrained(root / family / "base")
            for k in range(3):
                for parameter, start in zip(module.parameters(), origin, strict=True):
                    parameter.copy_(start + 0.2 * step * torch.randn_like(parameter))
                module.save_pretrained(root / family / f"m{k}")
    for name in ("base", "m0", "m1", "m2"):
        module = AutoModelForCausalLM.from_pretrained(root / "llama" / name)
        module.bfloat16().save_pretrained(root / HALF / name)
    return {family: step < STEP for family, (_, _, step) in families.items()}


def load(folder: Path) -> dict[str, torch.Tensor]:
    return {k: t for file in folder.glob("*.safetensors") for k, t in load_file(file).items()}


class Outcome(NamedTuple):
    ours: str | None  # why it was refused
    theirs: str | None
    error: float
    worst: str
    more: str = ""


def decided(x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Where arcee_fusion's importance is beyond its threshold whatever float32 makes of either.

    A row's divergence sum p log(p / q) in float32 is off by LOG_ERROR in each of two logarithms,
    and by roundings of its terms. Quantiles rise with each element: those of the least and of the
    largest importances bound them.
    """
    x, base = x.double(), base.double()
    p, q = x.softmax(-1) + 1e-8, base.softmax(-1) + 1e-8
    terms = p * (p / q).log()
    error = 2 * LOG_ERROR * p.sum(-1, keepdim=True) + LOG_ERROR * terms.abs().sum(-1, keepdim=True)
    ends = [(x - base).abs() * (terms.sum(-1, keepdim=True) + sign * error) for sign in (-1, 1)]
    quantiles = []
    for end in ends:
        ranked = end.flatten().sort().values
        quantiles.append([ranked[int(f * (len(ranked) - 1))] for f in (0.25, 0.5, 0.75)])
    (low_1, low_2, low_3), (high_1, high_2, high_3) = quantiles
    above = ends[0] > high_2 + 1.5 * (high_3 - low_1)
    below = ends[1] < low_2 + 1.5 * (low_3 - high_1)
    return above | below


def units(a: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """How far bfloat16 values are from exact ones, in units in their last place."""
    information = torch.finfo(torch.bfloat16)
    exponent = exact.abs().clamp_min(information.smallest_normal).log2().floor()
    # what a float32 sum loses where terms cancel is no rounding of the result
    noise = 8 * torch.finfo(torch.float32).eps * exact.abs().max()
    return ((a.double() - exact).abs() - noise).clamp_min(0) / (information.eps * 2.0**exponent)


def against_exact(outs: dict[str, Path]) -> Outcome:
    """Both sides' largest distance in units in the last place, and how much is not the nearest."""
    found = {side: load(out) for side, out in outs.items()}
    text, largest = [], {}
    for side in ("ours", "theirs"):
        distances = torch.cat([
            units(found[side][name], exact).flatten() for name, exact in found["exact"].items()
        ])  # fmt: skip
        largest[side] = float(distances.max())
        share = float((distances > 0.5).double().mean())
        text.append(f"{largest[side]:.3g} ulp ({share:.2%} beyond half)")
    return Outcome(None, None, largest["ours"], "", f"ours {text[0]}, mergekit {text[1]}")


def compare(root: Path, case: Case, number: int, mergekit: str) -> Outcome:
    recipe = root / f"recipe-{number}.yml"
    recipe.write_text(case.text)
    outs = {side: root / f"{side}-{number}" for side in ("ours", "theirs")}
    if case.ulps:
        outs["exact"] = root / f"exact-{number}"
        exact = root / f"exact-{number}.yml"
        exact.write_text(case.text + "out_dtype: float64\n")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    commands = {
        "ours": [sys.executable, "-m", "wspace", "merge", recipe.name, "-o", outs["ours"].name],
        "theirs": [
            mergekit,
            recipe.name,
            outs["theirs"].name,
            "--no-copy-tokenizer",
            "--no-write-model-card",
        ],
    }
    if case.ulps:
        ours = [sys.executable, "-m", "wspace", "merge"]
        commands["exact"] = [*ours, f"exact-{number}.yml", "-o", outs["exact"].name]
    failures: dict[str, str | None] = {}
    for side, command in commands.items():
        path = f"{Path(__file__).parent.parent}"
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=root, check=False,
            env=environment | ({} if side == "theirs" else {"PYTHONPATH": path}),
        )  # fmt: skip
        last = (done.stderr.strip().splitlines() or ["?"])[-1]
        failures[side] = last if done.returncode else None
    if failures["ours"] or failures["theirs"]:
        return Outcome(failures["ours"], failures["theirs"], float("nan"), "")
    if case.ulps:
        outcome = against_exact(outs)
        for out in outs.values():
            shutil.rmtree(out)
        return outcome
    ours, theirs = (load(outs[side]) for side in ("ours", "theirs"))
    fused: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    if "arcee_fusion" in case.name:
        family = root / case.name.split()[0]
        x, base = load(family / "m0"), load(family / "base")
        fused = {name: (x[name], base[name]) for name in x}
    error, worst, undecided, elements = 0.0, "", 0, 0
    for name in theirs.keys() | ours.keys():
        if name not in ours or name not in theirs:
            return Outcome(None, None, float("inf"), f"{name} is in one output only")
        a, b = ours[name].double(), theirs[name].double()
        scale = b.abs().max().clamp_min(1e-30)
        if a.shape != b.shape:
            return Outcome(None, None, float("inf"), name)
        off = (a - b).abs() / scale
        if fused:
            counted = decided(*fused[name])
            undecided += int((~counted).sum())
            elements += counted.numel()
            off = off[counted]
        difference = float(off.max()) if off.numel() else 0.0
        if not difference <= error:
            error, worst = difference, name
    for out in outs.values():
        shutil.rmtree(out)
    more = f"; {undecided} of {elements} at the threshold left out" if fused else ""
    return Outcome(None, None, error, worst, more)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare_recipes", description="Compare recipes with mergekit."
    )
    parser.add_argument("--mergekit", default=os.environ.get("MERGEKIT"), metavar="PATH",
                        help="mergekit-yaml, an external program")  # fmt: skip
    parser.add_argument("--only", default="", help="recipes whose names begin so")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(arguments)
    if not options.mergekit:
        parser.error("give --mergekit, or set MERGEKIT")
    bad = 0
    with tempfile.TemporaryDirectory(prefix="wspace-recipes-") as folder:
        root = Path(folder)
        families = make_models(root)
        chosen = [
            case
            for family, near in families.items()
            for case in cases(family, near)
            if case.name.startswith(options.only)
        ]
        chosen += [case for case in half_cases() if case.name.startswith(options.only)]
        with ThreadPoolExecutor(options.jobs) as pool:
            outcomes = pool.map(
                lambda item: compare(root, item[1], item[0], options.mergekit), enumerate(chosen)
            )
            for case, outcome in zip(chosen, outcomes, strict=True):
                refused = outcome.ours or outcome.theirs
                good = not refused and outcome.error <= case.limit
                bad += not good
                text = f"{outcome.error:.1e} (limit {case.limit:.0e}) {outcome.worst}{outcome.more}"
                if case.ulps:
                    text = f"{outcome.more} (limit {case.limit:g})"
                if refused:
                    text = f"ours: {outcome.ours}; mergekit: {outcome.theirs}"
                print(f"{'ok ' if good else 'BAD'} {case.name}: {text}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} within their limit")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
