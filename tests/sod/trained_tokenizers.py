"""Tokenizers trained on the spot with every family's special tokens: byte-level and SentencePiece-like."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = (
    "<unk>",
    "<|endoftext|>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|im_sep|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
)
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
CORPUS = (
    "system:\nuser:\nassistant:\n\nmodel You can call these functions. Each line is one JSON description:\n",
    '{"name": "add", "arguments": {"a": 12, "b": 34}} {"name": "add", "parameters": {"a": 5, "b": -6}}',
    "To call one, let the whole answer be a JSON object; put a semicolon between several:\n",
    "What is 17 plus 25? The answer is 42, I think. Let me see... naïve café, 你好, 🙂 déjà vu\n\n\n",
    "def add(a, b):\n    return a + b\n",
)


@cache
def byte_level():
    """As Qwen's and Llama 3's: every byte is a character, so nothing is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer=trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in TAGS])
    return tokenizer


@cache
def sentencepiece_like():
    """As Llama 2's and Gemma's: spaces are characters, a text gets one in front, bytes are a last resort."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)
    # Without the last characters of the corpus, which are then spelt in bytes.
    trained.train_from_iterator(
        [text.replace("🙂", "").replace("好", "") for text in CORPUS] * 4, trainer=trainer
    )
    model = json.loads(trained.to_str())["model"]
    vocab = dict(model["vocab"])
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return tokenizer


KINDS = {"byte_level": byte_level, "sentencepiece_like": sentencepiece_like}
EOS = {"plain": "</s>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}


def trained_tokenizer(kind, template_name="hermes", **options):
    """A tokenizer whose end-of-sequence token is that of a template's family."""
    return PreTrainedTokenizerFast(
        tokenizer_object=KINDS[kind](),
        eos_token=EOS.get(template_name, "<|im_end|>"),
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        **{"clean_up_tokenization_spaces": False, **options},
    )
