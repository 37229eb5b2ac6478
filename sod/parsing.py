"""Reads the tool calls that a student wrote in the hermes form.

A call is `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`; a turn may hold several. A call that
cannot be read becomes a `ParseFailure` with a reason for the model; it is never guessed at.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from sod.tools.calls import ParseFailure
from sod.types import ToolCall

CALL_OPEN = "<tool_call>"
CALL_CLOSE = "</tool_call>"
THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"

# A call runs to its closing tag; one that has none ends at the next opening tag or with the turn.
_CALL = re.compile(f"{CALL_OPEN}(.*?)({CALL_CLOSE}|(?={CALL_OPEN})|\\Z)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class ParsedTurn:
    """A turn as text, and the calls in it.

    Attributes:
        text: All that the student wrote, without the token that ended the turn.
        content: The text without thinking and without calls, stripped: what a final answer is scored on.
        calls: In the order written, those that cannot be read included.
    """

    text: str
    content: str
    calls: tuple[ToolCall | ParseFailure, ...] = ()


def parse_hermes(text: str, *, starts_in_thought: bool = False) -> ParsedTurn:
    """Split one assistant turn into its content and its tool calls.

    A thinking block at the beginning, closed or cut off, holds no call and no content.

    Args:
        text: The turn, without the token that ended it unless that is `</tool_call>`.
        starts_in_thought: Whether the generation header already opened a thinking block.

    Returns:
        The parsed turn.
    """
    spoken = _without_thought(text, starts_in_thought)
    calls = tuple(_parse_call(match) for match in _CALL.finditer(spoken))
    return ParsedTurn(text=text, content=_CALL.sub("", spoken).strip(), calls=calls)


def has_open_call(text: str) -> bool:
    """Tell whether the text ends inside a call that was never closed.

    Args:
        text: An assistant turn.

    Returns:
        True where the last opening tag has no closing tag behind it.
    """
    return text.rfind(CALL_OPEN) > text.rfind(CALL_CLOSE)


def _without_thought(text: str, starts_in_thought: bool) -> str:
    # Only the beginning of a turn is thought: later tags may well be part of code in a call.
    if not (starts_in_thought or text.lstrip().startswith(THINK_OPEN)):
        return text
    return text.partition(THINK_CLOSE)[2]


def _parse_call(match: re.Match[str]) -> ToolCall | ParseFailure:
    body, closing = match.groups()
    failure = _reason_against(body.strip(), is_closed=bool(closing))
    if isinstance(failure, str):
        return ParseFailure(text=match.group(0), reason=failure)
    return failure


def _reason_against(body: str, *, is_closed: bool) -> ToolCall | str:
    """The call, or why it cannot be read."""
    if not is_closed:
        return f"the call is not closed by {CALL_CLOSE}"
    try:
        call: Any = json.loads(body, parse_constant=_reject_constant)
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} at character {error.pos}"
    except (ValueError, RecursionError) as error:
        return f"not valid JSON: {error}"
    if not isinstance(call, dict):
        return f'expected a JSON object {{"name": ..., "arguments": {{...}}}}, got {_json_kind(call)}'
    if "name" not in call or "arguments" not in call:
        missing = '"name"' if "name" not in call else '"arguments"'
        return f"the key {missing} is missing"
    name, arguments = call["name"], call["arguments"]
    if not isinstance(name, str) or not name:
        return f'"name" must be a non-empty string, got {_json_kind(name)}'
    if not isinstance(arguments, dict):
        return f'"arguments" must be a JSON object, got {_json_kind(arguments)}'
    return ToolCall(name=name, arguments=arguments)


def _reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _json_kind(value: Any) -> str:
    kinds = {str: "a string", list: "a list", bool: "a boolean", type(None): "null", dict: "an object"}
    return kinds.get(type(value), "a number")
