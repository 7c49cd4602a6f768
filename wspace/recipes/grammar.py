"""A recipe as written: blocks and their keys, checked, before any model is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wspace.recipes.problems import Problems
from wspace.recipes.references import ModelReference, parse_reference
from wspace.recipes.settings import Setting, parse_setting
from wspace.recipes.source import Node, read_yaml
from wspace.recipes.templates import BUILT_IN, wrong_literal
from wspace.recipes.tokens import TokenizerKey, parse_tokenizer

Parameters = Mapping[str, Setting]

TOP = (
    "merge_method", "models", "slices", "modules", "base_model", "dtype", "out_dtype",
    "parameters", "tokenizer_source", "tokenizer", "chat_template", "name",
)  # fmt: skip
DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class Source:
    """One input of a slice."""

    model: ModelReference
    line: int
    parameters: Parameters = field(default_factory=dict)
    layers: tuple[int, int] | None = None  # None: all
    fisher: ModelReference | None = None  # its Fisher diagonals, by the names of its tensors


@dataclass(frozen=True)
class Slice:
    """A run of output layers, and what it is made of."""

    sources: tuple[Source, ...]
    line: int
    base: ModelReference | None = None  # instead of the recipe's
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class Module:
    """A part of the model: all of it, or one stack of layers where there are several."""

    name: str
    line: int
    slices: tuple[Slice, ...]
    whole: bool  # from ``models``: one slice of all layers
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    text: str
    name: str | None  # by which other recipes of the file mean its output
    line: int
    method: str
    method_line: int
    modules: tuple[Module, ...]
    base: ModelReference | None
    base_line: int
    dtype: str | None
    out_dtype: str | None
    parameters: Parameters
    tokenizer: TokenizerKey | None  # without one, rows of embeddings are merged as they are
    chat_template: str | None  # a text, "auto", or the name of a built-in one
    complete: bool  # whether all of it could be understood


def parse_recipe(text: str, problems: Problems) -> Recipe:
    """Parse and check what the text alone tells.

    What is wrong is told to ``problems``; raises RecipeError where nothing is left to go on with.
    """
    return _Parser(text, problems).recipe()


class _Parser:
    def __init__(self, text: str, problems: Problems) -> None:
        self._text, self._problems = text, problems
        self._complete = True

    def recipe(self) -> Recipe:
        problems = self._problems
        root = read_yaml(self._text, problems.file)
        if not isinstance(root.value, dict):
            problems.error(root.line, "expected a recipe, beginning with merge_method:")
            problems.raise_errors()
        top = self._block(root, TOP, "key")
        method = top.get("merge_method", Node(None, root.line))
        if not isinstance(method.value, str):
            problems.error(method.line, "merge_method: expected the name of a method")
        base = self._reference(top.get("base_model"))
        modules = self._modules(top, root.line)
        return Recipe(
            text=self._text.lstrip("\n"),
            name=self._name(top.get("name")),
            line=root.line,
            method=str(method.value),
            method_line=method.line,
            modules=modules,
            base=base,
            base_line=top["base_model"].line if base else root.line,
            dtype=self._dtype(top.get("dtype"), "dtype"),
            out_dtype=self._dtype(top.get("out_dtype"), "out_dtype"),
            parameters=self._parameters(top),
            tokenizer=parse_tokenizer(top.get("tokenizer_source"), top.get("tokenizer"), problems),
            chat_template=self._chat_template(top.get("chat_template")),
            complete=bool(modules) and self._complete,
        )

    def _name(self, node: Node | None) -> str | None:
        if node is None:
            return None
        parts = str(node.value).split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in str(node.value):
            self._problems.error(node.line, f"name {node.value!r}: expected a folder's name")
            return None
        return str(node.value)

    def _block(self, node: Node, known: Sequence[str], what: str) -> dict[Any, Node]:
        """The keys of a mapping that mean something and have a value; says which do not."""
        if not isinstance(node.value, dict):
            self._problems.error(node.line, f"expected a mapping with {', '.join(known)}")
            return {}
        for key in node.value:
            if key not in known:
                self._problems.unknown(key.line, what, key, known)
        return {k: v for k, v in node.value.items() if k in known and v.value is not None}

    def _items(self, node: Node, what: str) -> list[Node]:
        if not isinstance(node.value, list) or not node.value:
            self._problems.error(node.line, f"{what}: expected a list of at least one")
            self._complete = False
            return []
        return node.value

    def _reference(self, node: Node | None) -> ModelReference | None:
        if node is None:
            return None
        found = parse_reference(node, self._problems)
        self._complete &= found is not None
        return found

    def _parameters(self, block: Mapping[Any, Node]) -> Parameters:
        node = block.get("parameters")
        if node is None:
            return {}
        if not isinstance(node.value, dict):
            self._problems.error(node.line, "parameters: expected a mapping from names to values")
            return {}
        found = {k: parse_setting(value, k, self._problems) for k, value in node.value.items()}
        if None in found.values():  # so that nothing is said to have no value
            self._complete = False
        return {name: setting for name, setting in found.items() if setting}

    def _modules(self, top: Mapping[Any, Node], line: int) -> tuple[Module, ...]:
        given = [key for key in ("models", "slices", "modules") if key in top]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            self._problems.error(
                line, f"expected exactly one of models, slices and modules; found {found}"
            )
            return ()
        if given != ["modules"]:
            return (self._module("default", line, top, {}),)
        node = top["modules"]
        if not isinstance(node.value, dict) or not node.value:
            self._problems.error(node.line, "modules: expected a mapping from names to modules")
            return ()
        modules = []
        for name, content in node.value.items():
            block = self._block(content, ("models", "slices", "parameters"), "key of a module")
            if ("models" in block) == ("slices" in block):
                self._problems.error(
                    content.line, f"module {name!r}: expected either models or slices"
                )
                self._complete = False
                continue
            modules.append(self._module(name, content.line, block, self._parameters(block)))
        return tuple(modules)

    def _module(
        self, name: str, line: int, block: Mapping[Any, Node], parameters: Parameters
    ) -> Module:
        if "models" in block:
            sources = self._sources(block["models"], "models", ("model", "parameters", "fisher"))
            slices = (Slice(sources, line),)
        else:
            slices = tuple(map(self._slice, self._items(block["slices"], "slices")))
        return Module(name, line, slices, "models" in block, parameters)

    def _slice(self, node: Node) -> Slice:
        known = ("sources", "base_model", "parameters", "residual_weight")
        block = self._block(node, known, "key of a slice")
        if "residual_weight" in block:
            line = block["residual_weight"].line
            self._problems.warn(line, "residual_weight has no effect")
        keys = ("model", "layer_range", "parameters", "fisher")
        sources = ()
        if "sources" in block:
            sources = self._sources(block["sources"], "sources", keys)
        else:
            self._problems.error(node.line, "a slice needs sources")
            self._complete = False
        base = self._reference(block.get("base_model"))
        return Slice(sources, node.line, base, self._parameters(block))

    def _sources(self, node: Node, what: str, known: tuple[str, ...]) -> tuple[Source, ...]:
        sources = []
        for item in self._items(node, what):
            block = self._block(item, known, f"key in {what}")
            if "model" not in block:
                self._problems.error(item.line, f"{what}: an entry needs the key model")
                self._complete = False
                continue
            model = self._reference(block["model"])
            layers = None
            if "layer_range" in known:
                layers = self._layer_range(block.get("layer_range"), item.line)
            if model:
                parameters = self._parameters(block)
                fisher = self._reference(block.get("fisher"))
                sources.append(Source(model, block["model"].line, parameters, layers, fisher))
        seen: set[ModelReference] = set()
        for source in sources:
            if source.model in seen:
                self._problems.error(source.line, f"{source.model} is listed twice")
                self._complete = False
            seen.add(source.model)
        return tuple(sources)

    def _layer_range(self, node: Node | None, line: int) -> tuple[int, int]:
        if node is None:
            self._problems.error(line, "sources: an entry needs layer_range: [first, end]")
            self._complete = False
            return (0, 1)
        ends = node.value if isinstance(node.value, list) else []
        numbers = [end.value for end in ends]
        whole = all(type(end) is int for end in numbers)
        if len(numbers) != 2 or not whole or not 0 <= numbers[0] < numbers[1]:
            self._problems.error(
                node.line,
                "layer_range: expected [first, end], numbers of layers from 0, end not included",
            )
            self._complete = False
            return (0, 1)
        return (numbers[0], numbers[1])

    def _dtype(self, node: Node | None, what: str) -> str | None:
        if node is None:
            return None
        name = str(node.value).removeprefix("torch.")
        if name in DTYPES:
            return name
        more = "; integers cannot be averaged" if name.startswith(("int", "uint")) else ""
        expected = ", ".join(DTYPES)
        self._problems.error(node.line, f"{what} {node.value!r}: expected one of {expected}{more}")
        return None

    def _chat_template(self, node: Node | None) -> str | None:
        if node is None:
            return None
        wrong = None if node.value in ("auto", *BUILT_IN) else wrong_literal(str(node.value))
        if wrong:
            self._problems.error(node.line, wrong)
        return str(node.value)
