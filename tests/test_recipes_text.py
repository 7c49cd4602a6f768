"""Recipes as text: what is accepted, what is refused, and with which place in the file."""

import pytest

from tests.recipes import numbers, plan, weights
from tests.zoos import save, state, zoo_on_disk
from wspace.recipes import Problems, RecipeError, parse_recipe
from wspace.recipes.references import ModelReference, parse_reference
from wspace.recipes.settings import Condition, gradient, parse_setting
from wspace.recipes.source import read_yaml


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("recipes")
    zoo_on_disk(root, n=3)
    save(root / "other", {"w": state(0)["scale"]})
    alike = {f"layers.{k}.weight": (4, 3) for k in range(2)}
    for k in range(2):
        save(root / f"even-{k}", state(k, shapes=alike))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        yield root


def problems_of(text, strict=False):
    with pytest.raises(RecipeError) as raised:
        plan(text, strict=strict)
    return raised.value.problems


def setting(text):
    problems = Problems("r.yml")
    return parse_setting(read_yaml(text, "r.yml"), "weight", problems), problems.errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5", [(None, (0.5,))]),
        ("1e-5", [(None, (1e-5,))]),  # a text, to YAML 1.1
        ("'0.25'", [(None, (0.25,))]),
        ("true", [(None, (1.0,))]),
        ("0", [(None, (0.0,))]),
        ("[true, false]", [(None, (1.0, 0.0))]),
        ("[]", [(None, ())]),
        ("{value: 2, filter: mlp}", [("mlp", (2.0,))]),
        ("{value: [1, 2]}", [(None, (1.0, 2.0))]),
        ("[{filter: a, value: [0, 1]}, {value: 3}]", [("a", (0.0, 1.0)), (None, (3.0,))]),
        ("[{filter: '*', value: 1}]", [(None, (1.0,))]),
        ("[{filter: null, value: 1}]", [(None, (1.0,))]),
    ],
)
def test_values(text, expected):
    found, errors = setting(text)
    assert not errors
    assert list(found.conditions) == [Condition(*pair) for pair in expected]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("high", "expected a finite number, found 'high'"),
        ("null", "expected a finite number, found nothing"),
        (".nan", "expected a finite number, found nan"),
        ("[1, .inf]", "expected a finite number, found inf"),
        ("[1, {value: 2}]", "numbers, or conditions, but not both"),
        ("{filter: a}", "a condition needs a value"),
        ("{filter: 3, value: 1}", "filter: expected a part of tensor names"),
        ("{sweep: 1}", "expected {sweep: [value, value, ...]} and no more"),
    ],
)
def test_wrong_values(text, error):
    _, errors = setting(f"\n\n{text}")
    assert errors and all(line.startswith("r.yml:3: weight") for line in errors)
    assert error in errors[0]


def test_gradients():
    assert gradient((1e-5, 1e-3), 0.5) == pytest.approx(0.000505, rel=1e-12)
    assert gradient((2, 4), 0.5) == 3
    assert [gradient((0, 0.5, 0.3, 1), t) for t in (0, 1 / 3, 1)] == [0, 0.5, 1]
    assert gradient((7,), 0.4) == 7
    assert gradient((), 0.4) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", ModelReference("a/b")),
        ("a/b@main", ModelReference("a/b", "main")),
        ("{model: a/b@v2}", ModelReference("a/b", "v2")),
        ("{model: {path: 'a+b@c', revision: v1}}", ModelReference("a+b@c", "v1")),
        ("{model: a, override_architecture: X}", ModelReference("a", None, "X")),
        ("a@v1+b/c@v2", ModelReference("a", "v1", None, ModelReference("b/c", "v2"))),
        ("{model: a, lora: b@v2}", ModelReference("a", None, None, ModelReference("b", "v2"))),
        (
            "{model: a, lora: {path: b+c, revision: v2}}",
            ModelReference("a", None, None, ModelReference("b+c", "v2")),
        ),
        ("{model: a, lora: null}", ModelReference("a")),
    ],
)
def test_references(text, expected):
    problems = Problems("r.yml")
    assert parse_reference(read_yaml(text, "r.yml"), problems) == expected
    assert not problems.errors


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a+b+c", "more than one '+'"),
        ("a@b@c", "more than one '@'"),
        ("a@", "expected path or path@revision"),
        ("a+b@c@d", "more than one '@'"),
        ("a+", "expected path or path@revision"),
        ("{model: a, lora: 3}", "lora: expected a path or Hub id"),
        ("{model: a, lora: {revision: b}}", "lora: expected {path, revision}"),
        ("{lora: null}", "needs the key model"),
        ("3", "expected the path or Hub id of a model"),
    ],
)
def test_wrong_references(text, error):
    problems = Problems("r.yml")
    assert parse_reference(read_yaml(text, "r.yml"), problems) is None
    assert error in problems.errors[0]


