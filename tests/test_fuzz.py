"""Any tree of JSON or YAML in place of an index or a recipe: a valid object, or a refusal."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.fuzz_targets import RECIPES, TARGETS, mutator
from wspace.recipes import Problems, RecipeError
from wspace.recipes.documents import read_documents
from wspace.recipes.outputs import plan_outputs

NAMES = st.sampled_from(
    ["a", "b", "c", "model", "models", "weight", "weight_map", "parameters", "merge_method",
     "base_model", "sweep", "filter", "value", "sources", "slices", "layer_range", "tokenizer",
     "source", "tokens", "kind", "dtype", "name", "..", "linear", "ties", "slerp", "union",
     "model-00001-of-00002.safetensors", "dtype", "shape", "data_offsets", "__metadata__", "F32"]
)  # fmt: skip
LEAVES = (
    NAMES | st.none() | st.booleans() | st.integers(-2, 2**64) | st.floats() | st.text(max_size=6)
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=25,
)
EXAMPLES = settings(
    max_examples=150,
    deadline=timedelta(seconds=5),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module", params=TARGETS)
def target(request, tmp_path_factory):
    """Its name, check and seeds, in a folder of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp(request.param))
        yield request.param, *TARGETS[request.param]()


def text_of(name, tree):
    if name == "recipes":
        return yaml.safe_dump(tree, allow_unicode=True)
    return json.dumps(tree)


@given(TREES)
@EXAMPLES
def test_any_tree_is_read_or_refused(target, tree):
    name, check, _ = target
    text = text_of(name, tree).encode(errors="replace")
    check(bytes(2 * (name == "headers")) + text)


@given(st.integers(0, 2**32), st.integers(0, 100), st.integers(1, 6))
@EXAMPLES
def test_what_nearly_is_right_is_read_or_refused(target, seed, which, times):
    """Mutations of what is right, one after the other."""
    name, check, seeds = target
    mutate = mutator(name, lambda data, longest: data[: len(data) // 2])
    data = seeds[which % len(seeds)]
    for k in range(times):
        data = mutate(data, 4096, seed + k)
    check(data)


def test_what_is_right_is_read(target):
    """Else the others show little."""
    _, check, seeds = target
    for seed in seeds:
        check(seed)


FOUND = {
    "an alias of a mapping in its own sweep": "a:\n  b: &x\n  - - *x\n    - *x\nc:\n  sweep:\n"
    "  - *x\n  - 2\n",
    "an alias in its own list, in a sweep": "a:\n  sweep:\n  - &x\n    - *x\n  - *x\n",
    "a sweep that ends with an alias": "a: &x 1\nb:\n  w:\n    sweep:\n    - 2\n    - *x\n  z: 1\n",
    "a NUL": "a: 1\n---\nb: \0",
    "a line break in a model": "merge_method: linear\nmodels:\n- model: 'a\n\n    b'\n",
    "a model's name too long": f"merge_method: linear\nmodels:\n- model: {'x' * 300}\n",
}
"""Of what ``bench.fuzz`` found, recipes."""


@pytest.mark.parametrize("case", FOUND)
def test_what_was_found_is_refused(case):
    with pytest.raises(RecipeError) as raised:
        plan_outputs(FOUND[case], Problems("r.yml"))
    assert all("\n" not in line and line.startswith("r.yml") for line in raised.value.problems)


def test_an_alias_at_the_end_of_a_sweep_stands_for_its_value():
    (documents,) = read_documents(FOUND["a sweep that ends with an alias"], Problems("r.yml"))
    values = [yaml.safe_load(document.text)["b"] for document in documents]
    assert values == [{"w": 2, "z": 1}, {"w": 1, "z": 1}]


def test_the_seeds_of_recipes_are_planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    TARGETS["recipes"]()
    planned = 0
    for text in RECIPES:
        try:
            planned += len(plan_outputs(text, Problems("r.yml")))
        except RecipeError:
            continue
    assert planned >= 3
    assert Path("a").is_dir()
