"""Small zoos on disk, with any shard layout and order of tensors."""

import json

import torch
from safetensors.torch import save_file

SHAPES = {
    "embed.weight": (50, 8),
    "layers.0.weight": (257, 129),  # two blocks and an odd tail
    "layers.0.bias": (129,),
    "layers.1.weight": (300, 130),
    "norm.weight": (1,),
    "head.weight": (0, 8),
    "scale": (),
}


def state(seed, dtype=torch.float32, shapes=SHAPES, like=None, step=1e-2):
    """A state dict of random tensors; near another one if given."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        tensors[name] = (noise if like is None else like[name].float() + step * noise).to(dtype)
    return tensors


def save(folder, tensors, *, shards=1, reverse=False, index=True):
    """Write a checkpoint: tensors dealt to shards, in order or backwards."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)[:: -1 if reverse else 1]
    if shards == 1:
        ordered = {name: tensors[name].contiguous() for name in names}
        save_file(ordered, folder / "model.safetensors")
        return folder
    weight_map = {}
    for k in range(shards):
        file = f"model-{k + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name].contiguous() for name in names[k::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if index:
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text)
    return folder


def zoo_on_disk(root, n=3, dtype=torch.float32, step=1e-2, extra=None, **layout):
    """``root/base`` and ``root/run-0 ...``; returns the state dicts, the base's last."""
    base = state(0, dtype)
    states = [state(i + 1, dtype, like=base, step=step) for i in range(n)] + [base]
    for name, tensors in zip([*(f"run-{i}" for i in range(n)), "base"], states, strict=True):
        save(root / name, tensors | (extra or {}), **layout)
    return states


def flat(tensors, names=None):
    """A row of X in float64."""
    return torch.cat([tensors[name].double().flatten() for name in names or sorted(tensors)])
