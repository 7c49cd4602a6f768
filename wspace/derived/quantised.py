"""8-bit weights with scales beside them: ``w = q * scale``, computed as they are read.

Scales are one number for the tensor, one for each row, or one for each block of a matrix
(``weight_scale_inv`` of DeepSeek's checkpoints, by which one multiplies all the same). Other
quantised formats are refused by name.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from wspace.derived.operands import Operand
from wspace.errors import CheckpointError
from wspace.storage.checkpoints import Checkpoint, StoredTensor
from wspace.storage.headers import BITS, KERNEL_NAMES, TensorRecord
from wspace.storage.opening import read_object
from wspace.storage.reading import DERIVED_REQUEST
from wspace.storage.remote import Location

_PACKED = {
    ".qweight": "GPTQ or AWQ", ".qzeros": "GPTQ or AWQ", ".SCB": "bitsandbytes",
    ".absmax": "bitsandbytes", ".quant_map": "bitsandbytes", ".weight_packed": "packed integer",
    "_blocks": "MXFP4",
}  # fmt: skip
"""Ends of the names of tensors that only such a format has."""

_ENDS = tuple(_PACKED)
_INTEGERS = ("I8", "U8")

_METHODS = {
    "gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "aqlm": "AQLM", "hqq": "HQQ",
    "eetq": "EETQ", "quanto": "Quanto", "mxfp4": "MXFP4", "higgs": "HIGGS", "vptq": "VPTQ",
    "torchao": "torchao", "gguf": "GGUF", "spqr": "SpQR", "bitnet": "BitNet",
}  # fmt: skip
"""``quant_method`` of a config, and what the format is called."""

_WEIGHT_SCALES = ("_scale_inv", "_scale")
_BLOCKS: tuple[tuple[int, int], ...] = (
    (128, 128), (64, 64), (32, 32), (256, 256), (16, 16), (512, 512),
)  # fmt: skip
_LONGEST = max(map(len, (*_ENDS, *_WEIGHT_SCALES)))
_IDLE = (".input_scale", ".output_scale", ".k_scale", ".v_scale", ".activation_scale")
"""Scales of what flows through the model, not of its weights: of no use without 8-bit weights."""

_FLOAT8 = ("F8_E4M3", "F8_E5M2")


class Scaled:
    """``W[i, j] = Q[i, j] * S[i // block_rows, j // block_columns]``, in float32, rounded once."""

    dtype = "BF16"

    def __init__(self, weight: Operand, scale: Operand, block: tuple[int, int] | None) -> None:
        self._weight, self._scale = weight, scale
        shape = weight.shape
        self._columns = shape[-1] if shape else 1
        rows = weight.numel // max(1, self._columns)
        grid = _grid(rows, self._columns, scale.shape, block)
        if grid is None or scale.dtype not in KERNEL_NAMES:
            raise ValueError(
                f"scales {scale.dtype} {list(scale.shape)} do not fit weights {list(shape)}"
            )
        self._grid, self._block = grid
        self.record = TensorRecord("F32", shape, 0, 4 * weight.numel)
        self.nbytes = weight.tensor.read_bytes + scale.tensor.read_bytes
        self.workspace = DERIVED_REQUEST * 2 + 8 * scale.numel

    def fill(self, start: int, view: np.ndarray) -> None:
        from wkernels.cpu.derived import scale_blocks

        first = start // 4
        values = self._weight.floats(first, first + len(view) // 4)
        scales = self._scale.floats(0, self._scale.numel).reshape(self._grid)
        scale_blocks(values, first, self._columns, scales, *self._block)
        view[:] = values.view(np.uint8)


def _grid(
    rows: int, columns: int, shape: tuple[int, ...], given: tuple[int, int] | None
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Rows and columns of scales, and those of the block that has one; None if none fits."""
    sizes = [size for size in shape if size > 1]
    n = int(np.prod(shape, dtype=np.int64))
    if n == 1:
        return (1, 1), (max(rows, 1), max(columns, 1))
    if len(sizes) == 1 and n == rows:
        return (rows, 1), (1, columns)
    if len(shape) == 2:
        blocks = _BLOCKS
        if given is not None:
            blocks = (given,)
        for block in blocks:
            if shape == (-(-rows // block[0]), -(-columns // block[1])):
                return (shape[0], shape[1]), block
        if shape[0] == rows and columns % shape[1] == 0:  # groups along a row
            return (shape[0], shape[1]), (1, columns // shape[1])
    return None


_PLAIN: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""Tensors of checkpoints that are as they are meant, by ``id``; the models of a zoo mostly share
them."""


def dequantised(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its scaled 8-bit weights as they are meant, and without their scales.

    Any other is given back as it is. Raises CheckpointError for weights that cannot be averaged,
    and for scales that do not fit their weights.
    """
    if _PLAIN.get(id(checkpoint.tensors)) is checkpoint.tensors:
        return checkpoint
    ends = {name[-_LONGEST:] for name in checkpoint.tensors}  # few, of however many tensors
    dtypes = {tensor.record.dtype for tensor in checkpoint.tensors.values()}
    whole = not any(BITS[dtype] < 8 or dtype in _INTEGERS for dtype in dtypes)
    if not whole or any(end.endswith(_ENDS) for end in ends):
        _refuse(checkpoint)
    if not any(end.endswith(_WEIGHT_SCALES) for end in ends):
        if whole:
            with suppress(TypeError):  # a mere dict, which no other checkpoint has
                _PLAIN[id(checkpoint.tensors)] = checkpoint.tensors
        return checkpoint
    sizes = quantisation_of(checkpoint.home).get("weight_block_size")
    block = None
    if isinstance(sizes, list) and [type(size) for size in sizes] == [int, int]:
        block = (max(1, sizes[0]), max(1, sizes[1]))
    scaled: dict[str, StoredTensor] = {}
    dropped: set[str] = set()
    for name in [name for name in checkpoint.tensors if name.endswith(_WEIGHT_SCALES)]:
        owner = _owner(checkpoint, name)
        if owner is None:
            continue
        dropped.add(name)
        weight = Operand.of(checkpoint, checkpoint.tensors[owner])
        scale = Operand.of(checkpoint, checkpoint.tensors[name])
        try:
            made = Scaled(weight, scale, block)
        except ValueError as error:
            raise CheckpointError(f"{scale.path}: tensor {name!r}: {error}") from None
        scaled[owner] = StoredTensor(made.record, weight.tensor.file, None, made)
    if not scaled:
        return checkpoint
    dropped |= {name for name in checkpoint.tensors if name.endswith(_IDLE)}
    tensors = {
        name: scaled.get(name, tensor)
        for name, tensor in checkpoint.tensors.items()
        if name not in dropped
    }
    return replace(checkpoint, tensors=tensors)


def _owner(checkpoint: Checkpoint, name: str) -> str | None:
    """The 8-bit weight that a tensor has the scales of."""
    owner = name[: name.rindex("_scale")]
    weight = checkpoint.tensors.get(owner)
    return owner if weight is not None and weight.record.dtype in _FLOAT8 else None


def _refuse(checkpoint: Checkpoint) -> None:
    for name, tensor in checkpoint.tensors.items():
        dtype = tensor.record.dtype
        packed = name.endswith(_ENDS) and not (name.endswith("_blocks") and dtype != "U8")
        if packed or BITS[dtype] < 8 or dtype in _INTEGERS:
            method = str(quantisation_of(checkpoint.home).get("quant_method") or "").lower()
            integer = method and dtype in _INTEGERS and name.endswith("weight")
            if not packed and not integer and BITS[dtype] >= 8:
                continue
            kind = next((kind for end, kind in _PACKED.items() if name.endswith(end)), "quantised")
            raise CheckpointError(
                f"{checkpoint}: {_METHODS.get(method) or method or kind} weights ({name!r}) are "
                "quantised and cannot be averaged; give the weights that they were made from"
            )


def quantisation_of(folder: Location) -> dict[str, Any]:
    """``quantization_config`` of a folder's config; empty if it has none."""
    found = (read_object(folder / "config.json") or {}).get("quantization_config")
    return found if isinstance(found, dict) else {}
