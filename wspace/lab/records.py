"""Files of results: whole or not at all, and what a number was made with."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wspace.errors import WspaceError


def write_json(path: Path, content: Any) -> None:
    """A JSON file that is there whole or not at all."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def plain(value: Any) -> Any:
    """Numbers, texts, lists and dicts that JSON holds; what is not finite becomes a text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # "nan", "inf": float() reads them back
    return value


class Kept:
    """Results by key in a file of lines: each is there once it is made, whatever comes after.

    A last line cut short by an interruption is dropped. Raises WspaceError for another that is not
    a result. Without a path nothing is written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.results: dict[str, dict[str, Any]] = {}
        text = path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
                self.results[entry.pop("key")] = entry
            except (ValueError, KeyError, TypeError, AttributeError):
                raise WspaceError(
                    f"{path}, line {number}: not a kept result; remove the file to make them anew"
                ) from None
        if path is not None and whole != text:
            write_text(path, whole)

    def add(self, key: str, result: Mapping[str, Any]) -> None:
        self.results[key] = dict(result)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, **result}) + "\n")


def file_hash(path: Path) -> str:
    """Twelve hex digits of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def state_hash(state: Mapping[str, torch.Tensor]) -> str:
    """Twelve hex digits of a state dict's names and bytes."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode())
        found.update(
            state[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        )
    return found.hexdigest()[:12]


def versions() -> dict[str, str]:
    import transformers

    from wspace.version import VERSION

    return {"wspace": VERSION, "torch": torch.__version__, "transformers": transformers.__version__}
