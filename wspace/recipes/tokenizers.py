"""Tokenizers as their files say: tokens and their ids, and ``tokenizer.json`` to edit.

``tokenizer.json`` is read as JSON: no library is needed for it. Models that have only the files of
older tokenizers are read through transformers, where that is installed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from wspace.errors import CheckpointError
from wspace.storage.opening import read_object, read_text

FILE = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
OLDER = (
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model", "added_tokens.json", "tokenizer.tiktoken",
)  # fmt: skip
"""Files that say the same as ``tokenizer.json``, and that are wrong once it is edited."""

_MORE = ("special_tokens_map.json", "chat_template.jinja", FILE, SETTINGS)

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class Tokenizer:
    """One model's tokenizer."""

    folder: Path
    content: Mapping[str, Any]  # tokenizer.json
    settings: Mapping[str, Any]  # tokenizer_config.json

    @cached_property
    def added(self) -> dict[str, dict[str, Any]]:
        """Added tokens with their flags, by their text."""
        entries = [entry for entry in self.content.get("added_tokens") or [] if _is_token(entry)]
        decoder = self.settings.get("added_tokens_decoder")
        for number, entry in (decoder if isinstance(decoder, dict) else {}).items():
            if isinstance(entry, dict) and str(number).isdecimal():
                entries.append({**entry, "id": int(number)})
        found: dict[str, dict[str, Any]] = {}
        for entry in entries:
            if _is_token(entry):
                found.setdefault(entry["content"], entry)
        return found

    @cached_property
    def ids(self) -> dict[str, int]:
        """Every token and its id."""
        vocabulary = self.content["model"].get("vocab")
        if isinstance(vocabulary, list):
            ids = {str(piece[0]): number for number, piece in enumerate(vocabulary)}
        else:
            ids = {str(k): v for k, v in (vocabulary or {}).items() if type(v) is int}
        return ids | {text: entry["id"] for text, entry in self.added.items()}

    @property
    def kind(self) -> str:
        """BPE, WordPiece, Unigram or WordLevel."""
        model = self.content["model"]
        if isinstance(model.get("vocab"), list):
            return "Unigram"
        return str(model.get("type") or ("BPE" if "merges" in model else "WordPiece"))

    @property
    def merges(self) -> list[tuple[str, str]]:
        found = []
        for merge in self.content["model"].get("merges") or []:
            pair = merge.split(" ") if isinstance(merge, str) else merge
            if len(pair) == 2:
                found.append((str(pair[0]), str(pair[1])))
        return found


def is_of_tokenizer(name: str) -> bool:
    """Whether a file of this name belongs to a model's tokenizer."""
    return name in OLDER or name in _MORE or name.endswith(".tiktoken")


def _is_token(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("content"), str)
        and type(entry.get("id")) is int
    )


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model's folder. Raises CheckpointError."""
    file = folder / FILE
    try:
        content = json.loads(read_text(file) if file.is_file() else _converted(folder))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(f"{file}: expected a tokenizer in JSON, with a model")
    return Tokenizer(folder, content, read_json(folder / SETTINGS))


def read_json(file: Path) -> dict[str, Any]:
    """An object of a file; empty if there is none that can be read."""
    return read_object(file) or {}


def _converted(folder: Path) -> str:
    """What would be in ``tokenizer.json``, from a tokenizer's older files."""
    if not any((folder / name).is_file() for name in OLDER):
        raise CheckpointError(f"{folder}: has no tokenizer: expected {FILE}")
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise CheckpointError(
            f"{folder}: has no {FILE}; to read its older tokenizer files, install transformers"
        ) from None
    try:
        return AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str()
    except Exception as error:  # transformers raises many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise CheckpointError(
            f"{folder}: has no {FILE}, and transformers cannot make one of its files: {reason}"
        ) from None


def with_tokens(
    owner: Tokenizer, tokens: Mapping[str, int], others: Iterable[Tokenizer]
) -> dict[str, str]:
    """Files of a tokenizer like ``owner`` with exactly these tokens: name -> text.

    Tokens that are added ones somewhere keep the flags of the first that has them; the others join
    the model's own vocabulary, with the merges (BPE) or scores (Unigram) that their tokenizers have
    for them, after ``owner``'s. A token that no tokenizer has becomes an added one.
    """
    content = copy.deepcopy(dict(owner.content))
    donors = (owner, *others)
    added: dict[str, dict[str, Any]] = {}
    for donor in donors:
        for text, entry in donor.added.items():
            if text in tokens:
                added.setdefault(text, entry)
    for text in tokens:
        if text not in added and not any(text in donor.ids for donor in donors):
            added[text] = {"special": False, "normalized": False}
    entries = []
    for text in sorted(added, key=lambda text: tokens[text]):
        flags = {flag: bool(added[text].get(flag, False)) for flag in FLAGS}
        entries.append({"id": tokens[text], "content": text, **flags})
    content["added_tokens"] = entries
    # all tokens, the added ones too: their ids then do not depend on how many others there are
    model = content["model"]
    if owner.kind == "Unigram":
        model["vocab"] = _pieces(owner, tokens, donors)
    else:
        model["vocab"] = dict(sorted(tokens.items(), key=lambda item: item[1]))
    if owner.kind == "BPE":
        pairs = _merges(owner, tokens, donors)
        given = owner.content["model"].get("merges") or []
        as_text = bool(given) and isinstance(given[0], str)
        model["merges"] = [" ".join(p) for p in pairs] if as_text else [list(p) for p in pairs]
    files = {FILE: json.dumps(content, ensure_ascii=False) + "\n"}
    if owner.settings:
        settings = dict(owner.settings)
        if "added_tokens_decoder" in settings:
            settings["added_tokens_decoder"] = {
                str(e["id"]): {"content": e["content"], **{f: e[f] for f in FLAGS}} for e in entries
            }
        files[SETTINGS] = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    return files


def _pieces(
    owner: Tokenizer, tokens: Mapping[str, int], donors: Iterable[Tokenizer]
) -> list[list[Any]]:
    scores: dict[str, float] = {}
    for donor in donors:
        if donor.kind == "Unigram":
            for text, score in donor.content["model"]["vocab"]:
                scores.setdefault(text, score)
    least = min(scores.values(), default=0.0) - 10
    pieces: list[list[Any]] = [
        [f"<|no token {number}|>", least] for number in range(max(tokens.values(), default=-1) + 1)
    ]
    for text, number in tokens.items():
        pieces[number] = [text, scores.get(text, least)]
    return pieces


def _merges(
    owner: Tokenizer, tokens: Mapping[str, int], donors: Iterable[Tokenizer]
) -> list[tuple[str, str]]:
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    own = [owner.content["model"].get(key) or "" for key in affixes]
    found: dict[tuple[str, str], None] = {}
    for donor in donors:
        model = donor.content["model"]
        if donor.kind != "BPE" or [model.get(key) or "" for key in affixes] != own:
            continue
        for first, second in donor.merges:
            made = first + second.removeprefix(own[0])
            if first in tokens and second in tokens and made in tokens:
                found.setdefault((first, second))
    return list(found)
