"""Units by their definition: cut the text wherever both sides cut it.

The text of a segment is a string of one character per byte, and one beyond them per control token, so that
cuts are positions in it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from sod_kernels.token_bytes import TokenBytes

Unit = tuple[int, int, int, int]

# The first character that no byte has.
_FIRST_CONTROL = 256


# Characters for control tokens without partner, which are equal to nothing.
STUDENT_ALONE, TEACHER_ALONE = chr(0x10FFFF), chr(0x10FFFE)


def pieces(ids: Sequence[int], table: TokenBytes, symbols: Sequence[int], alone: str) -> list[str]:
    """Give each token's part of the text.

    Args:
        ids: Token ids.
        table: What they spell.
        symbols: Of these tokens: -1 for text, from 0 for control tokens by what they mean, -2 for those
            without partner.
        alone: Character for those without partner.

    Returns:
        One string per token.
    """
    return [
        (table.spelled[token] or b"").decode("latin-1")
        if symbol == -1
        else chr(_FIRST_CONTROL + symbol)
        if symbol >= 0
        else alone
        for token, symbol in zip(ids, symbols, strict=True)
    ]


def without_end(parts: list[str]) -> list[str]:
    """Leave out the control tokens at the end.

    Args:
        parts: Pieces of one side.

    Returns:
        The pieces up to the last token that is text.
    """
    end = len(parts)
    while end > 0 and parts[end - 1] >= chr(_FIRST_CONTROL):
        end -= 1
    return parts[:end]


def drop_prefix_space(
    student: list[str], teacher: list[str], *, student_has: bool, teacher_has: bool
) -> tuple[list[str], list[str]]:
    """Drop the space that a tokenizer put before the text, where the other side begins with one fewer.

    Args:
        student: Pieces of the student's side.
        teacher: Pieces of the teacher's.
        student_has: Whether the student's tokenizer puts such a space.
        teacher_has: Whether the teacher's does.

    Returns:
        The pieces of both sides.
    """
    if not student_has and not teacher_has:
        return student, teacher
    surplus = _leading_spaces(student) - _leading_spaces(teacher)
    if surplus == 1 and student_has:
        return _without_first(student), teacher
    if surplus == -1 and teacher_has:
        return student, _without_first(teacher)
    return student, teacher


def align_pieces(student: list[str], teacher: list[str]) -> list[Unit]:
    """Cut both sides at every position that is a border of tokens on both.

    Args:
        student: Pieces of the student's side.
        teacher: Pieces of the teacher's; their text is the same, or one is the other's beginning.

    Returns:
        Units (student start, student end, teacher start, teacher end) in tokens of the segment.
    """
    student_ends = list(accumulate(map(len, student)))
    teacher_ends = list(accumulate(map(len, teacher)))
    cuts = sorted(set(student_ends) & set(teacher_ends) - {0})
    # The last of several tokens that end at a cut: tokens without bytes join the unit before them.
    student_cuts = [bisect_right(student_ends, cut) for cut in cuts]
    teacher_cuts = [bisect_right(teacher_ends, cut) for cut in cuts]
    return list(
        zip([0, *student_cuts[:-1]], student_cuts, [0, *teacher_cuts[:-1]], teacher_cuts, strict=False)
    )


def _leading_spaces(parts: list[str]) -> int:
    text = "".join(parts)
    return len(text) - len(text.lstrip(" "))


def _without_first(parts: list[str]) -> list[str]:
    first = next(index for index, part in enumerate(parts) if part)
    return [*parts[:first], parts[first][1:], *parts[first + 1 :]]
