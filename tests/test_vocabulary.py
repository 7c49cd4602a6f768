"""Models of different vocabularies: rows are brought into one order, and the output loads."""

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from tests.checkpoints import load
from tests.recipes import merged, plan
from tests.tokenizers import bert, bpe, gpt2, llama, save_tokenizer, unigram, wordpiece
from wspace.recipes import RecipeError, cost

A = [("a", "b"), ("c", "d"), ("ab", "c")]
B = [("a", "b"), ("e", "f"), ("ef", "g")]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """``a`` and ``b`` share letters, ``ab`` and ``<s>``; each has three tokens of its own."""
    root = tmp_path_factory.mktemp("pair")
    return root, llama(root / "a", bpe(A), 0), llama(root / "b", bpe(B, ("<s>", "<x>", "<y>")), 1)


def recipe(root, keys, models=("a", "b"), method="linear", base=None):
    listed = "".join(f"- {{model: {root}/{m}, parameters: {{weight: 1}}}}\n" for m in models)
    given = f"base_model: {root}/{base}\n" if base else ""
    return f"merge_method: {method}\nmodels:\n{listed}{given}{keys}\n"


def tokens(folder):
    return AutoTokenizer.from_pretrained(folder).get_vocab()


def expected_rows(name, ids, own, other, *, base=None):
    """Rows by the rule, in float64: own; else the other's. ``own``, ``other``: (ids, state)."""
    rows = torch.full((max(ids.values()) + 1, own[1][name].shape[1]), torch.nan).double()
    for token, at in ids.items():
        for known, state in (own, other):
            if token in known:
                rows[at] = state[name][known[token]].double()
                break
    return rows


@pytest.mark.parametrize("key", ["tokenizer_source: union", "tokenizer: {source: union}"])
def test_a_union_has_the_tokens_of_all(pair, tmp_path, key):
    root, a, b = pair
    out = merged(recipe(root, key), tmp_path / "out")
    before, others, ids = tokens(root / "a"), tokens(root / "b"), tokens(tmp_path / "out")
    fresh = [token for token in ("ef", "efg", "<x>", "<y>") if token not in before]
    assert ids == before | {token: len(before) + k for k, token in enumerate(fresh)}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = [
            expected_rows(name, ids, (before, a), (others, b)),
            expected_rows(name, ids, (others, b), (before, a)),
        ]
        torch.testing.assert_close(
            out[name].double(), (rows[0] + rows[1]) / 2, rtol=1e-6, atol=1e-8
        )
    torch.testing.assert_close(
        out["model.norm.weight"], (a["model.norm.weight"] + b["model.norm.weight"]) / 2
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == len(ids) == len(model.get_input_embeddings().weight)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "abc efg cd <x> <s> ef"
    assert tokenizer.tokenize(text) == ["abc", "efg", "cd", "<x>", "<s>", "ef"]
    assert (
        model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False))
        .logits.isfinite()
        .all()
    )
    # text of the first model's tokens is cut as it was
    own = AutoTokenizer.from_pretrained(root / "a")
    assert own("abcd cd ab ijh").input_ids == tokenizer("abcd cd ab ijh").input_ids


@pytest.mark.parametrize("source", ["base", "A"])
def test_the_tokens_of_one(pair, tmp_path, source):
    root, a, b = pair
    key = f"tokenizer_source: {source}".replace("A", f"{root}/a")
    base = "a" if source == "base" else "b"
    out = merged(recipe(root, key, base=base), tmp_path / "out")
    ids, others = tokens(root / "a"), tokens(root / "b")
    assert tokens(tmp_path / "out") == ids
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (root / "a" / file).read_bytes()
    name = "model.embed_tokens.weight"
    rows = a[name].double() + expected_rows(name, ids, (others, b), (ids, a))
    torch.testing.assert_close(out[name].double(), rows / 2, rtol=1e-6, atol=1e-8)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == len(ids)


