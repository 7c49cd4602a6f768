"""A recipe's file as recipes: its YAML documents, each once for every value of its sweeps.

``{sweep: [a, b, c]}`` may stand wherever a value can. Sweeps of the same key advance together, and
have equally many values; those of different keys are combined, each value with each.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import yaml

from wspace.recipes.problems import Problems
from wspace.recipes.source import read_yaml

MAX_OUTPUTS = 1000
"""Of one document: more are a slip, not a sweep."""

_SEPARATOR = re.compile(r"---(\s|$)")


class Document(NamedTuple):
    text: str  # with as many empty lines before it as its place in the file needs
    label: str  # of its sweeps' values, such as ``weight=0.2``; empty without sweeps

    @property
    def own_text(self) -> str:
        return self.text.lstrip("\n")


class _Sweep(NamedTuple):
    key: str  # of the parameter
    line: int
    start: int  # of the text to be replaced
    stop: int
    values: tuple[str, ...]


def read_documents(text: str, problems: Problems) -> list[list[Document]]:
    """Each document's recipes: one, or one for every combination of its sweeps' values.

    Raises RecipeError where a document is not YAML, or all are empty.
    """
    documents = [part for part in _split(text) if yaml_root(part) is not None]
    if not documents:
        read_yaml(text, problems.file)  # says why
    return [list(_expanded(part, problems)) for part in documents]


def yaml_root(text: str) -> yaml.Node | bool | None:
    """The document's node; None if it is empty, and True if it is not YAML."""
    loader = yaml.SafeLoader(text)
    try:
        return loader.get_single_node()
    except (yaml.YAMLError, ValueError, RecursionError):
        return True
    finally:
        loader.dispose()


def _split(text: str) -> Iterator[str]:
    start = 0
    lines = text.splitlines(keepends=True)
    for k, line in enumerate([*lines, "---"]):
        if _SEPARATOR.match(line):
            rest = "".join(lines[start:k])
            yield "\n" * start + rest
            start = k + 1
            if k < len(lines) and (inline := line[3:].strip()) and not inline.startswith("#"):
                lines[k], start = f"   {line[3:]}", k


def _expanded(text: str, problems: Problems) -> Iterator[Document]:
    root = yaml_root(text)
    sweeps = list(_sweeps(root, "", text, set())) if isinstance(root, yaml.Node) else []
    axes: dict[str, list[_Sweep]] = {}
    for sweep in sweeps:
        axes.setdefault(sweep.key, []).append(sweep)
    total = 1
    for key, together in axes.items():
        total *= len(together[0].values)
        for other in together[1:]:
            if len(other.values) != len(together[0].values):
                problems.error(
                    other.line,
                    f"{key}: sweep of {len(other.values)} values, and one of "
                    f"{len(together[0].values)} in line {together[0].line}: sweeps of one "
                    "parameter advance together",
                )
                return
    if total > MAX_OUTPUTS:
        problems.error(sweeps[0].line, f"{total} outputs: the sweeps make more than {MAX_OUTPUTS}")
        return
    for chosen in itertools.product(*(range(len(t[0].values)) for t in axes.values())):
        edits: list[tuple[_Sweep, str]] = []
        label = []
        for (key, together), k in zip(axes.items(), chosen, strict=True):
            values = [sweep.values[k] for sweep in together]
            edits += zip(together, values, strict=True)
            label.append(f"{key}={'_'.join(map(_plain, dict.fromkeys(values)))}")
        yield Document(_replaced(text, edits), ",".join(label))


def _replaced(text: str, edits: Sequence[tuple[_Sweep, str]]) -> str:
    for sweep, value in sorted(edits, key=lambda edit: -edit[0].start):
        gone = text[sweep.start : sweep.stop]
        lines = gone.count("\n") - value.count("\n")  # so that what follows stays in its line
        text = text[: sweep.start] + value + "\n" * lines + text[sweep.stop :]
    return text


def _plain(value: str) -> str:
    """A value as a part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "_", value).strip("_") or "none"


def _sweeps(node: yaml.Node, key: str, text: str, seen: set[int]) -> Iterator[_Sweep]:
    if id(node) in seen:  # an alias: it has the values of its anchor
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        if len(node.value) == 1 and node.value[0][0].value == "sweep":
            items = node.value[0][1]
            if isinstance(items, yaml.SequenceNode) and items.value:
                values = tuple(text[i.start_mark.index : _end(i)] for i in items.value)
                start = node.start_mark.index
                if text[start] == "&":  # the anchor's name stays
                    start += len(re.match(r"&\S+\s*", text[start:])[0])  # type: ignore[index]
                yield _Sweep(key, node.start_mark.line + 1, start, _end(node), values)
                return
        for name, value in node.value:
            own = str(name.value) if isinstance(name, yaml.ScalarNode) else key
            yield from _sweeps(value, key if own in ("value", "filter") else own, text, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _sweeps(item, key, text, seen)


def _end(node: yaml.Node) -> int:
    """Where its text ends; that of a block ends with its last value, not with what follows."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return node.end_mark.index
