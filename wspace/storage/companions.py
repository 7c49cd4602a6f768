"""The small files beside a model's weights, as an output has them."""

from __future__ import annotations

import json
from pathlib import Path

from wspace.storage.checkpoints import SMALL_FILES, Checkpoint
from wspace.storage.opening import read_object


def companions(checkpoint: Checkpoint) -> list[Path]:
    """The config, tokenizer and other small files beside the weights."""
    folder = checkpoint.folder
    files = {file for pattern in SMALL_FILES for file in folder.glob(pattern)}
    if not checkpoint.path.is_dir():
        # a weight file in a folder of other things: only what bears a model's names
        files = {file for file in files if (folder / "config.json").is_file()}
    unwanted = ("wspace.json",)
    return sorted(
        file
        for file in files
        if file.is_file() and file.name not in unwanted and not file.name.endswith(".index.json")
    )


def mend_config(config: Path, dtype: str | None) -> None:
    """Name the type that the weights have; they are not quantised, whatever the donor's were."""
    settings = read_object(config)
    if settings is None:
        return  # not ours to mend
    named = {key: dtype for key in ("dtype", "torch_dtype") if dtype and key in settings}
    mended = {key: value for key, value in settings.items() if key != "quantization_config"} | named
    if mended != settings:
        write_json(config, mended)


def write_json(path: Path, content: dict) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # a file name that is not UTF-8 has characters that only JSON's own escapes can hold
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
