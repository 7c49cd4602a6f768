"""Opening models: their tensors as they are meant, which may not be how files hold them."""

from __future__ import annotations

from pathlib import Path

from wspace.derived.quantised import dequantised
from wspace.errors import CheckpointError
from wspace.storage.checkpoints import Checkpoint, open_checkpoint


def open_model(path: str | Path) -> Checkpoint:
    """:func:`open_checkpoint`, with scaled 8-bit weights as what they stand for.

    Raises CheckpointError, for weights that cannot be averaged too: GGUF, GPTQ and the like.
    """
    path = Path(path)
    if path.suffix == ".gguf" or (path.is_dir() and _only_gguf(path)):
        raise CheckpointError(
            f"{path}: GGUF is quantised and cannot be averaged; give the safetensors weights that "
            "it was made from"
        )
    return dequantised(open_checkpoint(path))


def _only_gguf(folder: Path) -> bool:
    others = (*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.pt"))
    return not others and any(folder.glob("*.gguf"))
