"""LoRA adapters in PEFT's files: which tensors of a model they change, and by what.

``W + s B A`` with ``s = lora_alpha / r`` (``/ sqrt(r)`` with ``use_rslora``); the transpose for
embeddings and where ``fan_in_fan_out`` says that weights are stored that way. Tensors of
``modules_to_save``, and biases that were trained, replace the model's. Every tensor of the file
must have its place; what changes a weight in another way is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from wspace.derived.lowrank import Factor, LowRank
from wspace.derived.operands import Operand
from wspace.errors import CheckpointError
from wspace.storage.checkpoints import Checkpoint, StoredTensor, open_checkpoint
from wspace.storage.opening import read_text
from wspace.storage.remote import Location

CONFIG = "adapter_config.json"

_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(\.default)?(?(kind)|\.weight)"
)
_WRAPPED = re.compile(r"\.(base_layer|original_module|modules_to_save(\.default)?)(?=\.)")
_UNLIKE_LORA = {
    "use_dora": "DoRA", "layer_replication": "layer replication", "use_qalora": "QALoRA",
    "target_parameters": "target_parameters", "lora_bias": "a bias in its factors",
    "alora_invocation_tokens": "activated LoRA", "arrow_config": "Arrow routing",
}  # fmt: skip
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq")


class Update(NamedTuple):
    """What is added to one tensor: ``scale * left @ right``."""

    left: Factor
    right: Factor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def turned(self) -> bool:
        """Whether the model's weight is the transpose of ``B A``."""
        return self.left.transposed

    def factor(self, side: str) -> Operand:
        """``A`` or ``B`` as it is stored."""
        return (self.left if (side == "A") == self.turned else self.right).operand


@dataclass(frozen=True)
class Adapter:
    checkpoint: Checkpoint
    config: Mapping[str, Any]
    updates: dict[str, Update]  # by the names of the weights, as PEFT's model has them
    replaced: dict[str, StoredTensor]  # by the names of the tensors
    keys: dict[str, dict[str, str]]  # what the factors of a weight are called: "A", "B" -> name

    def __str__(self) -> str:
        return str(self.checkpoint)


def is_adapter(path: Location) -> bool:
    return (path / CONFIG).is_file()


def open_adapter(path: Location) -> Adapter:
    """An adapter from its config and header alone. Raises CheckpointError."""
    if not is_adapter(path):
        raise CheckpointError(f"{path}: expected a LoRA adapter, with {CONFIG}; it has none")
    config = _read_config(path / CONFIG)
    checkpoint = open_checkpoint(path)
    sides: dict[tuple[str, bool], dict[str, str]] = {}
    replaced: dict[str, StoredTensor] = {}
    untrained: dict[str, StoredTensor] = {}  # copies of the model's own
    for key, tensor in checkpoint.tensors.items():
        name = key.removeprefix("base_model.model.")
        match = _FACTOR.fullmatch(name)
        if match:
            module = (_WRAPPED.sub("", f"{match['module']}."))[:-1]
            sides.setdefault((module, bool(match["kind"])), {})[match["side"]] = key
        elif "lora_" in name:
            raise CheckpointError(
                f"{checkpoint.files[tensor.file]}: tensor {key!r} belongs to no kind of adapter "
                "that can be applied here; merge it into its model with PEFT first"
            )
        elif ".original_module." in name:
            untrained[_WRAPPED.sub("", name)] = tensor
        else:
            replaced[_WRAPPED.sub("", name)] = tensor
    replaced = untrained | replaced
    updates, called = {}, {}
    for (module, embedding), keys in sides.items():
        if len(keys) < 2:
            ((side, key),) = keys.items()
            other = {"A": "B", "B": "A"}[side]
            raise CheckpointError(f"{checkpoint}: {key!r} has no lora_{other} beside it")
        a, b = (Operand.of(checkpoint, checkpoint.tensors[keys[side]]) for side in "AB")
        turned = embedding or bool(config.get("fan_in_fan_out"))
        left, right = (Factor(a, True), Factor(b, True)) if turned else (Factor(b), Factor(a))
        update = Update(left, right, _scale(config, module, a.shape[0]))
        if left.shape[1] != right.shape[0]:
            raise CheckpointError(
                f"{checkpoint}: {keys['A']!r} has rank {a.shape[0]}, {keys['B']!r} another: "
                f"shapes {list(a.shape)} and {list(b.shape)}"
            )
        updates[f"{module}.weight"] = update
        called[f"{module}.weight"] = keys
    if not updates:
        raise CheckpointError(f"{checkpoint}: holds no lora_A and lora_B")
    return Adapter(checkpoint, config, updates, replaced, called)


