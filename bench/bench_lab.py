"""Evaluating a mix: its forward pass, and beside it the mixing, in a live encoder of 22.7M weights.

The mix is a line between two models, a centroid of eight, or all of them with as many factors. What
it is compared with is what users write: a state dict made by a loop over tensors, and
``load_state_dict``. Both mixes are checked against each other, and with float64.
"""

from __future__ import annotations

import pytest
import torch

from bench import zoo as zoos
from bench.limits import Work, seconds_of
from wspace.lab.encoders import open_encoder
from wspace.modules import ResidentZoo
from wspace.zoo import open_zoo

MODELS = 8
ROWS, TOKENS = 1000, 32  # of a probe: a small one, so that the mixing weighs heavily
SHARE = 0.05
MIXES = {
    "line": [0.3, 0.7, *[0.0] * (MODELS - 2)],
    "centroid": [1 / MODELS] * MODELS,
    "task_arithmetic": [0.4, -0.2, 0.3, 1.5, -0.7, 0.1, 0.2, -0.3],
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory, scale):
    """The encoder, a module of it, its zoo in memory, state dicts of that, and a probe's rows."""
    folder = tmp_path_factory.mktemp("lab")
    list(zoos.make_minilm(folder, models=MODELS))
    encoder = open_encoder("minilm", device="cpu")
    members = [folder / f"model-{i}" for i in range(MODELS)]
    zoo = open_zoo(members, base=folder / "base", exclude=["pooler.*"])
    draw = torch.Generator().manual_seed(0)
    n_batches = max(1, round(ROWS * scale / 100))
    batches = [
        {
            "input_ids": torch.randint(1000, 30000, (100, TOKENS), generator=draw),
            "attention_mask": torch.ones(100, TOKENS, dtype=torch.long),
        }
        for _ in range(n_batches)
    ]
    resident = ResidentZoo(zoo)
    states = resident.mix(torch.cat([torch.eye(MODELS), torch.zeros(1, MODELS)]))
    return encoder, encoder.module().eval(), resident, states, batches


@pytest.mark.parametrize("name", MIXES)
def bench_mix_into_a_live_module(benchmark, lab, name, scale):
    """``extra_info`` has the shares: of the forward pass, and of the loop over tensors."""
    encoder, module, resident, states, batches = lab
    weights = MIXES[name]

    def forward() -> None:
        with torch.inference_mode(), encoder.autocast():
            for batch in batches:
                module(**batch)

    def loop() -> None:
        module.load_state_dict(_by_a_loop(states, weights), strict=False)

    def mix() -> None:
        resident.mix_into(module, weights)

    loop()
    expected = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    passes, loops = [], []

    def before() -> None:
        passes.append(seconds_of(Work(forward, 1)))
        loops.append(seconds_of(Work(loop, 1)))

    benchmark.pedantic(mix, setup=before, rounds=5, warmup_rounds=1)
    _check(module, expected, states, weights)
    if benchmark.stats is None:
        return
    seconds = benchmark.stats.stats.median
    shares = {
        "of the forward pass": seconds / _median(passes),
        "of a loop over tensors and load_state_dict": seconds / _median(loops),
    }
    benchmark.extra_info["shares"] = shares
    print(f"\n{name}: mixing takes " + ", ".join(f"{v:.3f} {k}" for k, v in shares.items()))
    if scale >= 1:
        assert shares["of the forward pass"] < SHARE


def _by_a_loop(
    states: list[dict[str, torch.Tensor]], weights: list[float]
) -> dict[str, torch.Tensor]:
    """``states``: of the models, then of the base."""
    mixed = {}
    for name, origin in states[-1].items():
        total = origin.clone()
        for state, weight in zip(states, weights, strict=False):
            if weight:
                total.add_(state[name] - origin, alpha=weight)
        mixed[name] = total
    return mixed


def _check(module, expected, states, weights) -> None:
    """Against the loop, to a few roundings of the float32 sum."""
    size = sum(abs(weight) for weight in weights) + 1
    for name, tensor in module.state_dict().items():
        if name not in states[-1]:
            continue
        exact = states[-1][name].double()
        exact = exact + sum(
            w * (s[name].double() - states[-1][name].double())
            for w, s in zip(weights, states, strict=False)
        )
        limit = 2 * MODELS * torch.finfo(torch.float32).eps * size * exact.abs().max()
        assert (tensor.double() - exact).abs().max() <= limit, name
        assert (tensor - expected[name]).abs().max() <= 2 * limit, name


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
