"""Calls as Markdown code: every block between ```python and ``` is one call of the tool `python`."""

from __future__ import annotations

import re

from sod.parsing.turn import ParsedTurn, split_thought
from sod.tools.calls import ParseFailure
from sod.types import ToolCall

TOOL = "python"
ARGUMENT = "code"

_LANGUAGES = ("python", "py")

# Blocks of any language, so that a fence within one of another opens nothing. The fences stand at the
# beginning of a line; a block without an end runs to the end of the turn.
_BLOCK = re.compile(r"^```([^\n`]*)\n(.*?)(^```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)


def parse_fences(text: str, *, starts_in_thought: bool = False) -> ParsedTurn:
    """Split one assistant turn into its content and its blocks of Python code.

    Blocks of another language, or of none, are content.

    Args:
        text: The turn, without the token that ended it.
        starts_in_thought: Whether the generation header already opened a thinking block.

    Returns:
        The parsed turn; each block is a call of `python` with the argument `code`.
    """
    thought, spoken = split_thought(text, starts_in_thought=starts_in_thought)
    calls = tuple(_read(match) for match in _BLOCK.finditer(spoken) if _is_python(match))
    content = _BLOCK.sub(lambda match: "" if _is_python(match) else match.group(), spoken)
    return ParsedTurn(text=text, content=content.strip(), calls=calls, thought=thought)


def _is_python(match: re.Match[str]) -> bool:
    return match.group(1).strip() in _LANGUAGES


def _read(match: re.Match[str]) -> ToolCall | ParseFailure:
    _, code, closing = match.groups()
    if not closing:
        return ParseFailure(text=match.group(0), reason="the code block is not closed by a line ```")
    if not code.strip():
        return ParseFailure(text=match.group(0), reason="the code block is empty")
    return ToolCall(name=TOOL, arguments={ARGUMENT: code})
