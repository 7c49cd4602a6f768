"""Names of models in a recipe: ``path[@revision][+lora]``, or the same as a mapping."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wspace.derived.models import open_model
from wspace.errors import CheckpointError
from wspace.recipes.problems import Problems
from wspace.recipes.source import Node
from wspace.storage.checkpoints import Checkpoint
from wspace.zoo import open_zoo


@dataclass(frozen=True)
class ModelReference:
    """A local folder or file, or a model of the Hub; two are one model if all fields are equal."""

    path: str
    revision: str | None = None
    architecture: str | None = None  # what the config's ``architectures`` shall say

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}" if self.revision else self.path


def parse_reference(node: Node, problems: Problems) -> ModelReference | None:
    """See the module. A path that itself holds ``@`` or ``+`` takes the mapping form."""
    if isinstance(node.value, str):
        path, *adapters = node.value.split("+")
        if len(adapters) > 1:
            problems.error(node.line, f"model {node.value!r} has more than one '+'")
            return None
        if adapters:
            _refuse_adapter(node.line, problems)
            return None
        return _path(path, node.line, problems)
    if not isinstance(node.value, dict):
        problems.error(node.line, "expected the path or Hub id of a model")
        return None
    content = node.value
    known = ("model", "lora", "override_architecture")
    for key in content:
        if key not in known:
            problems.unknown(key.line, "key of a model", key, known)
    if "lora" in content and content["lora"].value is not None:
        _refuse_adapter(content["lora"].line, problems)
        return None
    if "model" not in content:
        problems.error(node.line, "a model as a mapping needs the key model")
        return None
    inner = content["model"]
    if isinstance(inner.value, dict):
        path, revision = (inner.value.get(k, Node(None, 0)).value for k in ("path", "revision"))
        if not isinstance(path, str) or not path:
            problems.error(inner.line, "model: expected {path, revision}")
            return None
        found = ModelReference(path, None if revision is None else str(revision))
    elif isinstance(inner.value, str):
        found = _path(inner.value, inner.line, problems)
    else:
        problems.error(inner.line, "model: expected a path or Hub id")
        return None
    architecture = content.get("override_architecture", Node(None, 0)).value
    if found and architecture is not None:
        return ModelReference(found.path, found.revision, str(architecture))
    return found


def _path(text: str, line: int, problems: Problems) -> ModelReference | None:
    path, *revisions = text.split("@")
    if len(revisions) > 1:
        problems.error(line, f"model {text!r} has more than one '@'")
        return None
    if not path or (revisions and not revisions[0]):
        problems.error(line, f"model {text!r}: expected path or path@revision")
        return None
    return ModelReference(path, revisions[0] if revisions else None)


def _refuse_adapter(line: int, problems: Problems) -> None:
    problems.error(line, "LoRA adapters are not there yet; merge the adapter into its model first")


def open_reference(reference: ModelReference) -> Checkpoint:
    """The checkpoint, from headers alone. Raises CheckpointError."""
    path = Path(reference.path)
    if path.exists():
        if reference.revision:
            raise CheckpointError(
                f"{reference}: a local path has no revisions; leave out @{reference.revision}"
            )
        return open_model(path)
    return open_zoo([str(reference)]).members[0]
