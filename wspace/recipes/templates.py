"""Chat templates: built-in ones, and those that models have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from wspace.recipes.tokenizers import SETTINGS, read_json
from wspace.storage.opening import read_text

FILE = "chat_template.jinja"
_OF_PROCESSOR = "chat_template.json"

_ALPACA = """\
{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}\
{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}\
{% elif message['role'] == 'assistant' %}\
{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}\
{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"""

_CHATML = """\
{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

_EXAONE = """\
{% if messages and messages[0]['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}\
{% for message in messages %}{{ '[|' + message['role'] + '|]' + message['content'] }}\
{% if message['role'] == 'user' %}{{ '\\n' }}{% else %}{{ '[|endofturn|]\\n' }}{% endif %}\
{% endfor %}{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"""

_LLAMA3 = """\
{{ bos_token }}{% for message in messages %}\
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}\
{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}\
{% if add_generation_prompt %}\
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

_MISTRAL = """\
{{ bos_token }}{% if messages and messages[0]['role'] == 'system' %}\
{% set system = messages[0]['content'] + '\\n\\n' %}{% set turns = messages[1:] %}\
{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}\
{% for message in turns %}\
{% if message['role'] == 'user' %}\
{{ '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}\
{% endif %}{% endfor %}"""

BUILT_IN = {
    "alpaca": _ALPACA, "chatml": _CHATML, "exaone": _EXAONE, "llama3": _LLAMA3,
    "mistral": _MISTRAL,
}  # fmt: skip


def template_of(folder: Path) -> str | None:
    """The default template of a model's folder."""
    file = folder / FILE
    if file.is_file():
        try:
            return read_text(file)
        except (OSError, UnicodeDecodeError):
            return None
    found = read_json(folder / SETTINGS).get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def most_frequent(folders: Sequence[Path]) -> str | None:
    """The template that most of the models have; of equally many, the first seen."""
    counts: dict[str, int] = {}
    for folder in folders:
        template = template_of(folder)
        if template is not None:
            counts[template] = counts.get(template, 0) + 1
    return max(counts, key=counts.__getitem__) if counts else None


def with_template(folder: Path, template: str, edited: Mapping[str, str | None]) -> dict[str, str]:
    """The files of a tokenizer's folder that change with its template: name -> text.

    ``edited``: files that differ from the folder's already.
    """
    files = {FILE: template}
    text = edited.get(SETTINGS)
    settings = json.loads(text) if text else read_json(folder / SETTINGS)
    if "chat_template" in settings:
        settings["chat_template"] = template
        files[SETTINGS] = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    if (folder / _OF_PROCESSOR).is_file():
        content = read_json(folder / _OF_PROCESSOR) | {"chat_template": template}
        files[_OF_PROCESSOR] = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    return files


def wrong_literal(text: str) -> str | None:
    """Why a text is neither a template nor the name of one."""
    if len(text) >= 20 and "{" in text:
        return None
    known = ", ".join(("auto", *BUILT_IN))
    return f"chat_template {text[:60]!r}: expected {known}, or the text of a Jinja template"
