"""A complete tiny checkpoint, made on the spot: for tests, demos and first experiments without a download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sod.chat_templates import HERMES_TEMPLATE

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
_CORPUS = (
    "system\nuser\nassistant\nYou can call these functions. Each line is one JSON description:\n"
    "<tools>\n</tools>",
    "Write each call as a JSON object with its name and arguments, between tags:",
    '{"name": "python", "arguments": {"code": "print(12 + 34)"}}',
    '{"type": "function", "function": {"name": "python", "description": "Run code and return what '
    'it prints.", '
    '"parameters": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]}}}',
    "What is 17 plus 25? The answer is 42. error: the call is not valid JSON at character 7",
)


def make_tiny_tokenizer(
    *, chat_template: str = HERMES_TEMPLATE, vocab_size: int = 512, texts: Sequence[str] = ()
) -> Any:
    """Train a byte-level BPE tokenizer with chat, tool and thinking tokens.

    Args:
        chat_template: The template that it carries.
        vocab_size: Most tokens it may have, at least 265 (bytes, special tokens and tags).
        texts: What it shall write in few tokens, beside a few sentences about tools.

    Returns:
        A `transformers.PreTrainedTokenizerFast`; the same one for the same arguments.

    Raises:
        ValueError: The vocabulary cannot hold bytes, special tokens and tags.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    smallest = 256 + len(_SPECIAL) + len(_TAGS)
    if vocab_size < smallest:
        raise ValueError(f"make_tiny_tokenizer: vocab_size must be {smallest} or more, got {vocab_size}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(_TAGS),
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*_CORPUS * 4, *texts], trainer=trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in _TAGS])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=_SPECIAL[2],
        pad_token=_SPECIAL[0],
        clean_up_tokenization_spaces=False,
        chat_template=chat_template,
    )


def make_tiny_checkpoint(
    path: str | Path, *, hidden_size: int = 64, num_layers: int = 2, seed: int = 0, vocab_size: int = 512
) -> Path:
    """Write a random Qwen3-architecture model and its tokenizer in Hugging Face form.

    Args:
        path: Folder to write to; made where absent.
        hidden_size: Width, a multiple of 32.
        num_layers: Decoder layers.
        seed: Of the random weights; the global generator of torch is left as it was.
        vocab_size: Rows of the embedding, at least 265. The tokenizer may use fewer, as those of real
            checkpoints do.

    Returns:
        The folder, loadable by `AutoModelForCausalLM` and `AutoTokenizer`.

    Raises:
        ValueError: `hidden_size` is no multiple of 32, or the vocabulary is too small.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    if hidden_size < 32 or hidden_size % 32:
        raise ValueError(f"make_tiny_checkpoint: hidden_size must be a multiple of 32, got {hidden_size}.")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tiny_tokenizer(vocab_size=vocab_size)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=hidden_size // 16,
        num_key_value_heads=hidden_size // 32,
        head_dim=16,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
