"""Reads from a tokenizer what each of its tokens spells.

A tokenizer describes itself as JSON, its decoder included, and what a token spells follows from the decoder.
It is never found by decoding a single token, which may be part of a character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sod_kernels._checks import tokens as _checks
from sod_kernels.token_bytes import TokenBytes

_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, kw_only=True)
class _Spelling:
    """How a decoder turns a piece of the vocabulary into bytes.

    Attributes:
        is_byte_level: Every character of a piece stands for one byte.
        space: Otherwise the string that stands for a space.
        has_fallback: Whether pieces <0xNN> are single bytes.
        has_prefix_space: Whether a space is put before a text.
    """

    is_byte_level: bool
    space: str
    has_fallback: bool
    has_prefix_space: bool


def token_bytes(tokenizer: Any) -> TokenBytes:
    """Read from a tokenizer what each of its tokens spells.

    Byte-level BPE (GPT-2's byte alphabet) and SentencePiece models (a mark for spaces, byte fallback) are
    understood. Added tokens spell their content. Special tokens and the unknown token are control tokens.

    Args:
        tokenizer: A fast tokenizer of transformers, or a `tokenizers.Tokenizer`; only `get_vocab`,
            `backend_tokenizer.to_str`, `all_special_ids`, `eos_token_id` are used, the last two if present.

    Returns:
        The bytes by token id.

    Raises:
        TypeError: If the tokenizer cannot describe itself.
        ValueError: If the bytes of a single token do not follow from the decoder, as with WordPiece.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    _checks.check_backend(tokenizer, backend)
    described = json.loads(backend.to_str())
    vocab = described["model"]["vocab"]
    model_pieces = vocab if isinstance(vocab, dict) else {piece for piece, _ in vocab}
    spelling = _read_spelling(described)
    pieces: dict[str, int] = tokenizer.get_vocab()
    added = {int(token["id"]): token for token in described.get("added_tokens") or ()}
    special = {token for token, entry in added.items() if entry["special"]}
    special |= {int(token) for token in getattr(tokenizer, "all_special_ids", ())}
    special |= _unknown_ids(described["model"], pieces)
    # A token that was added and is in the model too, such as a run of spaces, is spelled like the model's.
    added = {token: entry for token, entry in added.items() if entry["content"] not in model_pieces}
    spelled: list[bytes | None] = [None] * (max(pieces.values(), default=-1) + 1)
    names, fallback_ids = {}, set()
    for piece, token in pieces.items():
        if token in special:
            names[token] = piece
        elif token in added:
            spelled[token] = piece.encode()
        else:
            spelled[token] = _spell(piece, spelling)
            if spelling.has_fallback and _FALLBACK.fullmatch(piece):
                fallback_ids.add(token)
    eos_id = getattr(tokenizer, "eos_token_id", None)
    return TokenBytes(
        spelled=tuple(spelled),
        names=dict(sorted(names.items())),
        fallback_ids=frozenset(fallback_ids),
        has_prefix_space=spelling.has_prefix_space,
        eos_id=eos_id,
    )


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's stand-in character for each byte: itself where it prints, else one from 256 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printing)]
    alphabet = {chr(byte): byte for byte in printing}
    return alphabet | {chr(256 + rank): byte for rank, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _spell(piece: str, spelling: _Spelling) -> bytes:
    if spelling.is_byte_level:
        # A piece with any other character stands for itself, as in the decoder.
        is_in_alphabet = all(character in _ALPHABET for character in piece)
        return bytes(_ALPHABET[character] for character in piece) if is_in_alphabet else piece.encode()
    fallback = _FALLBACK.fullmatch(piece) if spelling.has_fallback else None
    return bytes([int(fallback[1], 16)]) if fallback else piece.replace(spelling.space, " ").encode()


def _read_spelling(described: dict[str, Any]) -> _Spelling:
    is_byte_level, space, has_fallback = False, "", False
    has_prefix_space = _puts_prefix_space(described)
    for part in _parts(described.get("decoder")):
        kind = part["type"]
        if kind == "ByteLevel":
            is_byte_level = True
        elif kind == "Metaspace":
            space = part["replacement"]
        elif kind == "Replace" and part["content"] == " " and "String" in part["pattern"]:
            space = part["pattern"]["String"]
        elif kind == "ByteFallback":
            has_fallback = True
        elif kind == "Strip" and part["content"] == " " and part["stop"] == 0:
            has_prefix_space = has_prefix_space or part["start"] > 0
        elif kind != "Fuse":
            _checks.refuse_decoder(kind)
    if is_byte_level == bool(space):
        _checks.refuse_decoder("both ByteLevel and a mark for spaces" if space else "nothing that says")
    return _Spelling(
        is_byte_level=is_byte_level,
        space=space,
        has_fallback=has_fallback,
        has_prefix_space=has_prefix_space,
    )


def _puts_prefix_space(described: dict[str, Any]) -> bool:
    parts = [*_parts(described.get("normalizer")), *_parts(described.get("pre_tokenizer"))]
    return any(
        part["type"] == "Prepend"
        or (part["type"] == "ByteLevel" and part["add_prefix_space"])
        or (part["type"] == "Metaspace" and part["prepend_scheme"] != "never")
        for part in parts
    )


def _parts(node: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """Every part of a normalizer, pre-tokenizer or decoder, sequences taken apart."""
    if node is None:
        return
    if node["type"] != "Sequence":
        yield node
        return
    for key in ("normalizers", "pretokenizers", "decoders"):
        for part in node.get(key, ()):
            yield from _parts(part)


def _unknown_ids(model: dict[str, Any], pieces: dict[str, int]) -> set[int]:
    by_name = pieces.get(model.get("unk_token") or "")
    return {token for token in (model.get("unk_id"), by_name) if token is not None}
