"""Checks of tokenizers and of what their tokens spell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def check_token_bytes(spelled: Sequence[bytes | None], names: Mapping[int, str], eos_id: int | None) -> None:
    """Check that control tokens are ids without bytes.

    Args:
        spelled: Bytes by id, None for control tokens.
        names: Names of control tokens by id.
        eos_id: Id of the end of a sequence, or None.

    Raises:
        ValueError: If a name is that of a text token or of no id, or eos_id has no name.
    """
    for token, name in names.items():
        if not 0 <= token < len(spelled) or spelled[token] is not None:
            raise ValueError(
                f"TokenBytes: names has {name!r} for id {token}; wanted an id from 0 to {len(spelled) - 1} "
                "whose entry in spelled is None."
            )
    if eos_id is not None and eos_id not in names:
        raise ValueError(
            f"TokenBytes: eos_id={eos_id}, which is no control token; put its name into names and None into "
            "spelled."
        )


def check_ids_of_table(function: str, argument: str, ids: Sequence[int], num_tokens: int) -> None:
    """Check that ids are those of a vocabulary.

    Args:
        function: Name for the message.
        argument: Name for the message.
        ids: Token ids.
        num_tokens: Size of the vocabulary.

    Raises:
        ValueError: If one is not.
    """
    for position, token in enumerate(ids):
        if not 0 <= token < num_tokens:
            raise ValueError(
                f"{function}: {argument} holds {token} at {position}; wanted ids from 0 to {num_tokens - 1}, "
                "those of the tokenizer."
            )


def check_backend(tokenizer: Any, backend: Any) -> None:
    """Check that a tokenizer can describe itself.

    Args:
        tokenizer: What was given.
        backend: What should have `to_str`.

    Raises:
        TypeError: If it has not.
    """
    if not callable(getattr(backend, "to_str", None)) or not callable(getattr(tokenizer, "get_vocab", None)):
        raise TypeError(
            f"token_bytes: tokenizer is {type(tokenizer).__name__}, which does not describe how it spells "
            "tokens; wanted a fast tokenizer of transformers or a tokenizers.Tokenizer. For another kind "
            "build TokenBytes(spelled=...) from its own table."
        )


def refuse_decoder(part: str) -> None:
    """Refuse a decoder under which the bytes of a single token are not known.

    Args:
        part: The part of the decoder, as a message names it.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        f"token_bytes: the tokenizer's decoder is or contains {part}, so the bytes of a single token are not "
        "sure; wanted byte-level BPE, or SentencePiece with \u2581 for spaces. If you know the bytes, build "
        "TokenBytes(spelled=...)."
    )


def check_bridge(side: str, name: str, token: int | None, names: Sequence[str]) -> int:
    """Check that one end of a bridge is a control token.

    Args:
        side: "student" or "teacher".
        name: The token's name.
        token: Its id, None if there is no such control token.
        names: Names of the control tokens there are.

    Returns:
        The id.

    Raises:
        ValueError: If there is no such control token.
    """
    if token is None:
        known = ", ".join(repr(each) for each in names[:8]) or "none"
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise ValueError(
            f"VocabMap: bridge names {name!r}, which is no control token of the {side}; those are "
            f"{known}{more}. Text tokens are paired by their bytes."
        )
    return token


def check_eos(side: str, eos_id: int | None) -> int:
    """Refuse to guess what ends a turn.

    Args:
        side: "student" or "teacher".
        eos_id: The id that ends a sequence, None if the tokenizer names none.

    Returns:
        The id.

    Raises:
        ValueError: If there is none.
    """
    if eos_id is None:
        raise ValueError(
            f"VocabMap: bridge is None, and the {side}'s tokenizer names no end-of-sequence token; give "
            "bridge=[(student token, teacher token), ...] for the control tokens that mean the same, or "
            "bridge=() for none."
        )
    return eos_id
