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

from wspace.recipes.problems import Problems, RecipeError
from wspace.recipes.source import read_yaml

MAX_OUTPUTS = 1000
"""Of a file: more are a slip, not a sweep."""

MAX_TEXT = 4 << 20
"""Characters of all documents with all of their values, each read by itself."""

_SEPARATOR = re.compile(r"---(\s|$)")
_ANCHOR = re.compile(r"&(\S+)\s*")


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
    documents: list[list[Document]] = []
    n = size = 0
    for part in _split(text):
        _refuse_too_much(n + 1, size + len(part), problems.file)
        root = yaml_root(part)
        if root is None:
            size += len(part)
            continue
        documents.append(list(_expanded(part, root, problems)))
        n, size = n + len(documents[-1]), size + sum(len(one.text) for one in documents[-1])
    if not documents:
        read_yaml(text, problems.file)  # says why
    return documents


def _refuse_too_much(n: int, size: int, file: str) -> None:
    """Before it is read: YAML takes its time."""
    if n > MAX_OUTPUTS:
        raise RecipeError([f"{file}: {n} outputs, expected at most {MAX_OUTPUTS}"])
    if size > MAX_TEXT:
        raise RecipeError(
            [f"{file}: {size} characters, with all documents and sweeps written out; expected at "
             f"most {MAX_TEXT}: use fewer at a time"]
        )  # fmt: skip


def yaml_root(text: str) -> yaml.Node | bool | None:
    """The document's node; None if it is empty, and True if it is not YAML."""
    try:
        return yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return True


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


def _expanded(text: str, root: yaml.Node | bool, problems: Problems) -> Iterator[Document]:
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
    _refuse_too_much(total, total * len(text), problems.file)
    for chosen in itertools.product(*(range(len(t[0].values)) for t in axes.values())):
        edits: list[tuple[_Sweep, str]] = []
        label = []
        for (key, together), k in zip(axes.items(), chosen, strict=True):
            values = [sweep.values[k] for sweep in together]
            edits += zip(together, values, strict=True)
            label.append(f"{_plain(key)}={'_'.join(map(_plain, dict.fromkeys(values)))}")
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
                values = tuple(_written(item, items, text) for item in items.value)
                start = node.start_mark.index
                if anchor := _ANCHOR.match(text, start):  # its name stays
                    start = anchor.end()
                yield _Sweep(key, node.start_mark.line + 1, start, _end(node, text), values)
                return
        for name, value in node.value:
            own = str(name.value) if isinstance(name, yaml.ScalarNode) else key
            yield from _sweeps(value, key if own in ("value", "filter") else own, text, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _sweeps(item, key, text, seen)


def _written(node: yaml.Node, items: yaml.Node, text: str) -> str:
    """A sweep's value as it is written; an alias has the place of its anchor, which is before."""
    start = node.start_mark.index
    anchor = _ANCHOR.match(text, start)
    if anchor and start < items.start_mark.index:
        return f"*{anchor[1]}"
    return text[start : _end(node, text)]


def _end(node: yaml.Node, text: str) -> int:
    """Where its text ends; that of a block ends with its last value, not with what follows."""
    while isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        parts = [part for item in node.value for part in (item if type(item) is tuple else [item])]
        *before, last = parts
        least = max([node.start_mark.index + 1, *(part.end_mark.index for part in before)])
        if last.start_mark.index < least:  # an alias, which has the place of its anchor
            return len(text[: node.end_mark.index].rstrip())
        node = last
    return node.end_mark.index
