"""A BERT of a few thousand weights on disk, and data sets that it learns in seconds."""

import json
import random

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{k}" for k in range(60))]


def save_base(folder, *, seed=0, hidden=32):
    """A folder as transformers saves it: two layers, and a tokenizer of one token a word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=hidden, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=2 * hidden, max_position_embeddings=32,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def rows_of(name, split, n, *, classes=2, pair=False):
    """Rows whose label is which of some words, other ones for each data set, occurs in the text."""
    draw = random.Random(f"{name} {split}")
    words = random.Random(name).sample(WORDS[4:], 3 * classes)
    found = []
    for k in range(n):
        label = k % classes
        text = [*draw.choices(WORDS[4:], k=4), draw.choice(words[3 * label :][:3])]
        draw.shuffle(text)
        row = {"text": " ".join(text), "label": label}
        found.append(row | ({"text_pair": draw.choice(WORDS[4:])} if pair else {}))
    return found


def save_data(root, families, *, n=48, classes=2, pair=()):
    """A folder for each data set of ``families`` (name -> family): train, validation, test."""
    for name, family in families.items():
        folder = root / name
        folder.mkdir(parents=True)
        for split, count in (("train", n), ("validation", n // 2), ("test", n // 2)):
            rows = rows_of(name, split, count, classes=classes, pair=name in pair)
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        labels = [f"label {k}" for k in range(classes)]
        described = {"labels": labels, "family": family}
        (folder / "dataset.json").write_text(json.dumps(described))
    return root
