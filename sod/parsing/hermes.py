"""Calls in the hermes form: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, several in a turn."""

from __future__ import annotations

import re

from sod.parsing.turn import ParsedTurn, call_from_object, decode_json, split_thought
from sod.tools.calls import ParseFailure
from sod.types import ToolCall

CALL_OPEN = "<tool_call>"
CALL_CLOSE = "</tool_call>"

# A call runs to its closing tag; one that has none ends at the next opening tag or with the turn.
_CALL = re.compile(f"{CALL_OPEN}(.*?)({CALL_CLOSE}|(?={CALL_OPEN})|\\Z)", re.DOTALL)


def parse_hermes(text: str, *, starts_in_thought: bool = False) -> ParsedTurn:
    """Split one assistant turn into its content and its tool calls.

    A thinking block at the beginning, closed or cut off, holds no call and no content.

    Args:
        text: The turn, without the token that ended it unless that is `</tool_call>`.
        starts_in_thought: Whether the generation header already opened a thinking block.

    Returns:
        The parsed turn.
    """
    thought, spoken = split_thought(text, starts_in_thought=starts_in_thought)
    calls = tuple(_parse_call(match) for match in _CALL.finditer(spoken))
    return ParsedTurn(text=text, content=_CALL.sub("", spoken).strip(), calls=calls, thought=thought)


def has_open_call(text: str) -> bool:
    """Tell whether the text ends inside a call that was never closed.

    Args:
        text: An assistant turn.

    Returns:
        True where the last opening tag has no closing tag behind it.
    """
    return text.rfind(CALL_OPEN) > text.rfind(CALL_CLOSE)


def _parse_call(match: re.Match[str]) -> ToolCall | ParseFailure:
    body, closing = match.groups()
    call = _read(body.strip()) if closing else f"the call is not closed by {CALL_CLOSE}"
    return ParseFailure(text=match.group(0), reason=call) if isinstance(call, str) else call


def _read(body: str) -> ToolCall | str:
    """The call, or why it cannot be read."""
    decoded = decode_json(body)
    if isinstance(decoded, str):
        return decoded
    value, end = decoded
    if end < len(body):
        return f"not valid JSON: Extra data at character {end}"
    return call_from_object(value, argument_keys=("arguments",))
