"""What the renderer's proofs say when they fail."""

from __future__ import annotations

from collections.abc import Sequence

from sod.errors import TemplateError
from sod.types import Message

ADVICE = (
    'Set [student] chat_template = "hermes", or pass chat_template=sod.chat_templates.HERMES_TEMPLATE '
    "or a template of your own that only appends."
)
FORK_ADVICE = 'Or declare that a new sequence begins there: history_rewrites = "fork".'


def changed(messages: Sequence[Message], index: int, earlier: str, later: str) -> TemplateError:
    """Make the error for a message that changes what was written before it.

    Args:
        messages: The conversation.
        index: The message to blame.
        earlier: What the template wrote before that message came.
        later: What it writes now.

    Returns:
        The error, to be raised.
    """
    return TemplateError(
        f"ChatRenderer: message {index} (role {messages[index]['role']!r}) changes what the chat template "
        f"wrote before it: {divergence(earlier, later)}. {ADVICE} {FORK_ADVICE}"
    )


def divergence(earlier: str, later: str) -> str:
    """Quote two texts around the first character in which they differ."""
    pairs = zip(earlier, later, strict=False)
    start = next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(earlier), len(later)))
    begin = max(0, start - 20)
    return f"{earlier[begin : start + 40]!r} became {later[begin : start + 40]!r}"
