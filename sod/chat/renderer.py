"""Text to token ids and back, at the border of the loop only.

A trajectory is one growing sequence: what a student wrote stays as the ids that were sampled, and after
every turn the renderer appends the rest of the turn's closing, the new messages and the next generation
header. That suffix comes from a dummy conversation, so it holds whatever the real conversation was. It is
only right for a template that appends; the renderer proves that when it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from sod.chat.closing import Closing, closing_of, find_stops, first_of
from sod.chat.messages import ADVICE, changed, divergence
from sod.chat.template import BoundTemplate, Offered, written_format
from sod.chat_templates import NamedTemplate
from sod.errors import TemplateError
from sod.parsing import CALL_CLOSE, PARSERS, THINK_CLOSE, THINK_OPEN, CallFormat, ParsedTurn, has_open_call
from sod.types import Drift, Message

if TYPE_CHECKING:
    from sod.tools import Tool

# Stands for what an assistant wrote; unlikely in any template or observation.
_MARK = "Zq7markZq7"
_MAX_CACHED = 4096
Rewrites = Literal["refuse", "fork"]
"""What to do where a chat template rewrites its history."""

_USER: Message = {"role": "user", "content": "Question"}
_CALL_OF_MARK = {"type": "function", "function": {"name": _MARK, "arguments": {}}}
_PLAIN: Message = {"role": "assistant", "content": _MARK}
_CALL: Message = {"role": "assistant", "content": "", "tool_calls": [_CALL_OF_MARK]}


class ChatRenderer:
    """Turns messages into token ids that are only ever appended.

    Attributes:
        stop_ids: Token ids that end an assistant turn.
        end_id: That of them with which the template ends a turn without calls.
        pad_id: Token id for padding.
        tools: Offered where `prompt_ids` is not given other tools.
        call_format: How calls are written and read.
        rewrites: What happens where the template rewrites its history: "refuse" or "fork".
        can_think: Whether the template knows thinking and it is not switched off.
        starts_in_thought: Whether the header of a turn opens a thought.
    """

    stop_ids: tuple[int, ...]
    end_id: int
    pad_id: int
    can_think: bool
    starts_in_thought: bool
    tools: tuple[Tool, ...]
    call_format: CallFormat
    rewrites: Rewrites

    def __init__(
        self,
        tokenizer: Any,
        *,
        tools: Sequence[Tool] = (),
        stop_tokens: Sequence[str] = (),
        enable_thinking: bool | None = None,
        chat_template: str | NamedTemplate | None = None,
        observation_roles: Sequence[str] | None = None,
        call_format: CallFormat | None = None,
        rewrites: Rewrites = "refuse",
    ) -> None:
        """Learn how the template closes turns, and prove that it only appends.

        Args:
            tokenizer: A transformers tokenizer.
            tools: Offered in every prompt.
            stop_tokens: Tokens that end an assistant turn. None given means the end-of-sequence token,
                and the token with which the template closes a turn where that is another.
            enable_thinking: Passed to the template unless None.
            chat_template: Used instead of the tokenizer's own.
            observation_roles: Roles of the messages that will follow assistant turns, for the proof at
                the start; other roles are proven when they first occur. None means "tool" where there are
                tools, else "user". Empty for tasks of one turn.
            call_format: How the student writes calls. None means as the template writes them, proven by
                reading one back; "hermes" where there are no tools.
            rewrites: "refuse" raises where a message changes what came before it; "fork" leaves it to
                `forked_ids` to say so, turn by turn.

        Raises:
            TemplateError: There is no template, the tokenizer lacks its special tokens, a stop token is no
                single token, no stop token closes a turn, a message changes what came before it, or no
                format reads the calls that the template writes.
        """
        options = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._template = BoundTemplate(tokenizer, chat_template, options)
        self._encode, self.rewrites = self._template.encode, rewrites
        self.tools = tuple(tools)
        header = self._render([_USER], header=True)
        self.starts_in_thought = header.rstrip().endswith(THINK_OPEN)
        self._thought_opening = header[header.rindex(THINK_OPEN) :] if self.starts_in_thought else ""
        self.can_think = THINK_OPEN in self._template.source and enable_thinking is not False
        after_plain = self._after_mark([_USER, _PLAIN], header=False)
        self.stop_ids = find_stops(tokenizer, self._encode, stop_tokens, after_plain)
        self._stop_texts = [self.decode([stop_id]) for stop_id in self.stop_ids]
        pad_id = tokenizer.pad_token_id
        self.pad_id = self.stop_ids[0] if pad_id is None else int(pad_id)
        self._closings = {"plain": self._closing(after_plain)}
        self.end_id = self._closings["plain"].ids[0]
        self._cached_suffix = lru_cache(_MAX_CACHED)(self._suffix_of_items)
        self._cached_ids = lru_cache(_MAX_CACHED)(self._encode)
        self._proven: set[str] = set()
        default_roles = ("tool",) if tools else ("user",)
        roles = default_roles if observation_roles is None else tuple(observation_roles)
        for role in roles:
            self._prove(role)
        if call_format is None and (tools or "tool" in roles):
            call_format = written_format(
                self._template,
                [_USER],
                self.tools,
                header=header.removesuffix(self._thought_opening),
                stop_texts=self._stop_texts,
                name=_MARK,
            )
        self.call_format = call_format or "hermes"
        self._parse = PARSERS[self.call_format]

    def prompt_ids(self, messages: Sequence[Message], tools: Offered | None = None) -> tuple[int, ...]:
        """Render opening messages and the generation header.

        Args:
            messages: The conversation so far.
            tools: Offered instead of the renderer's own; tools or their schemas.

        Returns:
            Token ids.

        Raises:
            TemplateError: The template refuses the messages.
        """
        return self._encode(self._render(messages, header=True, tools=tools))

    def observation_ids(
        self, last_sampled_ids: Sequence[int], messages: Sequence[Message]
    ) -> tuple[int, ...]:
        """Render what follows an assistant turn, to be appended to its ids.

        That is: what of the turn's closing was not sampled (all of it for a turn that was cut off), the
        messages, and the next generation header.

        Args:
            last_sampled_ids: The turn as sampled.
            messages: Tool or user messages; none lets the assistant speak again.

        Returns:
            Token ids; all of them are context, none is ever trained.

        Raises:
            TemplateError: The messages change how the turn before them is rendered, or the template
                cannot render them after an assistant turn.
        """
        kind, text = self._suffix(messages)
        expected = self._closings[kind]
        turn_kind = self._kind_of(last_sampled_ids, kind)
        ids = self._cached_ids(expected.text + text)
        start = first_of(ids, self.stop_ids)
        if self._closings[turn_kind].ids == expected.ids:
            return ids[start + expected.num_written(last_sampled_ids, self.stop_ids) :]
        end = start + len(expected.ids)
        if ids[start:end] != expected.ids:
            raise TemplateError(
                f"ChatRenderer.observation_ids: {text[:40]!r} is tokenised together with the closing "
                f"{self.decode(expected.ids)!r} before it, so a turn that ended otherwise cannot be followed "
                f"by role {messages[0]['role']!r}. {ADVICE}"
            )
        closing = self._closings[turn_kind]
        return closing.ids[closing.num_written(last_sampled_ids, self.stop_ids) :] + ids[end:]

    def forked_ids(
        self,
        before: Sequence[Message],
        turn: Message,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
    ) -> tuple[int, ...] | None:
        """Give the prompt of a new sequence where the template rewrites what was read and written.

        Args:
            before: The conversation before the turn.
            turn: The turn, as `assistant_message` gives it.
            messages: What follows it.
            tools: Offered instead of the renderer's own.

        Returns:
            Ids of the whole conversation as the template writes it now; None where that only extends what
            was read and written, so that `observation_ids` is right.

        Raises:
            TemplateError: The template refuses the messages.
        """
        whole = self._render([*before, turn, *messages], header=True, tools=tools)
        text = str(turn["content"]).removeprefix(self._thought_opening)
        seen = self._render(before, header=True, tools=tools) + text + self._closings["plain"].text
        try:
            seen += self._suffix(messages)[1]
        except TemplateError:
            # Even the closing depends on what follows.
            return self._encode(whole)
        return None if whole == seen else self._encode(whole)

    def assistant_message(self, turn: ParsedTurn) -> Message:
        """Write a turn as a message: all its text, calls and thinking included, is content."""
        return {"role": "assistant", "content": self._thought_opening + turn.text}

    def drift(
        self, context_ids: Sequence[int], sampled_ids: Sequence[int], *, last_id: int | None = None
    ) -> Drift:
        """Tell whether a turn's text gives the ids that were sampled.

        Args:
            context_ids: What was read before the turn, since the turn before it.
            sampled_ids: The turn.
            last_id: Last token of the turn before; None where the sequence begins with `context_ids`.

        Returns:
            `CLEAN`, or `REALIGN` where a conversation kept as text would have been tokenised otherwise.
        """
        # With the stop token before it, because the first word of a text may be tokenised like no other.
        ids = (*((last_id,) if last_id in self.stop_ids else ()), *context_ids, *sampled_ids)
        return Drift.CLEAN if self._encode(self.decode(ids)) == ids else Drift.REALIGN

    def conversation_turns(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None = None
    ) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Split a written conversation into the ids that a rollout of it would have had.

        Args:
            messages: A conversation that ends with an assistant message.
            tools: Offered instead of the renderer's own.

        Returns:
            (context_ids, sampled_ids) per assistant message, stop token included.

        Raises:
            TemplateError: A message changes what came before it, or an assistant message goes on after a
                stop token. The text names the message.
        """
        turns: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        written, begin = "", 0
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            header = self._render(messages[:index], header=True, tools=tools)
            whole = self._render(messages[: index + 1], header=False, tools=tools)
            for earlier, later, blamed in ((written, header, index - 1), (header, whole, index)):
                if not later.startswith(earlier):
                    raise changed(messages, blamed, earlier, later)
            if turns:
                context = self.observation_ids(turns[-1][1], messages[begin:index])
                _, suffix = self._suffix(messages[begin:index])
                if header[len(written) :] != suffix:
                    raise changed(messages, index - 1, suffix, header[len(written) :])
            else:
                context = self._encode(header)
            turns.append((context, self._written_ids(whole[len(header) :], index, message)))
            written, begin = whole, index + 1
        return turns

    def decode(self, ids: Sequence[int]) -> str:
        """Give token ids as text, special tokens included.

        Args:
            ids: Token ids.

        Returns:
            The text.
        """
        return self._template.decode(ids)

    def parse(self, ids_or_text: Sequence[int] | str) -> ParsedTurn:
        """Read an assistant turn: its text, content and calls.

        Args:
            ids_or_text: The turn as sampled, or its text.

        Returns:
            The parsed turn, without its stop token (a closing `</tool_call>` stays).
        """
        text = ids_or_text if isinstance(ids_or_text, str) else self.decode(ids_or_text)
        for stop in self._stop_texts:
            if stop != CALL_CLOSE and text.endswith(stop):
                text = text.removesuffix(stop)
                break
        return self._parse(text, starts_in_thought=self.starts_in_thought)

    def _render(self, messages: Sequence[Message], *, header: bool, tools: Offered | None = None) -> str:
        return self._template.render(messages, self.tools if tools is None else tools, header=header)

    def _after_mark(self, messages: Sequence[Message], *, header: bool) -> str:
        text = self._render(messages, header=header)
        _, mark, after = text.partition(_MARK)
        if not mark:
            raise TemplateError(
                f"ChatRenderer: the chat template does not show an assistant message with the keys "
                f"{sorted(messages[1])} where roles {[message['role'] for message in messages[2:]]} follow. "
                f"{ADVICE}"
            )
        return after

    def _suffix(self, messages: Sequence[Message]) -> tuple[str, str]:
        """Which dummy turn the messages follow, and what they and the header add to it."""
        # Observations repeat over the trajectories of a rollout, and rendering one costs a millisecond.
        if all(isinstance(value, str) for message in messages for value in message.values()):
            return self._cached_suffix(tuple(tuple(message.items()) for message in messages))
        return self._render_suffix(messages)

    def _suffix_of_items(self, items: tuple[tuple[tuple[str, str], ...], ...]) -> tuple[str, str]:
        return self._render_suffix([dict(message) for message in items])

    def _render_suffix(self, messages: Sequence[Message]) -> tuple[str, str]:
        roles = [str(message["role"]) for message in messages]
        for role in roles:
            self._prove(role)
        kind = "call" if roles[:1] == ["tool"] else "plain"
        opening = [_USER, _CALL if kind == "call" else _PLAIN]
        text = self._after_mark([*opening, *messages], header=True)
        before = self._closings[kind].text
        if not text.startswith(before):
            raise TemplateError(
                f"ChatRenderer.observation_ids: messages of roles {roles} change how the assistant turn "
                f"before them ends: {divergence(before, text)}. {ADVICE}"
            )
        return kind, text[len(before) :]

    def _closing(self, after: str) -> Closing:
        return closing_of(self._encode, after, stop_ids=self.stop_ids, stop_texts=self._stop_texts)

    def _kind_of(self, sampled_ids: Sequence[int], expected: str) -> str:
        """Whether a turn ends as the template ends a plain turn or a call."""
        if len(self._closings) == 1:
            return "plain"
        other = "plain" if expected == "call" else "call"
        last = sampled_ids[-1]
        if last in self.stop_ids:
            is_other = last not in self._closings[expected].ids and last in self._closings[other].ids
            return other if is_other else expected
        return "call" if has_open_call(self.decode(sampled_ids)) else "plain"

    def _written_ids(self, text: str, index: int, message: Message) -> tuple[int, ...]:
        kind = "call" if message.get("tool_calls") else "plain"
        if kind == "call":
            self._prove("tool")
        ids = self._encode(text)
        end = first_of(ids, self.stop_ids)
        closing = self._closings[kind]
        num_written = closing.num_written(ids[: end + 1], self.stop_ids)
        if end == len(ids) or ids[end + 1 :] != closing.ids[num_written:]:
            raise TemplateError(
                f"ChatRenderer.conversation_turns: assistant message {index} does not end at its first stop "
                f"token, so it could not be sampled in one turn: {text!r}."
            )
        return ids[: end + 1]

    def _prove(self, role: str) -> None:
        """Prove that messages of a role can follow, and learn how the turn before them ends."""
        if role in self._proven:
            return
        if self.rewrites == "refuse":
            self._grow(role)
        if role == "tool":
            self._closings["call"] = self._closing(self._after_mark([_USER, _CALL], header=False))
        self._proven.add(role)

    def _grow(self, role: str) -> None:
        """Grow a conversation by two rounds of turn and observation; every rendering must extend the last."""
        thought = f"{THINK_OPEN}\nthought\n{THINK_CLOSE}\n\n" if self.can_think else ""
        turn = {**(_CALL if role == "tool" else _PLAIN)}
        turn["content"] = thought + turn["content"]
        observation = {"role": role, "content": "observation"}
        messages: list[Message] = [_USER]
        earlier = self._render(messages, header=True)
        for _ in range(2):
            seen = thought.removeprefix(f"{THINK_OPEN}\n") if self.starts_in_thought else thought
            expected = earlier + seen + ("" if role == "tool" else _MARK)
            messages += [turn, observation]
            later = self._render(messages, header=True)
            if not later.startswith(expected):
                is_turn_at_fault = not self._render(messages[:-1], header=False).startswith(expected)
                blamed = len(messages) - (2 if is_turn_at_fault else 1)
                raise changed(messages, blamed, expected, later)
            earlier = later
