"""Text to token ids and back, at the border of the loop only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sod.parsing import ParsedTurn
from sod.types import Message

if TYPE_CHECKING:
    from sod.tools import Tool


class ChatRenderer:
    """Turns messages into token ids that are only ever appended."""

    stop_ids: tuple[int, ...]
    pad_id: int

    def __init__(
        self,
        tokenizer: Any,
        *,
        tools: Sequence[Tool] = (),
        stop_tokens: Sequence[str] = (),
        enable_thinking: bool | None = None,
        chat_template: str | None = None,
    ) -> None:
        raise NotImplementedError

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Tool] | None = None) -> tuple[int, ...]:
        """Opening messages and the generation header."""
        raise NotImplementedError

    def observation_ids(
        self, last_sampled_ids: Sequence[int], messages: Sequence[Message]
    ) -> tuple[int, ...]:
        """What follows an assistant turn: its closing, the messages, the next generation header."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text, special tokens included."""
        raise NotImplementedError

    def parse(self, ids_or_text: Sequence[int] | str) -> ParsedTurn:
        """A turn as text, and the calls in it."""
        raise NotImplementedError