def test_rows_that_are_named(pair, tmp_path):
    """Zeros, another token's row, a row by number, the default; forced or not; and padding."""
    root, a, b = pair
    key = f"""
tokenizer:
  source: base
  pad_to_multiple_of: 16
  tokens:
    "<zero>": {{source: {{kind: zero}}}}
    "ef": {{source: {{kind: model_token, model: {root}/a, token: abc}}}}
    "<three>": {{source: {{kind: model_token, model: {root}/b, token_id: 3}}}}
    "cd": {{source: {root}/a}}
    "ab": {{source: {root}/b, force: true}}
    "a": {{source: {{kind: zero}}}}
    "<none>": {{}}
    "efg":
"""
    _, problems = plan(recipe(root, key, base="a", method="task_arithmetic"))
    out = merged(recipe(root, key, base="a", method="task_arithmetic"), tmp_path / "out")
    ids, others = tokens(root / "a"), tokens(root / "b")
    known = tokens(tmp_path / "out")
    fresh = ["<zero>", "ef", "<three>", "<none>", "efg"]
    assert known == ids | {token: len(ids) + k for k, token in enumerate(fresh)}
    assert "5 named in the recipe" in problems.notes[0]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        x, y = a[name].double(), b[name].double()
        rows = {
            "<zero>": 0 * x[0],
            "ef": y[others["ef"]],  # b has it: its own row; the base's is that of abc
            "<three>": y[3],
            "cd": x[ids["cd"]],
            "ab": y[others["ab"]],  # forced in both
            "a": y[others["a"]],  # not forced: each its own
            "<none>": 0 * x[0],
            "efg": y[others["efg"]],  # only b has it
        }
        for token, row in rows.items():
            torch.testing.assert_close(
                out[name][known[token]].double(), row, rtol=1e-6, atol=1e-7, msg=token
            )
        assert len(out[name]) == 32
        real, padding = out[name][: len(known)].double(), out[name][len(known) :].double()
        torch.testing.assert_close(padding, real.mean(0).expand_as(padding), rtol=1e-5, atol=1e-6)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == 32
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("abc <zero> ef").input_ids == [ids["abc"], known["<zero>"], known["ef"]]


def test_a_token_that_several_others_have(tmp_path):
    """Their mean without a base that has it; the base's where it does."""
    x = llama(tmp_path / "x", bpe([("a", "b")]), 0)
    states = {
        m: llama(tmp_path / m, bpe([("a", "b"), ("c", "d")]), k) for k, m in enumerate("yz", 1)
    }
    name = "model.embed_tokens.weight"
    text = recipe(tmp_path, "tokenizer_source: union", models="xyz")
    out = merged(text, tmp_path / "out")
    ids, own = tokens(tmp_path / "out"), tokens(tmp_path / "y")
    y, z = (states[m][name][own["cd"]].double() for m in "yz")
    torch.testing.assert_close(out[name][ids["cd"]].double(), (y + z) / 2, rtol=1e-6, atol=1e-8)
    based = merged(recipe(tmp_path, "tokenizer_source: union", "xyz", base="z"), tmp_path / "based")
    assert tokens(tmp_path / "based") == own
    torch.testing.assert_close(
        based[name][own["cd"]].double(), (y + 2 * z) / 3, rtol=1e-6, atol=1e-8
    )
    assert torch.isfinite(x[name]).all()


def test_the_size_of_chunks_never_shows(tmp_path):
    """Also in the inner products; and 16-bit rows that only move stay 16 bits."""
    letters = [chr(0x4E00 + k) for k in range(3000)]
    a = bpe([(letters[k], letters[k + 1]) for k in range(0, 1500, 2)], letters=letters)
    b = bpe([(letters[k], letters[k + 1]) for k in range(1, 2500, 3)], letters=letters[::-1])
    llama(tmp_path / "a", a, 0, dtype=torch.bfloat16)
    llama(tmp_path / "b", b, 1, dtype=torch.bfloat16)
    text = f"""
merge_method: slerp
base_model: {tmp_path}/a
models: [{{model: {tmp_path}/b}}]
parameters: {{t: 0.3}}
tokenizer: {{source: union, pad_to_multiple_of: 128}}
"""
    large = merged(text, tmp_path / "large")
    small = merged(text, tmp_path / "small", memory="34MiB")
    assert all(torch.equal(large[name], small[name]) for name in large)
    assert cost(plan(text)[0], memory="34MiB").memory_bytes <= 34 << 20
    moved = plan(text.replace(", pad_to_multiple_of: 128", ""))[0]
    (tensor,) = (t for t in moved.tensors if t.name == "lm_head.weight")
    assert {stored.record.dtype for stored in tensor.stored} == {"BF16"}


