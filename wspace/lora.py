"""Adapters alone as a zoo: inner products and mixes of their updates, from the factors alone.

The row of an adapter is what it adds to its model's weights, ``s B A`` for each of them, which is
never written out:

    <s_i B_i A_i, s_j B_j A_j> = s_i s_j tr((B_i^T B_j) (A_j A_i^T))
    sum_i w_i s_i B_i A_i      = [w_1 s_1 B_1, w_2 s_2 B_2, ...] [A_1; A_2; ...]

The second is one adapter of the summed rank, without the cross terms of averaged factors.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wkernels import ops
from wspace.derived.adapters import CONFIG, Adapter, Update
from wspace.errors import BudgetError, MisalignedZooError, NonFiniteError
from wspace.storage.fingerprints import Fingerprint
from wspace.storage.headers import CODES, KERNEL_NAMES
from wspace.storage.outputs import OutputTensor, check_output, check_space
from wspace.storage.writers import checkpoint_writers
from wspace.storage.writing import CheckpointWriter, NewCheckpoint, Note
from wspace.zoo import Zoo, ZooTensor


def rank_products(zoo: Zoo, budget: int) -> np.ndarray:
    """Inner products of the adapters' updates, for each tensor: float64 ``[n_tensors, n, n]``.

    Products and sums in float64. Raises BudgetError where one tensor's factors do not fit.
    """
    n = len(zoo)
    taken = [_factor_bytes(zoo, tensor) for tensor in zoo.tensors]
    for tensor, nbytes in zip(zoo.tensors, taken, strict=True):
        if nbytes > budget:
            count = sum(tensor.name in adapter.updates for adapter in zoo.adapters)
            raise BudgetError(
                f"the factors of {tensor.name!r} in {count} adapters take {nbytes} bytes, more "
                f"than the memory budget of {budget}; raise it to {max(taken)} bytes"
            )
    found = np.zeros((len(zoo.tensors), n, n))
    for t, tensor in enumerate(zoo.tensors):
        updates = [(i, a.updates[tensor.name]) for i, a in enumerate(zoo.adapters)
                   if tensor.name in a.updates]  # fmt: skip
        ranks = [update.left.shape[1] for _, update in updates]
        left = np.concatenate([update.left.whole(np.float64).T for _, update in updates])
        right = np.concatenate([update.right.whole(np.float64) for _, update in updates])
        products = _gram(left) * _gram(right)
        starts = np.cumsum([0, *ranks[:-1]])
        blocks = np.add.reduceat(np.add.reduceat(products, starts, axis=0), starts, axis=1)
        scales = np.array([update.scale for _, update in updates])
        which = [i for i, _ in updates]
        found[t][np.ix_(which, which)] = blocks * np.outer(scales, scales)
    return found


def _factor_bytes(zoo: Zoo, tensor: ZooTensor) -> int:
    """Of all adapters, and what is made of them."""
    updates = [a.updates[tensor.name] for a in zoo.adapters if tensor.name in a.updates]
    rank = sum(update.left.shape[1] for update in updates)
    return 8 * rank * (sum(tensor.shape) + 3 * rank)


def _gram(rows: np.ndarray) -> np.ndarray:
    return ops.gram(torch.from_numpy(np.ascontiguousarray(rows))).numpy()


def merge_adapters(
    zoo: Zoo,
    table: np.ndarray,
    outs: Sequence[Path],
    records: Sequence[Mapping[str, Any]],
    jobs: Sequence[Fingerprint],
    dtype: str | None,
    *,
    allow_non_finite: bool,
    restart: bool = False,
    note: Note | None = None,
) -> None:
    """Write ``sum_i table[j, i] * update_i`` as one adapter, to ``outs[j]``, that PEFT loads.

    Scales and weights go into ``B`` (float64, one rounding), and ``lora_alpha`` is the rank.
    """
    same_kind(zoo.adapters)
    whole = [(a, name) for a in zoo.adapters for name in a.replaced]
    if whole:
        adapter, name = whole[0]
        raise MisalignedZooError(
            f"{adapter}: holds whole tensors ({name!r}) that cannot be mixed without the model; "
            "give it with --base, or write MODEL+ADAPTER"
        )
    for j, (row, out) in enumerate(zip(table, outs, strict=True)):
        parts = {
            tensor.name: [
                (weight, adapter.updates[tensor.name])
                for weight, adapter in zip(row, zoo.adapters, strict=True)
                if weight and tensor.name in adapter.updates
            ]
            for tensor in zoo.tensors
        }
        parts = {name: terms for name, terms in parts.items() if terms}
        if not parts:
            raise MisalignedZooError(f"{out}: weights of zero leave nothing to write")
        tensors = _tensors_of(zoo, parts, dtype)
        listed = [tensor for tensor, _, _ in tensors]
        check_output(out, [a.checkpoint for a in zoo.adapters])
        check_space([out], sum(t.nbytes for t in listed))
        output = NewCheckpoint(out, listed, jobs[j], 1 << 62, stem="adapter_model")
        with checkpoint_writers([output], restart=restart, note=note) as (writer,):
            _write(zoo, parts, tensors, writer, records[j], allow_non_finite)


def _tensors_of(
    zoo: Zoo, parts: Mapping[str, list[tuple[float, Update]]], dtype: str | None
) -> list[tuple[OutputTensor, str, str]]:
    """Each factor as it is written, the weight that it belongs to, and its side."""
    tensors: list[tuple[OutputTensor, str, str]] = []
    for name, terms in parts.items():
        for side in "AB":
            operands = [update.factor(side) for _, update in terms]
            rank = sum(operand.shape[side == "B"] for operand in operands)
            shape = list(operands[0].shape)
            shape[side == "B"] = rank
            code = CODES[dtype] if dtype else operands[0].tensor.written
            key = next(a.keys[name][side] for a in zoo.adapters if name in a.keys)
            tensors.append((OutputTensor(key, code, tuple(shape)), name, side))
    return tensors


def _write(
    zoo: Zoo,
    parts: Mapping[str, list[tuple[float, Update]]],
    tensors: Sequence[tuple[OutputTensor, str, str]],
    writer: CheckpointWriter,
    record: Mapping[str, Any],
    allow_non_finite: bool,
) -> None:
    for tensor, name, side in tensors:
        if writer.has(tensor.name):
            continue
        values = _stacked(parts[name], side)
        raw = _rounded(values, tensor.dtype)
        if not allow_non_finite and not np.isfinite(values).all():
            raise NonFiniteError(
                f"{writer.out}: lora_{side} of {name!r} has NaN or Inf; allow it with "
                f"--allow-non-finite, or leave it out with --exclude '{name}'"
            )
        for future in writer.write(*writer.place(tensor.name, 0), raw):
            future.result()
    ranks = {name: sum(u.left.shape[1] for _, u in terms) for name, terms in parts.items()}
    with tempfile.TemporaryDirectory(prefix="wspace-adapter-") as folder:
        text = json.dumps(_config(zoo, ranks), indent=2, ensure_ascii=False) + "\n"
        (Path(folder) / CONFIG).write_text(text, encoding="utf-8")
        writer.publish(replace(zoo.adapters[0].checkpoint, path=Path(folder)), record)


def _stacked(terms: Sequence[tuple[float, Update]], side: str) -> np.ndarray:
    """``[A_1; A_2; ...]``, or ``[w_1 s_1 B_1, w_2 s_2 B_2, ...]``, in float64."""
    found = []
    for weight, update in terms:
        operand = update.factor(side)
        values = operand.floats(0, operand.numel, np.float64).reshape(operand.shape)
        found.append(values * (weight * update.scale) if side == "B" else values)
    return np.concatenate(found, axis=int(side == "B"))


def _rounded(values: np.ndarray, code: str) -> np.ndarray:
    kind = getattr(torch, KERNEL_NAMES[code])
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(kind)
    return tensor.reshape(-1).view(torch.uint8).numpy()


def _config(zoo: Zoo, ranks: Mapping[str, int]) -> dict[str, Any]:
    """The first adapter's config with the ranks of the mix, and a scale of one."""
    modules = {name.removesuffix(".weight"): rank for name, rank in ranks.items()}
    rank = max(modules.values(), key=list(modules.values()).count)
    others = {module: r for module, r in modules.items() if r != rank}
    config = dict(zoo.adapters[0].config)
    config |= {"r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others}
    config |= {"use_rslora": False, "modules_to_save": None, "bias": "none"}
    targets = [adapter.config.get("target_modules") for adapter in zoo.adapters]
    same = all(adapter.updates.keys() == ranks.keys() for adapter in zoo.adapters)
    if not same or any(target != targets[0] for target in targets):
        config["target_modules"] = sorted(modules)
    return config


def same_kind(adapters: Sequence[Adapter]) -> None:
    """Raises MisalignedZooError where two adapters store a weight's factors in different ways."""
    turned: dict[str, tuple[bool, Adapter]] = {}
    for adapter in adapters:
        for name, update in adapter.updates.items():
            before, other = turned.setdefault(name, (update.turned, adapter))
            if before != update.turned:
                raise MisalignedZooError(
                    f"{name!r} is stored turned (fan_in_fan_out) in only one of {other} and "
                    f"{adapter}"
                )
