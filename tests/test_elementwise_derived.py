"""Methods that choose elements, on weights that no file holds: LoRA applied, 8-bit with scales.

They choose among what the weights stand for: the same bits as from the weights written out.
"""

from pathlib import Path

import pytest
import torch

import wspace as ws
from tests import elementwise_truth as truth
from tests.adapters import adapter
from tests.checkpoints import load, save_model
from tests.recipes import merged
from tests.test_quantised import scaled

NAME, SHAPE = "layers.0.q.weight", (1300, 390)
WEIGHTS = [0.5, 0.25, 1.5]
METHODS = {
    "ties": "density: 0.3",
    "dare_ties": "density: 0.4",
    "breadcrumbs": "density: 0.6, gamma: 0.02",
    "della": "density: 0.5, epsilon: 0.2",
    "sce": "select_topk: 0.3",
    "ramplus_tl": "epsilon: 0.01, r: 0.5, alpha: 0.3",
}


@pytest.fixture(scope="module", params=["lora", "fp8"])
def models(request, tmp_path_factory):
    """``(derived, plain, base)``: names of three models as a recipe has them, and of the base."""
    root = tmp_path_factory.mktemp(request.param)
    generator = torch.Generator().manual_seed(1)
    norm = {"norm.weight": torch.randn(70, generator=generator).bfloat16()}
    base = {NAME: torch.randn(SHAPE, generator=generator).bfloat16() * 2e-3}
    save_model(root / "base", base | norm)
    derived = []
    for k in range(3):
        if request.param == "lora":
            adapter(root / f"lora{k}", k + 1, {NAME.removesuffix(".weight"): SHAPE}, rank=3 + k)
            derived.append(f"{root}/base+{root}/lora{k}")
        else:
            tensors, _ = scaled(k, "blocks", SHAPE)
            named = {key.replace("a.", NAME[:-6], 1): t for key, t in tensors.items()}
            config = {"quantization_config": {"quant_method": "fp8"}, "torch_dtype": "bfloat16"}
            save_model(root / f"m{k}", named | norm, config)
            derived.append(f"{root}/m{k}")
    for k, name in enumerate(derived):
        ws.merge(ws.open_zoo(name), [[1.0]], root / f"plain{k}", dtype="float32")
    return derived, [f"{root}/plain{k}" for k in range(3)], f"{root}/base"


def recipe(method, models, base):
    lines = [f"merge_method: {method}", f"base_model: {base}", "dtype: bfloat16", "models:"]
    lines += [
        f"  - {{model: {model}, parameters: {{weight: {weight}}}}}"
        for model, weight in zip(models, WEIGHTS, strict=True)
    ]
    return "\n".join([*lines, f"parameters: {{{METHODS[method]}}}"]) + "\n"


@pytest.mark.parametrize("method", METHODS)
def test_bits_are_those_of_the_weights_written_out(models, tmp_path, method):
    derived, plain, base = models
    expected = merged(recipe(method, plain, base), tmp_path / "expected")
    assert not torch.equal(expected[NAME], load(Path(base))[NAME])
    for memory in ("1GiB", "20MiB"):  # there the tensor is cut, and read again for its statistics
        found = merged(recipe(method, derived, base), tmp_path / memory, memory=memory)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name


def test_ties_is_that_of_its_formula(models, tmp_path):
    derived, plain, base = models
    found = merged(recipe("ties", derived, base), tmp_path / "out")[NAME].double().flatten()
    origin = load(Path(base))[NAME]
    d = truth.differences([load(Path(model))[NAME] for model in plain], origin)
    expected = truth.task_vectors(
        truth.trimmed(d, [0.3] * 3), origin.flatten(), WEIGHTS, consensus=True, normalize=True
    )
    terms = d.double().abs().sum(0) + origin.double().flatten().abs()
    bound = 2**-8 * expected.abs() + 40 * torch.finfo(torch.float32).eps * terms
    assert ((found - expected).abs() <= bound).all()
