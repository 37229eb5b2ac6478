"""Text to token ids and back, at the border of the loop only.

A trajectory is one growing sequence: what a student wrote stays as the ids that were sampled, and after
every turn the renderer appends the rest of the turn's closing, the new messages and the next generation
header. That suffix comes from a dummy conversation, so it holds whatever the real conversation was. It is
only right for a template that appends; the renderer proves that when it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sod.errors import TemplateError
from sod.parsing import CALL_CLOSE, THINK_CLOSE, THINK_OPEN, ParsedTurn, has_open_call, parse_hermes
from sod.types import Message

if TYPE_CHECKING:
    from sod.tools import Tool

# Stands for what an assistant wrote; unlikely in any template or observation.
_MARK = "Zq7markZq7"
_MAX_CACHED = 4096
_USER: Message = {"role": "user", "content": "Question"}
_CALL_OF_MARK = {"type": "function", "function": {"name": _MARK, "arguments": {}}}
_PLAIN: Message = {"role": "assistant", "content": _MARK}
_CALL: Message = {"role": "assistant", "content": "", "tool_calls": [_CALL_OF_MARK]}
_ADVICE = (
    'Set [student] chat_template = "hermes", or pass chat_template=sod.chat_templates.HERMES_TEMPLATE '
    "or a template of your own that only appends."
)


@dataclass(frozen=True, kw_only=True)
class _Closing:
    """How the template ends an assistant message.

    Attributes:
        text: All that follows the mark.
        ids: From the first stop token on.
    """

    text: str
    ids: tuple[int, ...]


class ChatRenderer:
    """Turns messages into token ids that are only ever appended.

    Attributes:
        stop_ids: Token ids that end an assistant turn.
        pad_id: Token id for padding.
        tools: Offered where `prompt_ids` is not given other tools.
        can_think: Whether the template knows thinking and it is not switched off.
    """

    stop_ids: tuple[int, ...]
    pad_id: int
    can_think: bool
    tools: tuple[Tool, ...]

    def __init__(
        self,
        tokenizer: Any,
        *,
        tools: Sequence[Tool] = (),
        stop_tokens: Sequence[str] = (),
        enable_thinking: bool | None = None,
        chat_template: str | None = None,
        observation_roles: Sequence[str] | None = None,
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

        Raises:
            TemplateError: There is no template, a stop token is no single token, no stop token closes a
                turn, or a message changes what came before it.
        """
        self._tokenizer = tokenizer
        self._template = chat_template or tokenizer.chat_template
        if not self._template:
            raise TemplateError(f"ChatRenderer: the tokenizer has no chat template. {_ADVICE}")
        self._options = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self.tools = tuple(tools)
        header = self._render([_USER], header=True)
        self._starts_in_thought = header.rstrip().endswith(THINK_OPEN)
        self.can_think = THINK_OPEN in str(self._template) and enable_thinking is not False
        after_plain = self._after_mark([_USER, _PLAIN], header=False)
        self.stop_ids = self._find_stops(stop_tokens, after_plain)
        self._stop_texts = [self.decode([stop_id]) for stop_id in self.stop_ids]
        pad_id = tokenizer.pad_token_id
        self.pad_id = self.stop_ids[0] if pad_id is None else int(pad_id)
        self._closings = {"plain": self._closing(after_plain)}
        self._cached_suffix = lru_cache(_MAX_CACHED)(self._suffix_of_items)
        self._cached_ids = lru_cache(_MAX_CACHED)(self._encode)
        self._proven: set[str] = set()
        default_roles = ("tool",) if tools else ("user",)
        for role in default_roles if observation_roles is None else observation_roles:
            self._prove(role)

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Tool] | None = None) -> tuple[int, ...]:
        """Render opening messages and the generation header.

        Args:
            messages: The conversation so far.
            tools: Offered instead of the renderer's own.

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
        start = _first_of(ids, self.stop_ids)
        if turn_kind == kind:
            return ids[start + self._num_closed(last_sampled_ids, expected.ids) :]
        end = start + len(expected.ids)
        if ids[start:end] != expected.ids:
            raise TemplateError(
                f"ChatRenderer.observation_ids: {text[:40]!r} is tokenised together with the closing "
                f"{self.decode(expected.ids)!r} before it, so a turn that ended otherwise cannot be followed "
                f"by role {messages[0]['role']!r}. {_ADVICE}"
            )
        closing = self._closings[turn_kind].ids
        return closing[self._num_closed(last_sampled_ids, closing) :] + ids[end:]

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
                    raise _changed(messages, blamed, earlier, later)
            if turns:
                context = self.observation_ids(turns[-1][1], messages[begin:index])
                _, suffix = self._suffix(messages[begin:index])
                if header[len(written) :] != suffix:
                    raise _changed(messages, index - 1, suffix, header[len(written) :])
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
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

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
        return parse_hermes(text, starts_in_thought=self._starts_in_thought)

    def _render(
        self, messages: Sequence[Message], *, header: bool, tools: Sequence[Tool] | None = None
    ) -> str:
        schemas = [tool.schema for tool in (self.tools if tools is None else tools)]
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tools=schemas or None,
                chat_template=self._template,
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

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _after_mark(self, messages: Sequence[Message], *, header: bool) -> str:
        text = self._render(messages, header=header)
        _, mark, after = text.partition(_MARK)
        if not mark:
            raise TemplateError(
                f"ChatRenderer: the chat template does not show an assistant message with the keys "
                f"{sorted(messages[1])} where roles {[message['role'] for message in messages[2:]]} follow. "
                f"{_ADVICE}"
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
                f"before them ends: {_divergence(before, text)}. {_ADVICE}"
            )
        return kind, text[len(before) :]

    def _find_stops(self, stop_tokens: Sequence[str], after_plain: str) -> tuple[int, ...]:
        if stop_tokens:
            return tuple(self._single_id(token) for token in stop_tokens)
        stops = [] if self._tokenizer.eos_token_id is None else [int(self._tokenizer.eos_token_id)]
        after = self._encode(after_plain)
        if not set(stops) & set(after):
            # A base model's tokenizer may end texts with one token and its template turns with another.
            stops += [token for token in after if token in self._tokenizer.added_tokens_decoder][:1]
        if not set(stops) & set(after):
            raise TemplateError(
                f"ChatRenderer: the template writes {after_plain!r} after an assistant turn, which holds "
                f"neither the end-of-sequence token {self._tokenizer.eos_token!r} nor another special token; "
                "pass stop_tokens."
            )
        return tuple(stops)

    def _single_id(self, token: str) -> int:
        ids = self._encode(token)
        if len(ids) != 1:
            raise TemplateError(
                f"ChatRenderer: stop_tokens holds {token!r}, which this tokenizer splits into {len(ids)} "
                "tokens; every stop token must be one token of the vocabulary."
            )
        return ids[0]

    def _closing(self, after: str) -> _Closing:
        ids = self._encode(after)
        start = _first_of(ids, self.stop_ids)
        if start == len(ids):
            raise TemplateError(
                f"ChatRenderer: no stop token of {self._stop_texts} is in {after!r}, which the template "
                "writes after an assistant turn: sampled turns would never end as the template ends them; "
                "pass stop_tokens."
            )
        return _Closing(text=after, ids=ids[start:])

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

    def _num_closed(self, sampled_ids: Sequence[int], closing: tuple[int, ...]) -> int:
        """How many tokens of a closing a turn has already written."""
        last = sampled_ids[-1]
        return closing.index(last) + 1 if last in self.stop_ids and last in closing else 0

    def _written_ids(self, text: str, index: int, message: Message) -> tuple[int, ...]:
        kind = "call" if message.get("tool_calls") else "plain"
        if kind == "call":
            self._prove("tool")
        ids = self._encode(text)
        end = _first_of(ids, self.stop_ids)
        closing = self._closings[kind].ids
        if end == len(ids) or ids[end + 1 :] != closing[self._num_closed(ids[: end + 1], closing) :]:
            raise TemplateError(
                f"ChatRenderer.conversation_turns: assistant message {index} does not end at its first stop "
                f"token, so it could not be sampled in one turn: {text!r}."
            )
        return ids[: end + 1]

    def _prove(self, role: str) -> None:
        """Grow a conversation by two rounds of turn and observation; every rendering must extend the last."""
        if role in self._proven:
            return
        thought = f"{THINK_OPEN}\nthought\n{THINK_CLOSE}\n\n" if self.can_think else ""
        turn = {**(_CALL if role == "tool" else _PLAIN)}
        turn["content"] = thought + turn["content"]
        observation = {"role": role, "content": "observation"}
        messages: list[Message] = [_USER]
        earlier = self._render(messages, header=True)
        for _ in range(2):
            seen = thought.removeprefix(f"{THINK_OPEN}\n") if self._starts_in_thought else thought
            expected = earlier + seen + ("" if role == "tool" else _MARK)
            messages += [turn, observation]
            later = self._render(messages, header=True)
            if not later.startswith(expected):
                is_turn_at_fault = not self._render(messages[:-1], header=False).startswith(expected)
                blamed = len(messages) - (2 if is_turn_at_fault else 1)
                raise _changed(messages, blamed, expected, later)
            earlier = later
        if role == "tool":
            self._closings["call"] = self._closing(self._after_mark([_USER, _CALL], header=False))
        self._proven.add(role)


def _first_of(ids: Sequence[int], wanted: Sequence[int]) -> int:
    return next((index for index, token in enumerate(ids) if token in wanted), len(ids))


def _changed(messages: Sequence[Message], index: int, earlier: str, later: str) -> TemplateError:
    return TemplateError(
        f"ChatRenderer: message {index} (role {messages[index]['role']!r}) changes what the chat template "
        f"wrote before it: {_divergence(earlier, later)}. {_ADVICE}"
    )


def _divergence(earlier: str, later: str) -> str:
    pairs = zip(earlier, later, strict=False)
    start = next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(earlier), len(later)))
    begin = max(0, start - 20)
    return f"{earlier[begin : start + 40]!r} became {later[begin : start + 40]!r}"
