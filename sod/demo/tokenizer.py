"""A tokenizer trained on the spot for the ledger world, with a chat template of its own.

Byte-level BPE, so any text can be written and read. Item, field and tool names and single digits are split
off before merging: a name is one and the same token in a question, a call and an observation, and a number is
its digits, which is what lets a very small model copy both. All other boilerplate merges into long tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sod.envs.ledger import FIELDS, ITEMS, ledger_question
from sod.envs.ledger_expert import expert_turns

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'tool' -%}"
    "{{ '<tool_response>' + message['content'] + '</tool_response>' }}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{ message['content'] or '' }}"
    "{%- for call in message['tool_calls'] or [] -%}"
    "{%- set call = call['function'] if 'function' in call else call -%}"
    "{{ '<tool_call>{\"name\": \"' + call['name'] + '\", \"arguments\": ' }}"
    "{{ call['arguments'] if call['arguments'] is string else call['arguments'] | tojson }}"
    "{{ '}</tool_call>' }}"
    "{%- endfor -%}"
    "{%- if not message['tool_calls'] and not (message['content'] or '').endswith('</tool_call>') -%}"
    "{{ '<|im_end|>' }}"
    "{%- endif -%}"
    "{%- else -%}"
    "{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
)
"""Lean on purpose: no header before an assistant turn, so every token of a trajectory carries something."""

_PAD = "<|pad|>"
_END = "<|im_end|>"
_SPECIAL = (_PAD, "<|im_start|>", _END)
_MARKERS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_TOOL_NAMES = ("lookup", "python")
_NAME_REPEATS = 2000
_NUM_QUESTIONS = 600
_ERRORS = (
    "error: LookupError: no field cost",
    "error: invalid_json",
    "error: bad_args",
    "error: unknown_tool",
    "error: SyntaxError: invalid syntax",
    "error: NameError: name 'lamp' is not defined",
    "error: ZeroDivisionError: integer division or mo",
)
_QUESTION_SEED = 77


def train_tokenizer(texts: Iterable[str], *, vocab_size: int = 640) -> PreTrainedTokenizerFast:
    """Trains the tokenizer on example conversations.

    Args:
        texts: Rendered conversations; markers in them are cut out, since they are tokens already.
        vocab_size: Number of tokens. 256 of them are the byte alphabet; with fewer than about
            550 item names fall apart.

    Returns:
        A Hugging Face tokenizer with pad and end tokens and the chat template.

    Raises:
        ValueError: If an item name did not become one token.
    """
    names = "|".join((*ITEMS, *FIELDS, *_TOOL_NAMES))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rf"\b({names})\b|[-0-9]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(text, normalized=False) for text in (*_SPECIAL, *_MARKERS)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_pieces(texts), trainer=trainer)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=_PAD, eos_token=_END, clean_up_tokenization_spaces=False
    )
    fast.chat_template = CHAT_TEMPLATE
    broken = [item for item in ITEMS if len(fast.encode(item, add_special_tokens=False)) != 1]
    if broken:
        raise ValueError(
            f"train_tokenizer: vocab_size={vocab_size} leaves no single token for {', '.join(broken[:3])}"
            f" and {max(len(broken) - 3, 0)} more item names; ask for a larger vocabulary, such as 640."
        )
    return fast


def ledger_tokenizer(vocab_size: int = 640) -> PreTrainedTokenizerFast:
    """Trains the tokenizer on the expert's turns and the observations that could follow them.

    Args:
        vocab_size: Number of tokens.

    Returns:
        The tokenizer; the same one whatever the demo's seed.
    """
    return train_tokenizer(ledger_texts(), vocab_size=vocab_size)


def ledger_texts() -> list[str]:
    """Write questions, expert turns and errors of the ledger world, the same whatever the demo's seed."""
    texts = []
    for index in range(_NUM_QUESTIONS):
        question = ledger_question(_QUESTION_SEED, index)
        turns = expert_turns(question, seed=index, error_rate=0.2)
        texts += [question.text, *(turn.text for turn in turns)]
        texts += [f"error: LookupError: no item {question.amounts[0].item}", *_ERRORS]
    return texts


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    markers = re.compile("|".join(re.escape(marker) for marker in (*_SPECIAL, *_MARKERS)))
    for text in texts:
        yield from (piece for piece in markers.split(text) if piece)
    # Names must win a place in the vocabulary even where the examples use them seldom.
    for name in (*ITEMS, *FIELDS, *_TOOL_NAMES):
        yield from [name] * _NAME_REPEATS