def test_every_problem_is_told_at_once_with_its_line():
    found = problems_of("""\
merge_method: linear
models:
  - model: run-0
    parameters: {weight: high}
  - model: nowhere
  - modle: run-1
base_model: base@main
dtype: int64
tokenizer: {pad_to_multiple_of: 0}
chat_template: chatlm
""")
    lines = [int(line.split(":")[1]) for line in found]
    assert lines == [4, 5, 6, 7, 8, 9, 10]
    for line, text in zip(
        found,
        ["finite number", "no such file", "needs the key model", "leave out @main",
         "integers cannot be averaged", "a number from 1",
         "expected auto, alpaca, chatml"],
        strict=True,
    ):  # fmt: skip
        assert text in line


def test_unknown_keys_are_warned_of_and_refused_when_strict():
    text = """\
merge_method: linear
models:
  - {model: run-0, parameter: {weight: 1}}
  - {model: run-1}
parameters: {weight: 1, normalise: true}
input_model_parameters: {}
"""
    _, problems = plan(text)
    assert problems.warnings == [
        "r.yml:3: key in models 'parameter' is unknown; did you mean parameters?",
        "r.yml:5: parameter 'normalise' is unknown; did you mean normalize?",
        "r.yml:6: key 'input_model_parameters' is unknown; did you mean parameters?",
    ]
    assert len(problems_of(text, strict=True)) == 3


def test_parameters_that_do_nothing_are_warned_of():
    _, problems = plan("""\
merge_method: task_arithmetic
base_model: base
models:
  - {model: run-0, parameters: {weight: 1, density: 0.5, lambda: 2}}
parameters: {int8_mask: true, t: 0.5}
""")
    assert problems.warnings == [
        "r.yml:4: density has no effect in task_arithmetic",
        "r.yml:4: lambda is a number of the whole merge: it has no effect in one model",
        "r.yml:5: int8_mask has no effect in task_arithmetic",
        "r.yml:5: t has no effect in task_arithmetic",
    ]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "r.yml: empty"),
        ("- 1", "r.yml:1: expected a recipe"),
        ("a: [1", "r.yml:1:6: not YAML: "),
        ("a: 1\na: 2", "r.yml:2: the key 'a' is given twice"),
        ("a: &x [*x]", "r.yml:1: an alias that repeats without end"),
        ("merge_method: linear", "exactly one of models, slices and modules; found none"),
        ("merge_method: linear\nmodels: []", "r.yml:2: models: expected a list of at least one"),
        ("merge_method: linear\nmodels: [{model: a}]\nslices: []", "found models and slices"),
        ("merge_method: 3\nmodels: [{model: run-0}]", "expected the name of a method"),
        ("merge_method: ties\nmodels: [{model: run-0}]", "ties needs a base_model"),
        ("merge_method: linaer\nmodels: [{model: run-0}]", "unknown; did you mean linear?"),
        ("merge_method: linear\nmodels: [{model: run-0}, {model: run-0}]", "run-0 is listed twice"),
        ("merge_method: slerp\nmodels: [{model: run-0}]", "slerp needs a base_model"),
        ("merge_method: slerp\nbase_model: base\nmodels: [{model: run-0}, {model: run-1}]",
         "slerp takes 1 models besides the base, found 2"),
        ("merge_method: model_stock\nbase_model: base\nmodels: [{model: run-0}]",
         "model_stock takes 2 or more models besides the base, found 1"),
        ("merge_method: passthrough\nmodels: [{model: run-0}, {model: run-1}]",
         "passthrough takes 1 models, found 2"),
        ("merge_method: slerp\nbase_model: base\nmodels: [{model: run-0}]",
         "no t for tensor 'embed.weight'"),
        ("merge_method: linear\nmodels: [{model: run-0, parameters: {weight: 1}},\n"
         "  {model: run-1}]", "r.yml:3: run-1 has no weight for tensor 'embed.weight'"),
        ("merge_method: linear\nbase_model: base\nmodels:\n"
         "  - {model: run-0, parameters: {weight: 1}}", "r.yml:2: base has no weight for tensor"),
        ("merge_method: linear\nmodels:\n  - {model: run-0, parameters: {weight: 1}}\n"
         "  - {model: run-1, parameters: {weight: -1}}", "the weights sum to 0"),
        ("merge_method: linear\nmodels: [{model: run-0}]\ndtype: float8", "dtype 'float8'"),
        ("merge_method: linear\nmodels: [{model: run-0}]\ntokenizer: {}\ntokenizer_source: base",
         "give tokenizer or tokenizer_source, not both"),
    ],
)  # fmt: skip
def test_refused(text, error):
    assert any(error in line for line in problems_of(text)), problems_of(text)


