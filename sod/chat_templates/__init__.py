"""Chat templates that write the token layout of a model family and only ever append, by name.

The layout (special tokens, headers, roles, line breaks, what ends a turn) is the family's; the words that
introduce tools are ours, and a default system message is never added. Many templates of checkpoints drop
earlier thinking, or an empty thinking block, when a later message arrives. Rolled out turn by turn, such a
model would be trained on conversations that it never sees in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType
from typing import Literal

TemplateName = Literal["plain", "hermes", "qwen2.5", "qwen3", "qwen3-strip", "llama3", "gemma", "phi4"]
"""What `[student] chat_template` may name besides "own"."""

_CHATML = ("<|im_start|>", "<|im_end|>")
_LLAMA = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


@dataclass(frozen=True, kw_only=True)
class NamedTemplate:
    """A template and what it asks of a tokenizer.

    Attributes:
        name: As in `TEMPLATES`.
        text: Jinja source.
        markers: Texts that the tokenizer must hold as one token each, or the model would read a layout that
            it never saw.
    """

    name: TemplateName
    text: str
    markers: tuple[str, ...]


def _named(name: TemplateName, file: str, markers: tuple[str, ...]) -> NamedTemplate:
    text = files("sod.chat_templates").joinpath(f"{file}.jinja").read_text(encoding="utf-8")
    return NamedTemplate(name=name, text=text, markers=markers)


TEMPLATES: Mapping[TemplateName, NamedTemplate] = MappingProxyType(
    {
        template.name: template
        for template in (
            # Roles in words; nothing special but the end-of-sequence token, for base models.
            _named("plain", "plain", ()),
            # Qwen-style turns with hermes calls; thinking stays in the history, and enable_thinking=False
            # puts the same empty block before every assistant turn, earlier ones included.
            _named("hermes", "hermes", _CHATML),
            _named("qwen2.5", "qwen2_5", _CHATML),
            _named("qwen3", "hermes", _CHATML),
            # As Qwen3 is published: thinking before the last user message is dropped, which needs
            # [student] history_rewrites = "fork" where users speak again.
            _named("qwen3-strip", "qwen3_strip", _CHATML),
            _named("llama3", "llama3", _LLAMA),
            # The family has no system or tool role: both are written into user turns.
            _named("gemma", "gemma", ("<bos>", "<start_of_turn>", "<end_of_turn>")),
            _named("phi4", "phi4", (*_CHATML, "<|im_sep|>")),
        )
    }
)
"""Every named template."""

HERMES_TEMPLATE = TEMPLATES["hermes"].text
"""Jinja source of "hermes"."""
