"""Calls as bare JSON, as Llama 3 writes them: the whole turn is `{"name": ..., "parameters": {...}}`.

Several calls stand one after another, with semicolons, commas or space between them, or in a list. A turn
that begins otherwise, or with an object that has neither a name nor arguments, is an answer.
"""

from __future__ import annotations

import re
from typing import Any

from sod.parsing.turn import ParsedTurn, call_from_object, decode_json, split_thought
from sod.tools.calls import Call, ParseFailure

_KEYS = ("parameters", "arguments")
_PYTHON_TAG = "<|python_tag|>"
_BETWEEN = re.compile(r"[\s;,]*")
# What only a call begins with; an answer may be JSON too.
_BEGINS_AS_CALL = re.compile(r'\s*\[?\s*\{\s*"(?:type"\s*:\s*"function|name|parameters|arguments)"')


def parse_json_calls(text: str, *, starts_in_thought: bool = False) -> ParsedTurn:
    """Split one assistant turn into its content and its calls.

    What cannot be read takes all the rest of the turn with it, as nobody can tell where it ends.

    Args:
        text: The turn, without the token that ended it.
        starts_in_thought: Whether the generation header already opened a thinking block.

    Returns:
        The parsed turn; either it has calls, or all that was said is content.
    """
    thought, spoken = split_thought(text, starts_in_thought=starts_in_thought)
    body = spoken.strip()
    is_marked = body.startswith(_PYTHON_TAG)
    body = body.removeprefix(_PYTHON_TAG)
    if not (is_marked or _BEGINS_AS_CALL.match(body) or _has_arguments(body)):
        return ParsedTurn(text=text, content=body, thought=thought)
    calls, rest = _read_calls(body)
    return ParsedTurn(text=text, content=rest, calls=tuple(calls), thought=thought)


def _has_arguments(body: str) -> bool:
    """Whether the first object is a call in all but the name, which may be missing or misspelt."""
    decoded = decode_json(body) if body[:1] in ("{", "[") else ""
    if isinstance(decoded, str):
        return False
    first = decoded[0][0] if isinstance(decoded[0], list) and decoded[0] else decoded[0]
    return isinstance(first, dict) and any(key in first for key in _KEYS)


def _read_calls(body: str) -> tuple[list[Call], str]:
    """The calls, and the text behind the last of them."""
    calls: list[Call] = []
    position = _skip(body, 0)
    while position < len(body) and (not calls or body[position] in "{["):
        decoded = decode_json(body, position)
        if isinstance(decoded, str):
            return [*calls, ParseFailure(text=body[position:], reason=decoded)], ""
        value, end = decoded
        calls += [_read(item, body[position:end]) for item in (value if isinstance(value, list) else [value])]
        position = _skip(body, end)
    if not calls:
        calls.append(ParseFailure(text=body, reason="there is no call in it"))
    return calls, body[position:].strip()


def _read(value: Any, text: str) -> Call:
    call = call_from_object(value, argument_keys=_KEYS)
    return ParseFailure(text=text, reason=call) if isinstance(call, str) else call


def _skip(body: str, position: int) -> int:
    match = _BETWEEN.match(body, position)
    return position if match is None else match.end()
