"""Names of models in a recipe: ``path[@revision][+lora[@revision]]``, or the same as a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from wspace.derived.adapters import adapted, open_adapter
from wspace.derived.models import locate, open_model
from wspace.errors import CheckpointError
from wspace.recipes.problems import Problems
from wspace.recipes.source import Node
from wspace.storage.checkpoints import Checkpoint
from wspace.storage.remote import Location


@dataclass(frozen=True)
class ModelReference:
    """A local folder or file, or a model of the Hub; two are one model if all fields are equal."""

    path: str
    revision: str | None = None
    architecture: str | None = None  # what the config's ``architectures`` shall say
    adapter: ModelReference | None = None  # LoRA that is applied to it

    def __str__(self) -> str:
        own = f"{self.path}@{self.revision}" if self.revision else self.path
        return f"{own}+{self.adapter}" if self.adapter else own


def parse_reference(node: Node, problems: Problems) -> ModelReference | None:
    """See the module. A path that itself holds ``@`` or ``+`` takes the mapping form."""
    if isinstance(node.value, str):
        path, *adapters = node.value.split("+")
        if len(adapters) > 1:
            problems.error(node.line, f"model {node.value!r} has more than one '+'")
            return None
        found = _path(path, node.line, problems)
        if not adapters or found is None:
            return found
        adapter = _path(adapters[0], node.line, problems)
        return adapter and replace(found, adapter=adapter)
    if not isinstance(node.value, dict):
        problems.error(node.line, "expected the path or Hub id of a model")
        return None
    content = node.value
    known = ("model", "lora", "override_architecture")
    for key in content:
        if key not in known:
            problems.unknown(key.line, "key of a model", key, known)
    if "model" not in content:
        problems.error(node.line, "a model as a mapping needs the key model")
        return None
    found = _place(content["model"], "model", problems)
    architecture = content.get("override_architecture", Node(None, 0)).value
    if found and architecture is not None:
        found = replace(found, architecture=str(architecture))
    if "lora" in content and content["lora"].value is not None:
        adapter = _place(content["lora"], "lora", problems)
        return found and adapter and replace(found, adapter=adapter)
    return found


def _place(node: Node, what: str, problems: Problems) -> ModelReference | None:
    """``path[@revision]``, or ``{path, revision}``."""
    if isinstance(node.value, str):
        return _path(node.value, node.line, problems)
    if not isinstance(node.value, dict):
        problems.error(node.line, f"{what}: expected a path or Hub id")
        return None
    path, revision = (node.value.get(k, Node(None, 0)).value for k in ("path", "revision"))
    if not isinstance(path, str) or not path:
        problems.error(node.line, f"{what}: expected {{path, revision}}")
        return None
    return ModelReference(path, None if revision is None else str(revision))


def _path(text: str, line: int, problems: Problems) -> ModelReference | None:
    path, *revisions = text.split("@")
    if len(revisions) > 1:
        problems.error(line, f"model {text!r} has more than one '@'")
        return None
    if not path or (revisions and not revisions[0]):
        problems.error(line, f"model {text!r}: expected path or path@revision")
        return None
    return ModelReference(path, revisions[0] if revisions else None)


class Models:
    """Opens models, each once. ``outputs``: those of other recipes of the file, by their names."""

    def __init__(self, outputs: Mapping[str, Checkpoint] | None = None) -> None:
        self._outputs = {} if outputs is None else outputs
        self._opened: dict[ModelReference, Checkpoint] = {}

    def open(self, reference: ModelReference) -> Checkpoint:
        """The checkpoint, from headers alone. Raises CheckpointError."""
        if reference not in self._opened:
            try:
                self._opened[reference] = self._open(reference)
            except OSError as error:  # such as a name too long, or a folder that is closed to us
                raise CheckpointError(f"{reference!s:.200}: {error.strerror}") from error
        return self._opened[reference]

    def _open(self, reference: ModelReference) -> Checkpoint:
        if reference.adapter is not None:
            base = self.open(replace(reference, adapter=None))
            return adapted(base, open_adapter(_located(reference.adapter)))
        if reference.path in self._outputs and not reference.revision:
            return self._outputs[reference.path]
        return open_model(_located(reference))


def _located(reference: ModelReference) -> Location:
    if Path(reference.path).exists() and reference.revision:
        raise CheckpointError(
            f"{reference}: a local path has no revisions; leave out @{reference.revision}"
        )
    return locate(reference.path if Path(reference.path).exists() else str(reference))