def test_tied_embeddings_stay_tied_and_a_head_that_one_has_is_written(tmp_path):
    """A base without a stored head, while another model has one."""
    a = llama(tmp_path / "a", bpe(A), 0, tied=True)
    llama(tmp_path / "c", bpe(B), 2, tied=True)
    b = llama(tmp_path / "b", bpe(B), 1)
    tied = merged(recipe(tmp_path, "tokenizer_source: union", "ac"), tmp_path / "tied")
    assert "lm_head.weight" not in tied
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tied")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    out = merged(recipe(tmp_path, "tokenizer_source: union", "ab", base="a"), tmp_path / "out")
    ids, own, others = (tokens(tmp_path / m) for m in ("out", "a", "b"))
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    as_head = {head: a[embedding]}
    rows = [
        expected_rows(head, ids, (own, as_head), (others, b)),
        expected_rows(head, ids, (others, b), (own, as_head)),
    ]
    torch.testing.assert_close(out[head].double(), (rows[0] + rows[1]) / 2, rtol=1e-6, atol=1e-8)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.lm_head.weight, out[head])


def test_gpt2(tmp_path):
    a, b = gpt2(tmp_path / "a", bpe(A), 0), gpt2(tmp_path / "b", bpe(B), 1)
    out = merged(recipe(tmp_path, "tokenizer_source: union"), tmp_path / "out")
    ids, own, others = (tokens(tmp_path / m) for m in ("out", "a", "b"))
    name = "transformer.wte.weight"
    rows = [expected_rows(name, ids, (own, a), (others, b)),
            expected_rows(name, ids, (others, b), (own, a))]  # fmt: skip
    torch.testing.assert_close(out[name].double(), (rows[0] + rows[1]) / 2, rtol=1e-6, atol=1e-8)
    assert out["transformer.wpe.weight"].shape == (8, 16)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model(torch.tensor([[len(ids) - 1]])).logits.shape[-1] == len(ids)


