"""The keys ``tokenizer`` and ``tokenizer_source`` of a recipe, as written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from wspace.recipes.problems import Problems
from wspace.recipes.references import ModelReference, parse_reference
from wspace.recipes.source import Node


@dataclass(frozen=True)
class TokenSource:
    """What a token's row is in models that lack the token, or with ``force`` in all."""

    line: int
    kind: Literal["default", "model", "zero"] = "default"
    model: ModelReference | None = None
    token: str | None = None  # of that model, if not the token itself
    token_id: int | None = None
    force: bool = False


@dataclass(frozen=True)
class TokenizerKey:
    """Which tokens the output has, and where their rows come from."""

    line: int
    source: Literal["union", "base"] | ModelReference = "union"
    tokens: Mapping[str, TokenSource] = field(default_factory=dict)
    multiple: int = 1  # the number of rows is padded to one of its multiples

    @property
    def models(self) -> list[tuple[ModelReference, int]]:
        """The models named here, and the lines."""
        named = [(self.source, self.line)] if isinstance(self.source, ModelReference) else []
        return named + [(t.model, t.line) for t in self.tokens.values() if t.model]


def parse_tokenizer(
    short: Node | None, full: Node | None, problems: Problems
) -> TokenizerKey | None:
    """``tokenizer_source`` or ``tokenizer``; None, with the problem told, for nonsense."""
    if short and full:
        problems.error(full.line, "give tokenizer or tokenizer_source, not both")
        return None
    if short:
        source = _source(short, problems)
        return source and TokenizerKey(short.line, source)
    if full is None:
        return None
    known = ("source", "tokens", "pad_to_multiple_of")
    block = _mapping(full, known, "key of tokenizer", problems)
    if block is None:
        return None
    source = _source(block["source"], problems) if "source" in block else "union"
    tokens = _tokens(block["tokens"], problems) if "tokens" in block else {}
    multiple = block.get("pad_to_multiple_of", Node(1, full.line))
    if type(multiple.value) is not int or multiple.value < 1:
        problems.error(multiple.line, "pad_to_multiple_of: expected a number from 1")
        return None
    return source and TokenizerKey(full.line, source, tokens, multiple.value)


def _mapping(
    node: Node, known: tuple[str, ...], what: str, problems: Problems
) -> dict[str, Node] | None:
    if not isinstance(node.value, dict):
        problems.error(node.line, f"expected a mapping with {', '.join(known)}")
        return None
    for key in node.value:
        if key not in known:
            problems.unknown(key.line, what, key, known)
    return {k: v for k, v in node.value.items() if k in known and v.value is not None}


def _source(node: Node, problems: Problems) -> Literal["union", "base"] | ModelReference | None:
    if node.value == "union":
        return "union"
    if node.value == "base":
        return "base"
    return parse_reference(node, problems)


def _tokens(node: Node, problems: Problems) -> dict[str, TokenSource]:
    if not isinstance(node.value, dict):
        problems.error(node.line, "tokens: expected a mapping from tokens to {source, force}")
        return {}
    return {str(token): _token(token, item, problems) for token, item in node.value.items()}


def _token(token: str, node: Node, problems: Problems) -> TokenSource:
    plain = TokenSource(node.line)
    if node.value is None:
        return plain
    block = _mapping(node, ("source", "force"), f"key of token {token!r}", problems)
    if block is None:
        return plain
    force = block.get("force", Node(False, node.line))
    if not isinstance(force.value, bool):
        problems.error(force.line, f"token {token!r}: force: expected true or false")
    if "source" not in block:
        return TokenSource(node.line, force=force.value is True)
    source = block["source"]
    kind = source.value.get("kind") if isinstance(source.value, dict) else None
    if kind is None:
        model = parse_reference(source, problems)
        return TokenSource(source.line, "model", model, force=force.value is True)
    if kind.value == "zero":
        return TokenSource(source.line, "zero", force=force.value is True)
    if kind.value != "model_token":
        problems.error(source.line, f"token {token!r}: kind: expected zero or model_token")
        return plain
    keys = ("kind", "model", "token", "token_id")
    inner = _mapping(source, keys, f"key of token {token!r}", problems) or {}
    if "model" not in inner or ("token" in inner) == ("token_id" in inner):
        problems.error(
            source.line, f"token {token!r}: model_token needs model, and either token or token_id"
        )
        return plain
    number = inner.get("token_id", Node(None, 0)).value
    if number is not None and (type(number) is not int or number < 0):
        problems.error(source.line, f"token {token!r}: token_id: expected a number from 0")
        return plain
    name = inner.get("token", Node(None, 0)).value
    return TokenSource(
        source.line, "model", parse_reference(inner["model"], problems),
        None if name is None else str(name), number, force.value is True,
    )  # fmt: skip
