"""How a template ends an assistant turn, and which sampled tokens do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sod.errors import TemplateError

Encode = Callable[[str], tuple[int, ...]]
"""Text to token ids, nothing added."""


@dataclass(frozen=True, kw_only=True)
class Closing:
    """How the template ends an assistant message.

    Attributes:
        text: All that follows the mark.
        ids: From the first stop token on.
    """

    text: str
    ids: tuple[int, ...]

    def num_written(self, sampled_ids: Sequence[int], stop_ids: Sequence[int]) -> int:
        """Count the tokens of the closing that a turn has already written.

        Args:
            sampled_ids: The turn.
            stop_ids: Token ids that end a turn.

        Returns:
            0 for a turn that was cut off, or ended by a stop token that this closing does not have.
        """
        last = sampled_ids[-1]
        return self.ids.index(last) + 1 if last in stop_ids and last in self.ids else 0


def find_stops(
    tokenizer: Any, encode: Encode, stop_tokens: Sequence[str], after_plain: str
) -> tuple[int, ...]:
    """Find the tokens that end an assistant turn.

    Args:
        tokenizer: A transformers tokenizer.
        encode: Its encoding.
        stop_tokens: Texts asked for; none leaves it to tokenizer and template.
        after_plain: What the template writes after an assistant turn without calls.

    Returns:
        Token ids, at least one.

    Raises:
        TemplateError: A stop token is no single token, or none can be found.
    """
    if stop_tokens:
        return tuple(_single_id(encode, token) for token in stop_tokens)
    stops = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    after = encode(after_plain)
    if not set(stops) & set(after):
        # A base model's tokenizer may end texts with one token and its template turns with another.
        stops += [token for token in after if token in tokenizer.added_tokens_decoder][:1]
    if not set(stops) & set(after):
        raise TemplateError(
            f"ChatRenderer: the template writes {after_plain!r} after an assistant turn, which holds "
            f"neither the end-of-sequence token {tokenizer.eos_token!r} nor another special token; "
            "pass stop_tokens."
        )
    return tuple(stops)


def closing_of(encode: Encode, after: str, *, stop_ids: Sequence[int], stop_texts: Sequence[str]) -> Closing:
    """Learn a closing from what the template writes after an assistant turn.

    Args:
        encode: Text to token ids.
        after: What the template writes.
        stop_ids: Token ids that end a turn.
        stop_texts: The same as text.

    Returns:
        The closing.

    Raises:
        TemplateError: No stop token is in it.
    """
    ids = encode(after)
    start = first_of(ids, stop_ids)
    if start == len(ids):
        raise TemplateError(
            f"ChatRenderer: no stop token of {list(stop_texts)} is in {after!r}, which the template "
            "writes after an assistant turn: sampled turns would never end as the template ends them; "
            "pass stop_tokens."
        )
    return Closing(text=after, ids=ids[start:])


def check_markers(encode: Encode, name: str, markers: Sequence[str]) -> None:
    """Prove that a tokenizer has the special tokens that a named template writes.

    Args:
        encode: Text to token ids.
        name: Name of the template.
        markers: Texts that must be one token each.

    Raises:
        TemplateError: Naming those that are not.
    """
    split = [marker for marker in markers if len(encode(marker)) != 1]
    if split:
        raise TemplateError(
            f"ChatRenderer: chat_template {name!r} writes {', '.join(split)}, which this tokenizer splits "
            "into several tokens, so the model would read a layout that it never saw; take the template of "
            'the model\'s family, "own", or "plain".'
        )


def first_of(ids: Sequence[int], wanted: Sequence[int]) -> int:
    """Give the index of the first id that is wanted, or the length where there is none."""
    return next((index for index, token in enumerate(ids) if token in wanted), len(ids))


def _single_id(encode: Encode, token: str) -> int:
    ids = encode(token)
    if len(ids) != 1:
        raise TemplateError(
            f"ChatRenderer: stop_tokens holds {token!r}, which this tokenizer splits into {len(ids)} "
            "tokens; every stop token must be one token of the vocabulary."
        )
    return ids[0]
