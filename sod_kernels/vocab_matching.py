"""Pairs the tokens of two vocabularies: text by its bytes, control tokens as declared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sod_kernels._checks import tokens as _checks
from sod_kernels.token_bytes import TokenBytes

Pairs = tuple[tuple[int, int], ...]


def bridge_ids(student: TokenBytes, teacher: TokenBytes, bridge: Iterable[tuple[str, str]] | None) -> Pairs:
    """Look up the control tokens that mean each other.

    Args:
        student: The student's tokens.
        teacher: The teacher's tokens.
        bridge: Names of pairs; None for the two ends of a sequence.

    Returns:
        Pairs of ids, in the order given.

    Raises:
        ValueError: If a name is that of no control token, or an end of a sequence is unknown.
    """
    if bridge is None:
        ends = _checks.check_eos("student", student.eos_id), _checks.check_eos("teacher", teacher.eos_id)
        return (ends,)
    return tuple(
        (_find("student", student, name), _find("teacher", teacher, other)) for name, other in bridge
    )


def match(student: TokenBytes, teacher: TokenBytes, bridge: Pairs) -> tuple[Tensor, Tensor]:
    """Pair columns one to one.

    Text tokens are paired where they spell the same bytes. Control tokens are paired where the bridge says
    so; of several pairs with a token in common the first one counts.

    Args:
        student: The student's tokens.
        teacher: The teacher's tokens.
        bridge: Ids of control tokens that mean each other.

    Returns:
        (C,) int64 columns of the student, ascending, and of the teacher.
    """
    others = teacher.ids_by_bytes()
    pairs = {token: others[text] for text, token in student.ids_by_bytes().items() if text in others}
    taken: set[int] = set()
    for token, other in bridge:
        if token not in pairs and other not in taken:
            pairs[token] = other
            taken.add(other)
    ranked = sorted(pairs.items())
    columns = torch.tensor(ranked, dtype=torch.int64).view(-1, 2)
    return columns[:, 0].contiguous(), columns[:, 1].contiguous()


def symbols(student: TokenBytes, teacher: TokenBytes, bridge: Pairs) -> tuple[Tensor, Tensor]:
    """Number control tokens so that those that mean each other have the same number.

    Pairs with a token in common mean the same on both sides: a student that may stop with either of two
    tokens, against a teacher with one.

    Args:
        student: The student's tokens.
        teacher: The teacher's tokens.
        bridge: Ids of control tokens that mean each other.

    Returns:
        Per id of each side, int32: -1 for text, from 0 for bridged control tokens, -2 for ids without a
        partner.
    """
    group: dict[tuple[str, int], int] = {}
    for number, (token, other) in enumerate(bridge):
        ends = (("student", token), ("teacher", other))
        joined = {group[end] for end in ends if end in group}
        group.update({end: number for end, old in group.items() if old in joined})
        group.update(dict.fromkeys(ends, number))
    return _numbers("student", student, group), _numbers("teacher", teacher, group)


def _numbers(side: str, table: TokenBytes, group: dict[tuple[str, int], int]) -> Tensor:
    numbers = [
        -1 if spelled is not None else group.get((side, token), -2)
        for token, spelled in enumerate(table.spelled)
    ]
    return torch.tensor(numbers, dtype=torch.int32)


def _find(side: str, table: TokenBytes, name: str) -> int:
    found = {each: token for token, each in table.names.items()}
    return _checks.check_bridge(side, name, found.get(name), list(found))


def unmatched(columns: Sequence[int], table: TokenBytes) -> list[int]:
    """List text tokens without a shared column.

    Args:
        columns: Shared columns of this side.
        table: Its tokens.

    Returns:
        Ids, ascending.
    """
    shared = set(columns)
    return [
        token for token, spelled in enumerate(table.spelled) if spelled is not None and token not in shared
    ]
