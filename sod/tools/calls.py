"""What the parser hands to the runner: calls, and what it could not read."""

from __future__ import annotations

from dataclasses import dataclass

from sod.types import ToolCall


@dataclass(frozen=True, kw_only=True)
class ParseFailure:
    """A tool call that the student wrote and nobody can read.

    It goes back to the model as text and is never turned into a call with empty arguments.

    Attributes:
        text: The call as the student wrote it.
        reason: Why it could not be read, in words that the model can act on.
    """

    text: str
    reason: str


Call = ToolCall | ParseFailure
"""What a turn asks for."""
