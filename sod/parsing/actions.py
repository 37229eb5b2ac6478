"""Actions of a text environment: `<action>go to desk 1</action>` is one call of `act`."""

from __future__ import annotations

import re

from sod.parsing.turn import ParsedTurn, split_thought
from sod.tools.calls import ParseFailure
from sod.types import ToolCall

ACTION_OPEN = "<action>"
ACTION_CLOSE = "</action>"
TOOL = "act"
ARGUMENT = "action"

_ACTION = re.compile(f"{ACTION_OPEN}(.*?)({ACTION_CLOSE}|(?={ACTION_OPEN})|\\Z)", re.DOTALL)


def parse_actions(text: str, *, starts_in_thought: bool = False) -> ParsedTurn:
    """Split one assistant turn into its content and its actions.

    Args:
        text: The turn, without the token that ended it.
        starts_in_thought: Whether the generation header already opened a thinking block.

    Returns:
        The parsed turn; each action is a call of `act` with the argument `action`, stripped.
    """
    thought, spoken = split_thought(text, starts_in_thought=starts_in_thought)
    calls = tuple(_read(match) for match in _ACTION.finditer(spoken))
    return ParsedTurn(text=text, content=_ACTION.sub("", spoken).strip(), calls=calls, thought=thought)


def _read(match: re.Match[str]) -> ToolCall | ParseFailure:
    action, closing = match.group(1).strip(), match.group(2)
    if not closing:
        return ParseFailure(text=match.group(0), reason=f"the action is not closed by {ACTION_CLOSE}")
    if not action:
        return ParseFailure(text=match.group(0), reason="the action is empty")
    return ToolCall(name=TOOL, arguments={ARGUMENT: action})
