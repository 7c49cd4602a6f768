"""Opening models: their tensors as they are meant, which may not be how files hold them."""

from __future__ import annotations

import re
from pathlib import Path

from wspace.derived.adapters import CONFIG, Adapter, adapted, is_adapter, open_adapter
from wspace.derived.quantised import dequantised
from wspace.errors import CheckpointError
from wspace.storage.checkpoints import Checkpoint, open_checkpoint
from wspace.storage.remote import Location, RemotePath, is_remote, location

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def open_model(name: str | Location) -> Checkpoint:
    """A model as :func:`open_checkpoint` has it, with scaled 8-bit weights as what they stand for.

    ``name``: a path, a Hub id ``owner/name[@revision]``, a URL (see :func:`open_checkpoint`), or
    one of these with a LoRA adapter that is applied to it, ``model+adapter``. Raises
    CheckpointError, for weights that cannot be averaged too: GGUF, GPTQ and the like.
    """
    model, plus, adapter = str(name).partition("+")
    if plus and (is_remote(name) or not Path(str(name)).exists()):
        return adapted(open_model(model), open_adapter(locate(adapter)))
    path = locate(name)
    if path.suffix == ".gguf" or (path.is_dir() and _only_gguf(path)):
        raise CheckpointError(
            f"{path}: GGUF is quantised and cannot be averaged; give the safetensors weights that "
            "it was made from"
        )
    if is_adapter(path) and not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path}: is a LoRA adapter ({CONFIG}), not a model; write MODEL+{path} for its model "
            "with it"
        )
    return dequantised(open_checkpoint(path))


def open_member(name: str | Location, base: Checkpoint | None) -> Checkpoint | Adapter:
    """:func:`open_model`; of an adapter, the base with it, or without a base the adapter alone."""
    path = Path(str(name)) if "+" in str(name) else location(name)
    if not is_adapter(path) or (path / "config.json").is_file():
        return open_model(path if isinstance(path, RemotePath) else name)
    adapter = open_adapter(path)
    return adapted(base, adapter) if base else adapter


def _only_gguf(folder: Location) -> bool:
    others = (*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.pt"))
    return not others and any(folder.glob("*.gguf"))


def locate(name: str | Location) -> Location:
    """The path or URL itself, or the local copy of a Hub id's model, fetched if need be."""
    if is_remote(name):
        return location(name)
    assert not isinstance(name, RemotePath)
    return _fetch(str(name)) if is_hub_id(str(name)) else Path(name)


def is_hub_id(name: str) -> bool:
    """Whether it is ``owner/name[@revision]``, and no path of a file or folder."""
    return _HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def _fetch(identifier: str) -> Path:
    """The local copy of a model of the Hub, ``owner/name`` or ``owner/name@revision``."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"{identifier}: no such file or folder (to fetch it from the Hub, install "
            "huggingface_hub)"
        ) from None
    name, _, revision = identifier.partition("@")
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt",
                                "*.model"],
            )
        )  # fmt: skip
    except Exception as error:  # the Hub's client and its HTTP library raise many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise CheckpointError(
            f"{identifier}: no such file or folder, and the Hub gave none: {reason}"
        ) from None
