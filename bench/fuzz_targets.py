"""What ``bench.fuzz`` fuzzes: checks that raise what is a finding, their seeds, and mutations."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Check = Callable[[bytes], None]
"""Raises what is a finding."""


def headers() -> tuple[Check, list[bytes]]:
    import safetensors

    from wspace.errors import CheckpointError
    from wspace.storage.headers import BITS, parse_header

    def check(data: bytes) -> None:
        n_data = int.from_bytes(data[:2], "little") % 512
        text = data[2:]
        try:
            header = parse_header(text, n_data, Path("x"))
        except CheckpointError as error:
            one_line(error)
            return
        position = 8 + len(text)
        for record in header.tensors.values():
            assert record.start == position
            assert record.nbytes * 8 == record.numel * BITS[record.dtype]
            position += record.nbytes
        assert position == 8 + len(text) + n_data
        if b"-0" in text or b"F6" in text or b"F4" in text or b"F8_" in text or b"C64" in text:
            return  # an integer to Python's JSON, a float to theirs; types that theirs may not know
        theirs = dict(
            safetensors.deserialize(len(text).to_bytes(8, "little") + text + bytes(n_data))
        )
        assert theirs.keys() == header.tensors.keys()
        for name, record in header.tensors.items():
            assert theirs[name]["shape"] == list(record.shape)

    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    seeds: list[dict] = [
        {},
        {"x": entry},
        {"__metadata__": {"a": "b"}, "x": entry, "y": entry | {"data_offsets": [8, 16]}},
        {"x": {"dtype": "BF16", "shape": [2, 0], "data_offsets": [0, 0]}, "é": entry},
        {"x": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}},
    ]
    sizes = [0, 8, 16, 8, 8]
    return check, [
        size.to_bytes(2, "little") + json.dumps(seed).encode()
        for size, seed in zip(sizes, seeds, strict=True)
    ]


def index() -> tuple[Check, list[bytes]]:
    from wspace.errors import CheckpointError
    from wspace.storage.checkpoints import INDEX, open_checkpoint
    from wspace.storage.headers import render_header

    folder = Path("model")
    folder.mkdir()
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for name, file in names.items():
        header, _, length = render_header({name: ("F32", (2,))}, {})
        (folder / file).write_bytes(header + bytes(length - len(header)))

    def check(data: bytes) -> None:
        (folder / INDEX).write_bytes(data)
        try:
            opened = open_checkpoint(folder)
        except CheckpointError as error:
            one_line(error)
            return
        assert opened.tensors.keys() == names.keys()
        assert {file.name for file in opened.files} == set(names.values())

    good = {"metadata": {"total_size": 16}, "weight_map": names}
    return check, [
        json.dumps(good).encode(),
        json.dumps({"weight_map": {"a": "../model-00001-of-00002.safetensors"}}).encode(),
        b'{"weight_map": {"a": "/etc/passwd", "b": ["x"], "c": {"d": null}}}',
    ]


def recipes() -> tuple[Check, list[bytes]]:
    from wspace.errors import WspaceError
    from wspace.recipes import Problems
    from wspace.recipes.outputs import plan_outputs
    from wspace.storage.headers import render_header

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    tensors = {f"model.layers.{k}.mlp.weight": ("F32", (2, 2)) for k in range(2)}
    tensors |= {"model.embed_tokens.weight": ("BF16", (4, 2)), "steps": ("I64", (1,))}
    for name in "abc":
        header, _, length = render_header(tensors, {})
        Path(name).mkdir()
        Path(name, "model.safetensors").write_bytes(header + bytes(length - len(header)))
        Path(name, "config.json").write_text('{"num_hidden_layers": 2, "vocab_size": 4}')

    def check(data: bytes) -> None:
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return  # refused before
        try:
            outputs = plan_outputs(text, Problems("r.yml"))
        except (WspaceError, ValueError) as error:
            one_line(error)
            return
        for output in outputs:
            assert any(tensor.step for tensor in output.plan.tensors)
            assert output.plan.nbytes > 0
            parts = output.name.split("/")
            assert output.name == "" or not {"", ".", ".."}.intersection(parts), "leaves its folder"

    return check, [recipe.encode() for recipe in RECIPES]


RECIPES = [
    "merge_method: linear\nmodels:\n- model: a\n  parameters: {weight: 0.5}\n- model: b\n"
    "  parameters: {weight: [0.1, 0.9]}\nparameters: {normalize: true}\ndtype: bfloat16\n",
    "merge_method: ties\nbase_model: a\nmodels:\n- {model: b, parameters: {weight: "
    "[{filter: mlp, value: 0.3}, {value: 1e-1}], density: 0.5}}\n- model: c\n  parameters:\n"
    "    weight: {sweep: [0.2, 0.4]}\n    density: .inf\n",
    "merge_method: passthrough\nslices:\n- sources: [{model: a, layer_range: [0, 2]}]\n"
    "- sources: [{model: b, layer_range: [1, 2], parameters: {scale: 2}}]\n"
    "tokenizer_source: base\n",
    "name: x\nmerge_method: slerp\nbase_model: &b a\nmodels: [{model: *b}, {model: b}]\n"
    "parameters: {t: 0.5}\n---\nmerge_method: linear\nmodels: [{model: x}, {model: c}]\n"
    "parameters: {<<: {weight: 1}}\nchat_template: chatml\n",
    "merge_method: model_stock\nbase_model: {model: {path: a, revision: null}}\nmodules:\n"
    "  text: {slices: [{sources: [{model: b, layer_range: [0, 1]}]}], parameters: {filter: 1}}\n"
    "tokenizer: {source: union, tokens: {x: {source: {kind: zero}, force: true}}, "
    "pad_to_multiple_of: 8}\nout_dtype: !!str float16\n",
]

TARGETS = {"headers": headers, "index": index, "recipes": recipes}


def one_line(error: Exception) -> None:
    """A refusal is one line for each problem, of bounded length."""
    lines = getattr(error, "problems", (str(error),))
    assert lines, "a refusal without words"
    assert all("\n" not in line for line in lines), "a refusal of several lines"
    assert all(len(line) < 2000 for line in lines), "a refusal without end"


VALUES = [
    None, True, False, 0, 1, 2, -1, 2**31, 2**63, 2**64, 10**30, 0.5, 1e308, float("nan"),
    float("inf"), "", "a", "b", "c", "..", "/", "\0", "\n", "\ud800", "weight", "x" * 300, [], {},
    [[]], [0, 8], {"a": {}}, {"sweep": [1, 2]}, {"filter": "mlp", "value": 1},
]  # fmt: skip


def changed(root: Any, draw: random.Random) -> Any:
    """A tree with one value, or one key, exchanged, doubled or left out."""
    places: list[tuple[Any, Any]] = []
    waiting = [root]
    while waiting and len(places) < 10_000:
        node = waiting.pop()
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in pairs:
            places.append((node, key))
            if isinstance(value, dict | list):
                waiting.append(value)
    if not places:
        return draw.choice(VALUES)
    node, key = draw.choice(places)
    other, of_other = draw.choice(places)
    what = draw.randrange(5)
    if what == 0:
        del node[key]
    elif what == 1:
        node[key] = other[of_other]
    elif what == 2 and isinstance(node, dict):
        node[draw.choice([of_other, *map(str, VALUES[:14])])] = node.pop(key)
    elif what == 3 and isinstance(node, list):
        node.insert(key, node[key])
    else:
        node[key] = draw.choice(VALUES)
    return root


def mutator(target: str, mutate: Callable[[bytes, int], bytes]) -> Callable[..., bytes]:
    """libFuzzer's own mutations, and in turn those of a tree."""
    head = 2 if target == "headers" else 0

    def custom(data: bytes, longest: int, seed: int) -> bytes:
        draw = random.Random(seed)
        if draw.random() < 0.5:
            return mutate(data, longest)
        try:
            text = data[head:].decode()
            if target == "recipes":
                trees = list(yaml.safe_load_all(text))
                k = draw.randrange(len(trees))
                trees[k] = changed(trees[k], draw)
                made = yaml.safe_dump_all(trees, allow_unicode=True)
            else:
                made = json.dumps(changed(json.loads(text), draw), ensure_ascii=False)
            made = made.encode()
        except (ValueError, TypeError, IndexError, RecursionError, yaml.YAMLError):
            return mutate(data, longest)
        return (data[:head] + made)[:longest]

    return custom
