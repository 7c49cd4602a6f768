"""LoRA adapters made by hand, as PEFT writes them."""

import json

import torch
from safetensors.torch import save_file


def factors(seed, rank, shape, dtype=torch.float32):
    """``A [rank, in]`` and ``B [out, rank]`` for a weight of ``shape [out, in]``."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, shape[1], generator=generator).to(dtype)
    return a, (0.1 * torch.randn(shape[0], rank, generator=generator)).to(dtype)


def save_adapter(folder, tensors, **config):
    """``tensors``: as PEFT names them, without ``base_model.model.`` before the name."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"base_model.model.{k}": t.clone().contiguous() for k, t in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | config
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def adapter(folder, seed, shapes, *, rank=4, alpha=8, dtype=torch.float32, **config):
    """An adapter of the weights ``{module: shape}``; returns what it adds to each, in float64."""
    tensors, added = {}, {}
    for k, (module, shape) in enumerate(shapes.items()):
        a, b = factors(100 * seed + k, rank, shape, dtype)
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        added[f"{module}.weight"] = alpha / rank * (b.double() @ a.double())
    save_adapter(folder, tensors, r=rank, lora_alpha=alpha, **config)
    return added