def test_bert_with_the_bias_of_its_head(tmp_path):
    """Aliases and biases of the head move with the rows; token types and positions do not."""
    words = ["cat", "##s", "dog"], ["dog", "bird", "cat"]
    a, b = (
        bert(tmp_path / m, wordpiece(w), k)
        for k, (m, w) in enumerate(zip("ab", words, strict=True))
    )
    out = merged(recipe(tmp_path, "tokenizer_source: union"), tmp_path / "out")
    ids, own, others = (tokens(tmp_path / m) for m in ("out", "a", "b"))
    assert ids == own | {"bird": len(own)}
    bias = "cls.predictions.bias"
    assert out[bias].shape == (len(ids),)
    torch.testing.assert_close(out[bias][ids["bird"]], b[bias][others["bird"]])
    torch.testing.assert_close(
        out[bias][ids["dog"]], (a[bias][own["dog"]] + b[bias][others["dog"]]) / 2
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokenize("cats bird") == ["cat", "##s", "bird"]
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert model(torch.tensor([[ids["bird"]]])).logits.shape[-1] == len(ids)


def test_unigram(tmp_path):
    llama(tmp_path / "a", unigram(["ab", "a", "b"]), 0)
    llama(tmp_path / "b", unigram(["cd", "a", "c", "d"]), 1)
    merged(recipe(tmp_path, "tokenizer_source: union"), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokenize("abcd") == ["ab", "cd"]
    own = tokens(tmp_path / "a")
    assert {token: k for token, k in tokenizer.get_vocab().items() if token in own} == own


def test_ids_without_a_row_are_no_tokens(tmp_path):
    """Tokens added to a tokenizer whose model was not resized: the other model has them or none."""
    llama(tmp_path / "a", bpe(A, ("<s>", "<x>")), 0, rows=14)  # <x> is 14: no row
    b = llama(tmp_path / "b", bpe(A, ("<s>", "<x>")), 1)
    out = merged(recipe(tmp_path, "tokenizer_source: union", base="a"), tmp_path / "out")
    ids = tokens(tmp_path / "out")
    assert ids["<x>"] == 14
    name = "model.embed_tokens.weight"
    torch.testing.assert_close(out[name][14], b[name][14])
    based = merged(recipe(tmp_path, "tokenizer_source: base", base="a"), tmp_path / "based")
    assert len(based[name]) == 14
    assert "<x>" not in tokens(tmp_path / "based")


def test_rows_beyond_the_tokens_are_left_out(tmp_path):
    """Embeddings padded to different sizes, one tokenizer: no row is computed or changed."""
    a = llama(tmp_path / "a", bpe(A), 0, rows=16)
    llama(tmp_path / "b", bpe(A), 1, rows=24)
    found, _ = plan(recipe(tmp_path, "tokenizer_source: base", base="a"))
    assert not any(stored.derived for tensor in found.tensors for stored in tensor.stored)
    out = merged(recipe(tmp_path, "tokenizer_source: base", base="a"), tmp_path / "out")
    assert len(out["lm_head.weight"]) == len(tokens(tmp_path / "a")) == 15
    assert len(a["lm_head.weight"]) == 16
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("method", ["linear", "karcher"])
def test_sizes_that_differ_are_refused_with_the_way_out(pair, method):
    root = pair[0]
    with pytest.raises(RecipeError) as caught:
        plan(
            recipe(root, "", method=method).replace(
                "weight: 1", "" if method == "karcher" else "weight: 1"
            )
        )
    text = str(caught.value)
    assert "has 15 rows in" in text and "16 in" in text and "tokenizer_source: union" in text


def test_tokens_that_differ_without_a_key_are_warned_of(tmp_path):
    llama(tmp_path / "a", bpe(A), 0)
    llama(tmp_path / "b", bpe([*A[:2], ("e", "f")]), 1)
    _, problems = plan(recipe(tmp_path, ""))
    (warning,) = problems.warnings
    assert "2 tokens of" in warning and "tokenizer_source: union" in warning
    _, problems = plan(recipe(tmp_path, "tokenizer_source: union"))
    assert not problems.warnings


def test_special_ids_that_name_other_tokens_are_warned_of(pair, tmp_path):
    root = pair[0]
    for file, ids in (("config.json", 14), ("generation_config.json", [13, 14])):
        content = json.loads((root / "a" / file).read_text()) | {"eos_token_id": ids}
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / file).write_text(json.dumps(content))
    for file in (root / "a").iterdir():
        if not (tmp_path / "a" / file.name).exists():
            (tmp_path / "a" / file.name).write_bytes(file.read_bytes())
    text = recipe(root, f"tokenizer_source: {root}/b").replace(f"{root}/a", f"{tmp_path}/a")
    _, problems = plan(text)
    said = " ".join(problems.warnings)
    assert "r.yml: config.json" in said and "generation_config.json" in said
    assert said.count("eos_token_id 14 was '</s>'") == 2 and "it has no id" in said
    assert "eos_token_id 13" not in said  # both have <s> there
    union = recipe(root, "tokenizer_source: union").replace(f"{root}/a", f"{tmp_path}/a")
    assert not plan(union)[1].warnings


WRONG = {
    "tokenizer: {source: union, pad_to_multiple_of: 0}": "expected a number from 1",
    "tokenizer: {sauce: union}": "did you mean source",
    "tokenizer: 3": "expected a mapping with source",
    "tokenizer: {tokens: [a]}": "tokens: expected a mapping",
    "tokenizer: {tokens: {a: {source: {kind: other}}}}": "expected zero or model_token",
    "tokenizer: {tokens: {a: {source: {kind: model_token, model: M}}}}": "either token or token_id",
    "tokenizer: {tokens: {a: {source: {kind: model_token, model: M, token: q}}}}":
        "token 'a': M has no row for 'q'",
    "tokenizer: {tokens: {a: {source: {kind: model_token, model: M, token_id: 99}}}}":
        "has no row for 99",
    "tokenizer: {tokens: {a: {source: N}}}": "no such file",
    "tokenizer: {tokens: {a: {force: 3}}}": "force: expected true or false",
    "tokenizer_source: N": "no such file",
    "tokenizer_source: union\ntokenizer: {source: base}": "not both",
}  # fmt: skip


@pytest.mark.parametrize("key", WRONG)
def test_wrong_keys(pair, key):
    root = pair[0]
    text = recipe(root, key.replace("M", f"{root}/b").replace("N", f"{root}/nothing"))
    with pytest.raises(
        RecipeError, match="r.yml:[56]: .*" + WRONG[key].replace("M ", f"{root}/b ")
    ):
        plan(text, strict=True)


def test_a_model_without_a_tokenizer_is_named(pair, tmp_path):
    root = pair[0]
    (tmp_path / "a").mkdir()
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "a" / file).write_bytes((root / "a" / file).read_bytes())
    text = recipe(root, "tokenizer_source: union").replace(f"{root}/a", f"{tmp_path}/a")
    with pytest.raises(RecipeError, match=f"{tmp_path}/a: has no tokenizer"):
        plan(text)


