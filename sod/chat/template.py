"""A chat template bound to its tokenizer: messages to text, text to ids, ids to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sod.chat.closing import check_markers
from sod.chat.messages import ADVICE
from sod.chat_templates import NamedTemplate
from sod.errors import TemplateError
from sod.parsing import CALL_CLOSE, PARSERS, CallFormat
from sod.types import Message, ToolCall

if TYPE_CHECKING:
    from sod.tools import Tool


Offered = Sequence["Tool | Mapping[str, Any]"]
"""Tools, or their JSON schemas."""


class BoundTemplate:
    """Renders, encodes and decodes, and adds nothing of its own.

    Attributes:
        source: The template's Jinja source.
    """

    source: str

    def __init__(
        self, tokenizer: Any, chat_template: str | NamedTemplate | None, options: Mapping[str, Any]
    ) -> None:
        """Bind a template.

        Args:
            tokenizer: A transformers tokenizer.
            chat_template: Used instead of the tokenizer's own.
            options: Variables of the template.

        Raises:
            TemplateError: There is no template, or the tokenizer lacks its special tokens.
        """
        self._tokenizer = tokenizer
        self._options = dict(options)
        if isinstance(chat_template, NamedTemplate):
            check_markers(self.encode, chat_template.name, chat_template.markers)
            chat_template = chat_template.text
        source = chat_template or tokenizer.chat_template
        if not source:
            raise TemplateError(f"ChatRenderer: the tokenizer has no chat template. {ADVICE}")
        self.source = source

    def render(self, messages: Sequence[Message], tools: Offered, *, header: bool) -> str:
        """Write messages as text.

        Args:
            messages: The conversation.
            tools: Offered in it.
            header: Whether to end with the header of the next assistant turn.

        Returns:
            The text.

        Raises:
            TemplateError: The template refuses the messages.
        """
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=[tool if isinstance(tool, Mapping) else tool.schema for tool in tools] or None,
                chat_template=self.source,
                add_generation_prompt=header,
                tokenize=False,
                **self._options,
            )
        except Exception as error:
            # Templates raise whatever they like: jinja errors, KeyError, TypeError.
            roles = [message.get("role") for message in messages]
            raise TemplateError(
                f"ChatRenderer: the chat template refuses messages of roles {roles}: {error}"
            ) from error
        return str(text)

    def encode(self, text: str) -> tuple[int, ...]:
        """Give text as token ids."""
        return tuple(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Give token ids as text, special tokens included."""
        # Cleaning up would take spaces out of code.
        return str(
            self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )


def written_format(
    template: BoundTemplate,
    opening: Sequence[Message],
    tools: Sequence[Tool],
    *,
    header: str,
    stop_texts: Sequence[str],
    name: str,
) -> CallFormat:
    """Find the call format that reads the call which a template writes.

    Args:
        template: The template.
        opening: Messages before the call.
        tools: Offered in them.
        header: Their text, up to where an assistant turn begins.
        stop_texts: What ends a turn.
        name: Of a tool, unlike anything that the template writes by itself.

    Returns:
        The first format that reads the call.

    Raises:
        TemplateError: None does.
    """
    call = ToolCall(name=name, arguments={"key": "value"})
    function = {"name": call.name, "arguments": dict(call.arguments)}
    turn = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
    written = template.render([*opening, turn], tools, header=False).removeprefix(header)
    ends = [written.find(stop) for stop in stop_texts if stop != CALL_CLOSE and stop in written]
    written = written[: min(ends, default=None)]
    for each, parse in PARSERS.items():
        if parse(written).calls == (call,):
            return each
    raise TemplateError(
        f"ChatRenderer: the chat template writes a call as {written[-200:]!r}, which none of the formats "
        f"{', '.join(PARSERS)} reads: every call would be taken for an answer. Name the format that the "
        f"student writes ([student] call_format), or take another template. {ADVICE}"
    )