def test_anchors_and_merge_keys():
    found, _ = plan("""\
merge_method: linear
models:
  - {model: run-0, parameters: &same {weight: 2}}
  - {model: run-1, parameters: {<<: *same}}
  - {model: run-2, parameters: {<<: *same, weight: 4}}
""")
    assert weights(found, "norm.weight") == (2, 2, 4)


def test_scopes():
    """Model, slice, module, recipe, default: the first that has a value."""
    found, _ = plan("""\
merge_method: linear
modules:
  default:
    slices:
      - sources:
          - model: run-0
            layer_range: [0, 2]
            parameters: {weight: [{filter: layers.0, value: 1}]}
          - {model: run-1, layer_range: [0, 2], parameters: {weight: 2}}
          - {model: run-2, layer_range: [0, 2], parameters: {weight: []}}
        parameters: {weight: [{filter: bias, value: 3}]}
    parameters: {weight: [{filter: norm, value: 4}], normalize: false}
parameters: {weight: 5, normalize: true}
""")
    assert weights(found, "layers.0.weight") == (1, 2, 5)
    assert weights(found, "layers.0.bias") == (1, 2, 3)
    assert weights(found, "layers.1.weight") == (5, 2, 5)
    assert weights(found, "norm.weight") == (4, 2, 4)
    assert {t.step.numbers.flag("normalize") for t in found.tensors} == {False}


def test_gradients_run_over_the_layers_and_start_before_and_after_them():
    found, _ = plan("""\
merge_method: linear
models:
  - {model: run-0, parameters: {weight: [0.25, 0.75]}}
  - {model: run-1, parameters: {weight: [{filter: bias, value: [7, 9]}, {value: 1}]}}
""")
    assert weights(found, "embed.weight") == (0.25, 1)
    assert weights(found, "layers.0.bias") == (0.25, 7)
    assert weights(found, "layers.1.weight") == (0.75, 1)
    assert weights(found, "norm.weight") == (0.25, 1)
    one, _ = plan("""\
merge_method: linear
slices:
  - sources: [{model: run-0, layer_range: [1, 2], parameters: {weight: [2, 5]}}]
""")
    assert weights(one, "layers.0.weight") == (5,), "a slice of one layer is at the end"
    assert weights(one, "norm.weight") == (2,)


def test_filters_see_input_names_for_models_and_output_names_for_the_whole():
    found, _ = plan("""\
merge_method: slerp
base_model: base
slices:
  - sources: [{model: base, layer_range: [1, 2]}, {model: run-0, layer_range: [1, 2]}]
parameters: {t: [{filter: layers.0., value: 0.25}, {value: 0.5}]}
""")
    assert numbers(found, "layers.0.weight").overall["t"] == 0.25
    found, _ = plan("""\
merge_method: linear
slices:
  - sources: [{model: even-0, layer_range: [1, 2]}, {model: even-1, layer_range: [0, 1]}]
parameters: {weight: [{filter: layers.0., value: 0.25}, {value: 0.5}]}
""")
    assert weights(found, "layers.0.weight") == (0.5, 0.25)


def test_what_the_base_is_to_a_method_is_said():
    text = (
        "merge_method: linear\nbase_model: base\nmodels: [{model: run-0}]\nparameters: {weight: 1}"
    )
    found, problems = plan(text)
    assert weights(found, "norm.weight") == (1, 1)
    assert "merged as one more input" in problems.notes[0]
    listed = text.replace("[{model: run-0}]", "[{model: base}, {model: run-0}]")
    found, problems = plan(listed)
    assert weights(found, "norm.weight") == (1, 1)
    assert not problems.notes


def test_the_text_is_kept():
    text = "merge_method: linear # so\nmodels: [{model: run-0}]\n"
    assert parse_recipe(text, Problems("r.yml")).text == text
