"""Small real tokenizers, and real models with them."""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

LETTERS = "abcdefghij"


def bpe(merges, added=("<s>", "</s>"), letters=LETTERS):
    """Letters, then what the merges make, then added tokens."""
    vocabulary = {letter: k for k, letter in enumerate(letters)}
    for first, second in merges:
        vocabulary.setdefault(first + second, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in added])
    return tokenizer


def wordpiece(words):
    vocabulary = {
        w: k for k, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


def unigram(pieces):
    scored = [("<unk>", 0.0), *((p, -1.0 - k / 10) for k, p in enumerate(pieces))]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def save_tokenizer(folder, tokenizer, **settings):
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings).save_pretrained(folder)


def llama(folder, tokenizer, seed, *, rows=None, tied=False, dtype=torch.float32, **settings):
    """A Llama of two layers; returns its state."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=rows or tokenizer.get_vocab_size(),
        tie_word_embeddings=tied, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(folder)
    save_tokenizer(folder, tokenizer, **settings)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def gpt2(folder, tokenizer, seed):
    torch.manual_seed(seed)
    config = GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=8, vocab_size=tokenizer.get_vocab_size(),
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    save_tokenizer(folder, tokenizer)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def bert(folder, tokenizer, seed):
    torch.manual_seed(seed)
    config = BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        vocab_size=tokenizer.get_vocab_size(), max_position_embeddings=8,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    with torch.no_grad():
        model.cls.predictions.bias.normal_()
    model.save_pretrained(folder)
    save_tokenizer(folder, tokenizer, unk_token="[UNK]")
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
