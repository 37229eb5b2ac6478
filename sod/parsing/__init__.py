"""Reads what a student wrote: thought, content and calls, in one of several call formats.

A call that cannot be read becomes a `ParseFailure` with a reason for the model; it is never guessed at, and
never dropped.
"""

from sod.parsing.actions import parse_actions
from sod.parsing.fences import parse_fences
from sod.parsing.formats import PARSERS, CallFormat, Parser
from sod.parsing.hermes import CALL_CLOSE, CALL_OPEN, has_open_call, parse_hermes
from sod.parsing.json_calls import parse_json_calls
from sod.parsing.turn import THINK_CLOSE, THINK_OPEN, ParsedTurn

__all__ = [
    "CALL_CLOSE",
    "CALL_OPEN",
    "PARSERS",
    "THINK_CLOSE",
    "THINK_OPEN",
    "CallFormat",
    "ParsedTurn",
    "Parser",
    "has_open_call",
    "parse_actions",
    "parse_fences",
    "parse_hermes",
    "parse_json_calls",
]
