"""PyTorch's ``.bin`` and ``.pt`` files, opened by torch's own loader. Imports torch."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from wspace.errors import CheckpointError
from wspace.storage.archives import check_archive
from wspace.storage.headers import CODES, TensorRecord, storable

_OTHERS = {
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.bool: "BOOL", torch.complex64: "C64",
}  # fmt: skip


def pickled_tensors(path: Path):
    """``{name: (record, bytes)}`` of a state dict, and ``{name: name}`` of tensors stored once.

    ``bytes`` is None for a tensor that lies in the file as it is, at ``record.start``; one that is
    stored with gaps or transposed is copied into order, a uint8 array. Only tensors are unpickled
    (``weights_only``), at most one level down under the key ``state_dict`` or ``model``.
    """
    check_archive(path)
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
    mappings = _mappings(path)
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            kind = type(tensor).__name__
            raise CheckpointError(f"{path}: {name!r:.200}: expected a tensor, found {kind}")
        if not storable(name):
            raise CheckpointError(f"{path}: a tensor cannot be named {name!r:.200}")
        dtype = CODES.get(str(tensor.dtype).removeprefix("torch."), _OTHERS.get(tensor.dtype))
        view = tensor.is_meta or tensor.is_conj() or tensor.is_neg()  # not its bytes alone
        if dtype is None or tensor.layout is not torch.strided or view:
            raise CheckpointError(
                f"{path}: {name!r:.200}: unsupported {tensor.dtype} {tensor.layout} on "
                f"{tensor.device}"
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
                f"{path}: {name!r:.200}: no memory to expand it to {list(tensor.shape)}"
            ) from None
        address, nbytes = tensor.data_ptr(), tensor.nbytes
        start = next((s - a for a, b, s in mappings if a <= address <= b - nbytes), None)
        if start is None or not nbytes:
            record = TensorRecord(dtype, tuple(tensor.shape), 0, nbytes)
            records[name] = (record, tensor.view(-1).view(torch.uint8).numpy())
        else:
            records[name] = (
                TensorRecord(dtype, tuple(tensor.shape), address + start, nbytes),
                None,
            )
    return records, aliases


def _mappings(path: Path) -> list[tuple[int, int, int]]:
    """Where the file is in memory: first and last address, and the byte of the file at the first.

    Reading the file there, and not the memory, makes a file that was cut off meanwhile an error (a
    page beyond its end would end the process), and keeps its pages out of this process.
    """
    with path.open("rb") as file:
        archive = torch._C.PyTorchFileReader(file)
        if "byteorder" in archive.get_all_records():
            order = archive.get_record("byteorder")
            if order != sys.byteorder.encode():
                return []  # torch has swapped the bytes in memory
    found = []
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == str(path.resolve()):
            first, last = (int(address, 16) for address in fields[0].split("-"))
            found.append((first, last, int(fields[2], 16)))
    return found
