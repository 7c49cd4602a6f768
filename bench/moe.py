"""A mixture of experts of any number of tensors, as headers whose data are holes in the file."""

from __future__ import annotations

from pathlib import Path

from wspace.storage.headers import render_header

EXPERTS = 128
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def make_headers(folder: Path, n_tensors: int, *, shards: int = 8) -> Path:
    """Writes a checkpoint of ``n_tensors`` bfloat16 tensors, most of them of experts."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "model.embed_tokens.weight": ("BF16", (1024, 64)),
        "model.norm.weight": ("BF16", (64,)),
    }
    layer = 0
    while len(shapes) < n_tensors:
        prefix = f"model.layers.{layer}"
        shapes[f"{prefix}.mlp.gate.weight"] = ("BF16", (EXPERTS, 64))
        for expert in range(EXPERTS):
            for projection in PROJECTIONS:
                shapes[f"{prefix}.mlp.experts.{expert}.{projection}.weight"] = ("BF16", (16, 64))
        layer += 1
    names = list(shapes)[:n_tensors]
    folder.mkdir(parents=True)
    for k in range(shards):
        part = {name: shapes[name] for name in names[k::shards]}
        header, _, length = render_header(part, {"format": "pt"})
        file = folder / f"model-{k + 1:05}-of-{shards:05}.safetensors"
        with file.open("wb") as target:
            target.write(header)
            target.truncate(length)
    return folder
