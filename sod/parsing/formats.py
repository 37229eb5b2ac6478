"""The call formats by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, Protocol

from sod.parsing.actions import parse_actions
from sod.parsing.fences import parse_fences
from sod.parsing.hermes import parse_hermes
from sod.parsing.json_calls import parse_json_calls
from sod.parsing.turn import ParsedTurn

CallFormat = Literal["hermes", "json", "python", "action"]
"""How a student writes calls."""


class Parser(Protocol):
    """Reads one assistant turn and never raises: what cannot be read is a `ParseFailure` with a reason."""

    def __call__(self, text: str, *, starts_in_thought: bool = False) -> ParsedTurn:
        """Split a turn into thought, content and calls."""


PARSERS: Mapping[CallFormat, Parser] = MappingProxyType(
    {"hermes": parse_hermes, "json": parse_json_calls, "python": parse_fences, "action": parse_actions}
)
"""The parser of each format."""
