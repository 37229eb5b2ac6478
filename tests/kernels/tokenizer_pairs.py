"""Vocabularies for the tests of alignment: written by hand, and tokenizers trained on mixed text."""

from __future__ import annotations

import functools
import json
import random

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sod_kernels import TokenBytes, VocabMap

EOS = "<|end|>"
_WORDS = [
    "the",
    "sum",
    "of",
    "all",
    "numbers",
    "is",
    "larger",
    "than",
    "a",
    "product",
    "return",
    "value",
    "def",
    "print",
    "for",
    "in",
    "range",
    "lambda",
]
_CHINESE = "计算所有数字的和并返回结果今天天气很好"
_EMOJI = ["🙂", "👩‍👩‍👧", "🇫🇷", "✨", "e\u0301", "ß", "żółw", "\u2581", "\u00a0"]


def mixed_texts(count: int, seed: int) -> list[str]:
    """Lines of words, code, digits, Chinese and emoji, the same for the same seed."""
    chance = random.Random(seed)
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(chance.randint(1, 14)):
            kind = chance.randrange(6)
            if kind == 0:
                parts.append(str(chance.randrange(10 ** chance.randint(1, 9))))
            elif kind == 1:
                parts.append("".join(chance.choices(_CHINESE, k=chance.randint(1, 6))))
            elif kind == 2:
                parts.append(chance.choice(_EMOJI))
            elif kind == 3:
                parts.append(chance.choice(["\n", "\n    ", "\t", "  ", " = ", "(x[0]);", "{}\r\n"]))
            else:
                parts.append(chance.choice(["", " "]) + chance.choice(_WORDS))
        texts.append("".join(parts))
    return texts


@functools.cache
def byte_level(vocab_size: int, *, splits_digits: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with an end token and one more control token, and an added token of ordinary text."""
    tokenizer = Tokenizer(models.BPE())
    parts = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if splits_digits:
        parts.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, f"<|pad{vocab_size}|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(mixed_texts(400, seed=1), trainer=trainer)
    tokenizer.add_tokens(["<tool_call>", "é▁"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, clean_up_tokenization_spaces=False
    )


@functools.cache
def sentence_pieces(*, prepends: bool = False) -> PreTrainedTokenizerFast:
    """Unigram model with spaces as U+2581 and byte fallback; `prepends` puts a space before each text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    trainer = trainers.UnigramTrainer(
        vocab_size=500, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    # Without Chinese: its characters come as bytes.
    tokenizer.train_from_iterator(
        [text for text in mixed_texts(400, seed=2) if text.isascii()], trainer=trainer
    )
    described = json.loads(tokenizer.to_str())
    described["model"]["vocab"] += [[f"<0x{byte:02X}>", -30.0] for byte in range(256)]
    described["model"]["byte_fallback"] = True
    tokenizer = Tokenizer.from_str(json.dumps(described))
    # The mark itself must stay one: it would come back as a space.
    tokenizer.normalizer = normalizers.Replace(Regex("\u2581"), " ")
    parts = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prepends:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
        parts.append(decoders.Strip(content=" ", left=1, right=0))
    tokenizer.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )


@functools.cache
def sentence_merges() -> PreTrainedTokenizerFast:
    """BPE with spaces as U+2581, byte fallback, like Gemma's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    spelled_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=["<unk>", "<eos>", *spelled_bytes], show_progress=False
    )
    # Without Chinese: its characters come as bytes.
    tokenizer.train_from_iterator(
        [text for text in mixed_texts(400, seed=9) if text.isascii()], trainer=trainer
    )
    described = json.loads(tokenizer.to_str())
    # The byte tokens belong to the model alone.
    described["added_tokens"] = described["added_tokens"][:2]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Ids of a text without special tokens."""
    return tokenizer.encode(text, add_special_tokens=False)


def table(*tokens: str | bytes, **options) -> TokenBytes:
    """A vocabulary by hand; a string that begins with "<" is a control token, "<eos>" ends a sequence."""
    names = {i: token for i, token in enumerate(tokens) if isinstance(token, str) and token.startswith("<")}
    spelled = tuple(
        None if i in names else token.encode() if isinstance(token, str) else token
        for i, token in enumerate(tokens)
    )
    eos = next((i for i, name in names.items() if name == "<eos>"), None)
    return TokenBytes(spelled=spelled, names=names, eos_id=eos, **options)


def worked_map() -> VocabMap:
    """The pair of vocabularies of the worked example in docs/simct.md."""
    return VocabMap.from_tokenizers(
        table("4", "2", "+", "7", "<eos>"), table("<eos>", "+", "42", "2", "4", "x")
    )


def by_hand(student: list[str], teacher: list[str], *, student_has=False, teacher_has=False):
    """Ids and map of two texts given token by token; all controls of equal name mean each other."""
    student_table = table(*dict.fromkeys(student), has_prefix_space=student_has)
    teacher_table = table(*dict.fromkeys(teacher), has_prefix_space=teacher_has)
    both = sorted(set(student_table.names.values()) & set(teacher_table.names.values()))
    # Something is always shared, whatever the texts are.
    student_table, teacher_table = (
        TokenBytes(
            spelled=(*each.spelled, b"shared"),
            names=each.names,
            has_prefix_space=each.has_prefix_space,
        )
        for each in (student_table, teacher_table)
    )
    vocab_map = VocabMap.from_tokenizers(student_table, teacher_table, bridge=[(name, name) for name in both])
    ids = [[list(dict.fromkeys(side)).index(token) for token in side] for side in (student, teacher)]
    return ids[0], ids[1], vocab_map