def test_older_tokenizer_files_are_read_through_transformers(pair, tmp_path):
    bert(tmp_path / "a", wordpiece(["cat", "dog"]), 0)
    bert(tmp_path / "b", wordpiece(["dog", "bird"]), 1)
    words = tokens(tmp_path / "a")
    (tmp_path / "a/tokenizer.json").unlink()
    settings = {"tokenizer_class": "BertTokenizer"}
    (tmp_path / "a/tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "a/vocab.txt").write_text("\n".join(sorted(words, key=words.__getitem__)) + "\n")
    merged(recipe(tmp_path, "tokenizer_source: union"), tmp_path / "out")
    assert tokens(tmp_path / "out") == words | {"bird": len(words)}
    assert not (tmp_path / "out/vocab.txt").exists()


@pytest.mark.parametrize("key", ["", "tokenizer_source: union", "tokenizer_source: B",
                                 "chat_template: chatml"])  # fmt: skip
def test_other_files_survive_every_setting(pair, tmp_path, key):
    root = pair[0]
    names = [
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "extra.py",
    ]
    for m in "ab":
        (tmp_path / m).mkdir()
        for file in (root / ("b" if key in ("", "chat_template: chatml") else m)).iterdir():
            (tmp_path / m / file.name).write_bytes(file.read_bytes())
        for name in names:
            (tmp_path / m / name).write_text(json.dumps({"of": m}))
    merged(recipe(tmp_path, key.replace("B", f"{tmp_path}/b")), tmp_path / "out")
    for name in names:
        assert json.loads((tmp_path / "out" / name).read_text()) == {"of": "a"}


def test_the_order_of_tokens_does_not_depend_on_hashing(pair, tmp_path):
    root = pair[0]
    (tmp_path / "r.yml").write_text(recipe(root, "tokenizer_source: union\nchat_template: auto"))
    outs = []
    for seed in "12":
        out = tmp_path / seed / "out"
        done = subprocess.run(
            [sys.executable, "-m", "wspace", "merge", tmp_path / "r.yml", "-o", out, "--quiet"],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        outs.append({f.name: f.read_bytes() for f in sorted(out.iterdir())})
    assert outs[0].keys() == outs[1].keys()
    assert [name for name, content in outs[0].items() if content != outs[1][name]] == []
    assert load(tmp_path / "1/out").keys() == load(root / "a").keys()


def test_a_tokenizer_alone_can_be_the_source(pair, tmp_path):
    """Its folder must be a model's: an error otherwise, not a guess."""
    root = pair[0]
    save_tokenizer(tmp_path / "t", bpe(B))
    with pytest.raises(RecipeError, match=r"r.yml:5: .*expected model.safetensors"):
        plan(recipe(root, f"tokenizer_source: {tmp_path}/t"))
