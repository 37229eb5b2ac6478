"""What the tokens of a vocabulary spell, in bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from sod_kernels._checks import tokens as _checks


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenBytes:
    """The bytes of every token of one vocabulary; `token_bytes` reads them from a tokenizer.

    A control token (end of turn, padding, ...) spells nothing that a user could write; it has a name instead.
    An id that means nothing, such as a hole in the numbering, has neither.

    Attributes:
        spelled: Per id the bytes of a text token; None for a control token and for an id that means nothing.
        names: Name of each control token by id.
        fallback_ids: Ids of byte tokens that a tokenizer uses only for what it has no other token for. Where
            two tokens spell the same bytes, they come last.
        has_prefix_space: Whether the tokenizer puts a space before a text that is not in the text.
        eos_id: Id of the token that ends a sequence; None if the vocabulary names none.
    """

    spelled: tuple[bytes | None, ...]
    names: Mapping[int, str] = field(default_factory=dict)
    fallback_ids: frozenset[int] = frozenset()
    has_prefix_space: bool = False
    eos_id: int | None = None

    def __post_init__(self) -> None:
        _checks.check_token_bytes(self.spelled, self.names, self.eos_id)

    def __len__(self) -> int:
        return len(self.spelled)

    @cached_property
    def data(self) -> Tensor:
        """(total,) uint8, the bytes of all tokens, one after the other; never empty."""
        return torch.frombuffer(bytearray(b"".join(filter(None, self.spelled)) or b"\0"), dtype=torch.uint8)

    @cached_property
    def offsets(self) -> Tensor:
        """(V + 1,) int64, where each token's bytes begin in `data`."""
        lengths = (len(token or b"") for token in self.spelled)
        return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int64)

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal digest that tells one vocabulary from another."""
        control = [sorted(self.names.items()), sorted(self.fallback_ids), self.has_prefix_space, self.eos_id]
        digest = hashlib.sha256(json.dumps(control).encode())
        for token in self.spelled:
            digest.update(b"-" if token is None else b"%d:" % len(token) + token)
        return digest.hexdigest()

    def text(self, ids: Sequence[int]) -> bytes:
        """Join what tokens spell, leaving control tokens out.

        Args:
            ids: Token ids.

        Returns:
            Their bytes, which need not be whole characters.

        Raises:
            ValueError: If an id is not one of the vocabulary.
        """
        _checks.check_ids_of_table("TokenBytes.text", "ids", ids, len(self))
        return b"".join(self.spelled[token] or b"" for token in ids)

    def describe(self, token: int) -> str:
        """Name a token for a message.

        Args:
            token: An id of the vocabulary.

        Returns:
            What it spells, or its name, and its id.
        """
        spelled = self.spelled[token]
        shown = repr(spelled) if spelled is not None else repr(self.names.get(token, "unused"))
        return f"{shown} (id {token})"

    def ids_by_bytes(self) -> dict[bytes, int]:
        """Give one id per byte string, the same in every process.

        Of tokens that spell the same bytes the smallest id is taken, a fallback token only where there is no
        other.

        Returns:
            Bytes to id, for text tokens that spell something.
        """
        found: dict[bytes, int] = {}
        ordinary = (token for token in range(len(self)) if token not in self.fallback_ids)
        for ids in (ordinary, sorted(self.fallback_ids)):
            for token in ids:
                spelled = self.spelled[token]
                if spelled:
                    found.setdefault(spelled, token)
        return found
