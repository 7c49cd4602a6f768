"""PyTorch's ``.bin`` and ``.pt`` files, mapped into memory by torch's own loader. Imports torch."""

from __future__ import annotations

from pathlib import Path

import torch

from wspace.errors import CheckpointError
from wspace.storage.headers import CODES, TensorRecord, storable

_OTHERS = {
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.bool: "BOOL", torch.complex64: "C64",
}  # fmt: skip


def mapped_tensors(path: Path):
    """``{name: (record, bytes)}`` of a state dict, and ``{name: name}`` of tensors stored once.

    ``bytes`` is a uint8 array over the mapped file; a tensor stored with gaps or transposed is
    copied into order first. Only tensors are unpickled (``weights_only``), at most one level down
    under the key ``state_dict`` or ``model``.
    """
    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises many kinds for files that lie
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path}: torch's weights-only loader refuses it: {reason}; "
            "save it again as safetensors where you trust it"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded:
        raise CheckpointError(f"{path}: expected a state dict, found {type(loaded).__name__}")
    records, aliases, places = {}, {}, {}
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            kind = type(tensor).__name__
            raise CheckpointError(f"{path}: {name!r}: expected a tensor, found {kind}")
        if not storable(name):
            raise CheckpointError(f"{path}: a tensor cannot be named {name!r}")
        dtype = CODES.get(str(tensor.dtype).removeprefix("torch."), _OTHERS.get(tensor.dtype))
        view = tensor.is_meta or tensor.is_conj() or tensor.is_neg()  # not its bytes alone
        if dtype is None or tensor.layout is not torch.strided or view:
            raise CheckpointError(
                f"{path}: {name!r}: unsupported {tensor.dtype} {tensor.layout} on {tensor.device}"
                f"{' (a conjugate or negative view)' if view and not tensor.is_meta else ''}"
            )
        place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in places:
            aliases[name] = places[place]
            continue
        places[place] = name
        try:
            tensor = tensor.detach().contiguous()
        except (RuntimeError, MemoryError):  # a huge shape over few bytes, by strides of 0
            raise CheckpointError(
                f"{path}: {name!r}: no memory to expand it to {list(tensor.shape)}"
            ) from None
        record = TensorRecord(dtype, tuple(tensor.shape), 0, tensor.nbytes)
        records[name] = (record, tensor.view(-1).view(torch.uint8).numpy())
    return records, aliases
