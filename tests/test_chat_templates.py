"""``chat_template``: one that models have, a built-in one, or a text; nothing else changes."""

import json

import pytest
from transformers import AutoTokenizer

from tests.recipes import merged, plan
from tests.tokenizers import bpe, llama, save_tokenizer
from wspace.recipes import RecipeError

TALK = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "V"},
]
SPOKEN = {
    "chatml": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
        "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "mistral": "<s>[INST] S\n\nU [/INST] A</s>[INST] V [/INST]",
    "alpaca": (
        "<s>S\n\n### Instruction:\nU\n\n### Response:\nA</s>\n\n"
        "### Instruction:\nV\n\n### Response:\n"
    ),
    "exaone": (
        "[|system|]S[|endofturn|]\n[|user|]U\n[|assistant|]A[|endofturn|]\n[|user|]V\n[|assistant|]"
    ),
}
X, Y = ("{% for m in messages %}" + f"{c}" + "{{ m.content }}{% endfor %}" for c in "xy")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """``plain`` has no template, ``y`` one in a file of its own, ``x`` in its settings."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = bpe([("a", "b")])
    for k, name in enumerate(("plain", "x", "y")):
        llama(root / name, tokenizer, k, bos_token="<s>", eos_token="</s>")
    settings = json.loads((root / "x/tokenizer_config.json").read_text())
    (root / "x/tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": X}))
    (root / "y/chat_template.jinja").write_text(Y)
    return root


def recipe(root, key, names):
    listed = "".join(f"- {{model: {root}/{name}, parameters: {{weight: 1}}}}\n" for name in names)
    return f"merge_method: linear\nmodels:\n{listed}{key}\n"


@pytest.mark.parametrize("name", SPOKEN)
@pytest.mark.parametrize("tokenizer", ["", "tokenizer_source: union\n"])
def test_built_in_templates(models, tmp_path, name, tokenizer):
    text = recipe(models, f"{tokenizer}chat_template: {name}", ["plain", "x"])
    merged(text, tmp_path / "out")
    out = AutoTokenizer.from_pretrained(tmp_path / "out")
    said = out.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert said == SPOKEN[name]
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (models / "plain" / file).read_bytes()


@pytest.mark.parametrize(
    ("names", "found"),
    [(["plain", "x", "y"], X), (["y", "x"], Y), (["x", "y"], X), (["plain", "y"], Y)],
    ids=["first of two", "first seen", "first seen too", "the only one"],
)
def test_auto(models, tmp_path, names, found):
    merged(recipe(models, "chat_template: auto", names), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == found


def test_auto_takes_the_most_frequent(models, tmp_path):
    (tmp_path / "z").mkdir()
    for file in (models / "y").iterdir():
        (tmp_path / "z" / file.name).write_bytes(file.read_bytes())
    text = recipe(models, "chat_template: auto", ["x", "y"])
    text = text.replace(
        "chat_template", f"- {{model: {tmp_path}/z, parameters: {{weight: 1}}}}\nchat_template"
    )
    merged(text, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == Y


def test_auto_without_any_is_said(models):
    _, problems = plan(recipe(models, "chat_template: auto", ["plain"]))
    assert "no model has one" in problems.warnings[0]


def test_a_text_replaces_what_the_donor_has_wherever_it_has_it(models, tmp_path):
    text = recipe(models, f"chat_template: '{Y}'", ["x", "plain"])
    merged(text, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == Y
    settings = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    before = json.loads((models / "x/tokenizer_config.json").read_text())
    assert settings == before | {"chat_template": Y}


def test_the_template_of_the_tokenizer_that_is_taken(models, tmp_path):
    """A tokenizer of another model than the config's brings its template with it."""
    merged(recipe(models, f"tokenizer_source: {models}/y", ["x", "y"]), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == Y


@pytest.mark.parametrize(
    "template", ["chatlm", "'{{ x }}'", "a text that is long but says nothing", "3"]
)
def test_nonsense_is_refused_with_its_line(models, template):
    with pytest.raises(RecipeError, match=r"r.yml:4: chat_template .*expected auto, alpaca"):
        plan(recipe(models, f"chat_template: {template}", ["x"]))


def test_a_model_without_a_tokenizer_gets_the_template_alone(models, tmp_path):
    save_tokenizer(tmp_path / "unused", bpe([]))
    (tmp_path / "m").mkdir()
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "m" / file).write_bytes((models / "x" / file).read_bytes())
    merged(recipe(tmp_path, "chat_template: chatml", ["m"]), tmp_path / "out")
    assert "<|im_start|>" in (tmp_path / "out/chat_template.jinja").read_text()