def _read_config(file: Location) -> dict[str, Any]:
    try:
        config = json.loads(read_text(file))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: expected a JSON object")
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        raise CheckpointError(
            f"{file}: peft_type {kind} is not LoRA; merge it into its model with PEFT first"
        )
    for key, what in _UNLIKE_LORA.items():
        if config.get(key):
            raise CheckpointError(
                f"{file}: {what} ({key}) is not there; merge the adapter into its model with PEFT "
                "first"
            )
    start = str(config.get("init_lora_weights") or "").lower()
    if start.startswith(_CHANGED_BASE):
        raise CheckpointError(
            f"{file}: init_lora_weights {start!r} changed the model that the adapter was trained "
            "on; convert it to plain LoRA with PEFT, or merge it there"
        )
    return config


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    patterns = config.get("alpha_pattern") or {}
    alpha = next(
        (value for pattern, value in patterns.items() if _fits(pattern, module)),
        config.get("lora_alpha", 8),
    )
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(f"{CONFIG}: lora_alpha of {module!r}: expected a number: {alpha!r}")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else max(rank, 1))


def _fits(pattern: str, module: str) -> bool:
    """A pattern of ``alpha_pattern``: the end of a module's name, or from ``^`` its beginning."""
    try:
        if pattern.startswith("^"):
            return re.match(pattern, module) is not None
        return re.fullmatch(rf"(.*\.)?({pattern})", module) is not None
    except re.error:
        return pattern == module


def adapted(base: Checkpoint, adapter: Adapter) -> Checkpoint:
    """The model with the adapter applied, as it is read: nothing is computed or written now.

    Raises CheckpointError for a factor or tensor of the adapter that finds no place in the model.
    """
    files = base.files + adapter.checkpoint.files
    tensors = dict(base.tensors)
    names = _Names(base)
    for name, stored in adapter.replaced.items():
        target = names.find(name, adapter)
        tensors[target] = stored._replace(file=stored.file + len(base.files))
    for name, update in adapter.updates.items():
        target = names.find(name, adapter)
        stored = tensors[target]
        operand = Operand(files[stored.file], stored)
        try:
            made = LowRank(operand.shape, *update, operand)
        except ValueError as error:
            raise CheckpointError(f"{adapter}: {name!r} of {base}: {error}") from None
        tensors[target] = StoredTensor(made.record, stored.file, None, made)
    stamps = base.stamps + adapter.checkpoint.stamps
    return replace(base, files=files, tensors=tensors, stamps=stamps, title=f"{base}+{adapter}")


def alone(adapters: Sequence[Adapter]) -> tuple[Checkpoint, ...]:
    """Adapters as rows of their own: tensors of what each adds, zeros where it adds nothing.

    Raises CheckpointError for adapters of different models.
    """
    shapes: dict[str, tuple[tuple[int, int], Adapter]] = {}
    for adapter in adapters:
        for name, update in adapter.updates.items():
            shape, first = shapes.setdefault(name, (update.shape, adapter))
            if shape != update.shape:
                raise CheckpointError(
                    f"{name!r} has shape {list(shape)} under {first} and {list(update.shape)} "
                    f"under {adapter}: they are adapters of different models"
                )
    found = []
    for adapter in adapters:
        tensors = {}
        for name, (shape, _) in shapes.items():
            update = adapter.updates.get(name) or (None, None, 1.0)
            made = LowRank(shape, *update, None)
            key = adapter.keys.get(name)
            file = adapter.checkpoint.tensors[key["A"]].file if key else 0
            tensors[name] = StoredTensor(made.record, file, None, made)
        found.append(replace(adapter.checkpoint, tensors=tensors, title=str(adapter)))
    return tuple(found)


class _Names:
    """Tensors of a model by the names that PEFT's model has: some prefix may be more or less."""

    def __init__(self, base: Checkpoint) -> None:
        self._base = base
        self._ends: dict[int, dict[str, list[str]]] = {}

    def find(self, name: str, adapter: Adapter) -> str:
        base = self._base
        if base.find(name):
            return base.aliases.get(name, name)
        shorter = list(_without_prefix(name, 2))
        found = next((rest for rest in shorter if base.find(rest)), None)
        if found:
            return base.aliases.get(found, found)
        longer = self._longer(3).get(name, [])
        if not longer and shorter:  # another class of the same model has another prefix
            longer = self._longer(1).get(shorter[0], [])
        if len(longer) == 1:
            return longer[0]
        problem = f"fits several: {', '.join(longer[:3])}" if longer else "is not there"
        raise CheckpointError(
            f"{adapter}: changes {name!r}, which in {base} {problem}; every part of an adapter "
            "must be used"
        )

    def _longer(self, most: int) -> dict[str, list[str]]:
        if most not in self._ends:
            ends = self._ends.setdefault(most, {})
            for name in self._base.tensors:
                for end in _without_prefix(name, most):
                    ends.setdefault(end, []).append(name)
        return self._ends[most]


def _without_prefix(name: str, most: int) -> Iterator[str]:
    """The name without its first parts, up to ``most``; what begins with a number is no name."""
    parts = name.split(".")
    for k in range(1, min(most, len(parts) - 2) + 1):
        if not parts[k].isdecimal():
            yield ".".join(parts[k:])
