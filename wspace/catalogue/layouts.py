"""The tensors of a model by name and shape, and which models can be compared by them."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from wspace.storage.checksums import checksum
from wspace.zoo import Zoo

_NUMBERED = re.compile(r"(^|\.)\d+\.")


def in_layers(name: str) -> bool:
    """Whether a tensor belongs to a numbered layer, which embeddings and heads do not."""
    return _NUMBERED.search(name) is not None


def key_of(name: str) -> int:
    """The key of the sketch of a tensor: 64 bits of SHA-256 of its name."""
    return int.from_bytes(hashlib.sha256(f"sketch/{name}".encode()).digest()[:8], "little")


@dataclass(frozen=True)
class Layout:
    """Sorted by name. Types, shards and the order of the files are no part of it."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    floating: tuple[bool, ...]

    @classmethod
    def of(cls, zoo: Zoo) -> Layout:
        tensors = sorted(
            [(t.name, t.shape, True) for t in zoo.tensors]
            + [(t.name, t.shape, False) for t in zoo.copied]
        )
        return cls(*zip(*tensors, strict=True))

    @classmethod
    def parse(cls, text: str) -> Layout:
        entries = json.loads(text)
        return cls(*zip(*[(n, tuple(s), bool(f)) for n, s, f in entries], strict=True))

    def render(self) -> str:
        entries = list(zip(self.names, self.shapes, self.floating, strict=True))
        return json.dumps(entries, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        return checksum(self.render().encode())

    @cached_property
    def family(self) -> str:
        """A fingerprint: models of one family have the same floating-point tensors."""
        return self._fingerprint(self.names)

    @cached_property
    def layers(self) -> str:
        """The same of the tensors in numbered layers; empty if there are none."""
        return self._fingerprint([name for name in self.names if in_layers(name)])

    def _fingerprint(self, names: Iterable[str]) -> str:
        chosen = set(names)
        rows = zip(self.names, self.shapes, self.floating, strict=True)
        entries = [(name, shape) for name, shape, floats in rows if floats and name in chosen]
        return checksum(json.dumps(entries).encode()) if entries else ""

    @cached_property
    def compared(self) -> dict[str, np.ndarray]:
        """``all`` and ``layers``: which of the tensors a comparison is of; bool ``[n_tensors]``."""
        floating = np.array(self.floating)
        numbered = np.array([in_layers(name) for name in self.names])
        return {"all": floating, "layers": floating & numbered}

    @property
    def numel(self) -> int:
        return sum(map(math.prod, self.shapes))


def shared(one: Layout, other: Layout) -> tuple[Sequence[int], Sequence[int]]:
    """Places in both of the tensors that they have in common."""
    if one.digest == other.digest:
        return range(len(one.names)), range(len(one.names))
    known = {entry: k for k, entry in enumerate(zip(other.names, other.shapes, strict=True))}
    entries = enumerate(zip(one.names, one.shapes, strict=True))
    pairs = [(k, known[entry]) for k, entry in entries if entry in known]
    return [k for k, _ in pairs], [k for _, k in pairs]
