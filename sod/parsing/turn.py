"""What reading an assistant turn gives, and the reading that all call formats share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from sod.tools.calls import Call
from sod.types import ToolCall

THINK_OPEN = "<think>"
THINK_CLOSE = "</think>"


@dataclass(frozen=True, kw_only=True)
class ParsedTurn:
    """A turn as text, and the calls in it.

    Attributes:
        text: All that the student wrote, without the token that ended the turn.
        content: The text without thinking and without calls, stripped: what a final answer is scored on.
        calls: In the order written, those that cannot be read included.
        thought: The thinking that the turn begins with, closing tag included: a prefix of `text`.
    """

    text: str
    content: str
    calls: tuple[Call, ...] = ()
    thought: str = ""

    @property
    def spoken(self) -> str:
        """The text without thinking, stripped: calls and content."""
        return self.text.removeprefix(self.thought).strip()


def split_thought(text: str, *, starts_in_thought: bool) -> tuple[str, str]:
    """Split a turn into the thinking that it begins with and the rest.

    Args:
        text: The turn.
        starts_in_thought: Whether the generation header already opened a thinking block.

    Returns:
        Thought with its closing tag, and the rest; a thought that was never closed is all of the turn.
    """
    # Only the beginning of a turn is thought: later tags may well be part of code in a call.
    if not (starts_in_thought or text.lstrip().startswith(THINK_OPEN)):
        return "", text
    thought, closing, rest = text.partition(THINK_CLOSE)
    return thought + closing, rest


def call_from_object(value: Any, *, argument_keys: tuple[str, ...]) -> ToolCall | str:
    """Make a call of a decoded JSON value.

    Args:
        value: What JSON held.
        argument_keys: Keys that may hold the arguments, the usual one first.

    Returns:
        The call, or why it is none.
    """
    usual = argument_keys[0]
    if not isinstance(value, dict):
        return f'expected a JSON object {{"name": ..., "{usual}": {{...}}}}, got {_json_kind(value)}'
    key = next((key for key in argument_keys if key in value), None)
    if "name" not in value or key is None:
        missing = "name" if "name" not in value else usual
        return f'the key "{missing}" is missing'
    name, arguments = value["name"], value[key]
    if not isinstance(name, str) or not name:
        return f'"name" must be a non-empty string, got {_json_kind(name)}'
    if not isinstance(arguments, dict):
        return f'"{key}" must be a JSON object, got {_json_kind(arguments)}'
    return ToolCall(name=name, arguments=arguments)


def decode_json(text: str, start: int = 0) -> tuple[Any, int] | str:
    """Decode one JSON value.

    Args:
        text: Text that holds it.
        start: Where it begins.

    Returns:
        The value and where it ends, or why it cannot be read.
    """
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} at character {error.pos}"
    except (ValueError, RecursionError) as error:
        return f"not valid JSON: {error}"


def _reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _json_kind(value: Any) -> str:
    kinds = {str: "a string", list: "a list", bool: "a boolean", type(None): "null", dict: "an object"}
    return kinds.get(type(value), "a number")


_DECODER = json.JSONDecoder(parse_constant=_reject_constant)
