"""YAML with the line of every value, so that a problem can be placed."""

from __future__ import annotations

from typing import Any, NamedTuple

import yaml

from wspace.recipes.problems import RecipeError

MAX_BYTES = 1 << 18
"""Of a recipe's file: PyYAML takes half a minute for a megabyte."""

MAX_NODES = 300_000
"""Values of a file, aliases followed: a few lines of them can stand for more than memory holds."""


class Key(str):
    """A key of a mapping, and its line."""

    __slots__ = ("line",)
    line: int


class Node(NamedTuple):
    """A value and its line: a scalar, a list of nodes, or a mapping from keys to nodes."""

    value: Any
    line: int


def read_yaml(text: str, file: str) -> Node:
    """The one document of a YAML text. Raises RecipeError with the place of what is wrong."""
    try:
        document = yaml.compose(text, yaml.SafeLoader)
        if document is None:
            raise RecipeError([f"{file}: empty; expected a recipe, beginning with merge_method:"])
        return _Reader(file).node(document, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(str(error.problem or error.context).split())
        place = f"{mark.line + 1}:{mark.column + 1}" if mark else "1"
        raise RecipeError([f"{file}:{place}: not YAML: {reason}"]) from None
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError([f"{file}: not YAML: {' '.join(str(error).split())}"]) from None
    except RecursionError:
        raise RecipeError([f"{file}: nested too deeply"]) from None


class _Reader:
    def __init__(self, file: str) -> None:
        self._constructor = yaml.constructor.SafeConstructor()
        self._file, self._n_nodes = file, 0

    def node(self, node: yaml.Node, above: tuple[yaml.Node, ...]) -> Node:
        line = node.start_mark.line + 1
        self._n_nodes += 1
        if self._n_nodes > MAX_NODES or any(node is other for other in above):
            raise RecipeError([f"{self._file}:{line}: an alias that repeats without end"])
        above = (*above, node)
        if isinstance(node, yaml.MappingNode):
            return Node(self._mapping(node, above), line)
        if isinstance(node, yaml.SequenceNode):
            return Node([self.node(item, above) for item in node.value], line)
        return Node(self._scalar(node, line), line)

    def _scalar(self, node: yaml.Node, line: int) -> Any:
        try:
            return self._constructor.construct_object(node)
        except (LookupError, AttributeError, TypeError, ArithmeticError, ValueError):
            # what PyYAML makes of a text that is not what its tag says, such as !!bool 3
            kind = node.tag.rpartition(":")[2]
            shown = f"{node.value!r:.60}"
            raise RecipeError([f"{self._file}:{line}: {shown} is not of type {kind}"]) from None

    def _mapping(self, node: yaml.MappingNode, above: tuple[yaml.Node, ...]) -> dict[Key, Node]:
        own: dict[Key, Node] = {}
        inherited: dict[Key, Node] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                merged = self.node(value_node, above).value
                for part in merged if isinstance(merged, list) else [Node(merged, line)]:
                    if not isinstance(part.value, dict):
                        raise RecipeError([f"{self._file}:{line}: <<: expected a mapping"])
                    inherited = part.value | inherited
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError([f"{self._file}:{line}: a key must be a name"])
            key = Key(key_node.value)
            key.line = line
            if key in own:
                raise RecipeError([f"{self._file}:{line}: the key {key!r} is given twice"])
            own[key] = self.node(value_node, above)
        return inherited | own
