"""Units of two token sequences that spell the same text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from sod_kernels._checks import alignment as _checks
from sod_kernels._dispatch import BackendUnavailableError
from sod_kernels.native import alignment as native
from sod_kernels.native import loader
from sod_kernels.reference import alignment as reference
from sod_kernels.token_bytes import TokenBytes
from sod_kernels.units import Units, VocabMap


class AlignmentError(ValueError):
    """The two sides of a segment do not spell the same text.

    Attributes:
        segment: Number of the segment.
    """

    def __init__(self, message: str, segment: int) -> None:
        super().__init__(message)
        self.segment = segment


class _Sides(NamedTuple):
    """Checked input; each pair is the student's and the teacher's."""

    ids: tuple[Tensor, Tensor]
    segments: tuple[Tensor, Tensor]
    is_truncated: Tensor
    tables: tuple[TokenBytes, TokenBytes]
    symbols: tuple[Tensor, Tensor]


def align_units(
    student_ids: Tensor | Sequence[int],
    teacher_ids: Tensor | Sequence[int],
    vocab_map: VocabMap,
    *,
    student_segments: Tensor | Sequence[tuple[int, int]] | None = None,
    teacher_segments: Tensor | Sequence[tuple[int, int]] | None = None,
    truncated: bool | Sequence[bool] | Tensor = False,
    align: str = "minimal",
    backend: str = "auto",
) -> Units:
    """Cut two token sequences of the same text into units that spell the same bytes.

    A minimal unit lies between two neighbouring places where both sides have a border of tokens; no finer cut
    is whole tokens on both sides. Borders are counted in bytes, so a token may be part of a character. A
    bridged control token, such as the end of a turn, is a piece of the text of its own. Time is linear in
    tokens and bytes.

    Args:
        student_ids: (N,) integer ids, on the CPU: the labels that the student's rows score.
        teacher_ids: (M,) integer ids of the same text in the teacher's vocabulary.
        vocab_map: The map of the two tokenizers, from `VocabMap.from_tokenizers`.
        student_segments: (G, 2) of [start, end) into student_ids, ascending and disjoint: the student's own
            turns. Each is aligned on its own; tokens outside, such as tool observations, are in no unit. None
            for one segment, everything.
        teacher_segments: (G, 2) likewise into teacher_ids, given exactly if the student's are.
        truncated: Per segment, or for all: whether it was cut off. Then control tokens at its end are in no
            unit, for the student did not choose to stop there, nor is what lies beyond the last common border
            if one text goes on.
        align: "minimal"; or "greedy", as the released code of SimCT groups tokens: after a unit that is not
            1:1 all units up to and including the next 1:1 unit are one, and those after the last 1:1 unit of
            a segment are none.
        backend: "native", "reference" or "auto": native where it can run.

    Returns:
        The units on the CPU, segment after segment; positions are those in the ids.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For a wrong shape, an id or segment out of range, or a map that knows no tokenizers.
        AlignmentError: If the texts of a segment differ, naming the place.
        BackendUnavailableError: If the named backend cannot run.

    Source: arXiv 2605.07711, minimal aligned units; derivation in docs/simct.md.
    """
    tables = _checks.check_options(vocab_map, align, backend)
    ids = (
        _checks.check_tokens("student_ids", student_ids, len(tables[0])),
        _checks.check_tokens("teacher_ids", teacher_ids, len(tables[1])),
    )
    segments = _checks.check_segments(student_segments, teacher_segments, (ids[0].numel(), ids[1].numel()))
    is_truncated = _checks.check_truncated(truncated, segments[0].shape[0])
    sides = _Sides(ids, segments, is_truncated, tables, vocab_map.symbols)
    found = _native(sides) if _uses_native(backend) else _reference(sides)
    student_spans, teacher_spans, counts = found
    if align == "greedy":
        student_spans, teacher_spans = _merge_to_anchors(student_spans, teacher_spans, counts)
    return Units(student_spans, teacher_spans)


def _uses_native(backend: str) -> bool:
    reason = loader.unavailable_reason("cpu")
    if backend == "native" and reason is not None:
        raise BackendUnavailableError(
            f"align_units: backend='native' cannot run: {reason} Use backend='reference' or 'auto'."
        )
    return backend != "reference" and reason is None


def _native(sides: _Sides) -> tuple[Tensor, Tensor, Tensor]:
    found = native.align(*sides)
    if isinstance(found, int):
        raise _difference(sides, found)
    return found


def _reference(sides: _Sides) -> tuple[Tensor, Tensor, Tensor]:
    units: list[reference.Unit] = []
    counts = []
    student, teacher = (_pieces(sides, side, 0, sides.ids[side].numel()) for side in range(2))
    bounds = [each.tolist() for each in sides.segments]
    for segment, is_truncated in enumerate(sides.is_truncated.tolist()):
        (first, end), (other, other_end) = bounds[0][segment], bounds[1][segment]
        parts = _comparable(sides, student[first:end], teacher[other:other_end], is_truncated)
        texts = "".join(parts[0]), "".join(parts[1])
        compared = min(map(len, texts)) if is_truncated else max(map(len, texts))
        if texts[0][:compared] != texts[1][:compared]:
            raise _difference(sides, segment)
        found = reference.align_pieces(*parts)
        units += [(first + a, first + b, other + c, other + d) for a, b, c, d in found]
        counts.append(len(found))
    spans = torch.tensor(units, dtype=torch.int64).view(-1, 2, 2)
    return spans[:, 0].contiguous(), spans[:, 1].contiguous(), torch.tensor(counts, dtype=torch.int64)


def _pieces(sides: _Sides, side: int, start: int, end: int) -> list[str]:
    """Each token's part of the text in a range of one side's ids."""
    ids = sides.ids[side][start:end]
    symbols = sides.symbols[side][ids].tolist()
    alone = (reference.STUDENT_ALONE, reference.TEACHER_ALONE)[side]
    return reference.pieces(ids.tolist(), sides.tables[side], symbols, alone)


def _comparable(
    sides: _Sides, student: list[str], teacher: list[str], is_truncated: bool
) -> tuple[list[str], list[str]]:
    """The pieces of a segment without what the aligners leave out of account."""
    if is_truncated:
        student, teacher = reference.without_end(student), reference.without_end(teacher)
    return reference.drop_prefix_space(
        student,
        teacher,
        student_has=sides.tables[0].has_prefix_space,
        teacher_has=sides.tables[1].has_prefix_space,
    )


def _difference(sides: _Sides, segment: int) -> AlignmentError:
    """Say where the texts of a segment part."""
    bounds = [each[segment].tolist() for each in sides.segments]
    student, teacher = (_pieces(sides, side, *bounds[side]) for side in range(2))
    parts = _comparable(sides, student, teacher, bool(sides.is_truncated[segment]))
    texts = "".join(parts[0]), "".join(parts[1])
    odd = (index for index, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1])
    place = next(odd, min(map(len, texts)))
    where = f"align_units: segment {segment}, byte {place}"
    shown, advice = [], ""
    for side, name in enumerate(("student", "teacher")):
        ends = accumulate(map(len, parts[side]))
        token = bounds[side][0] + sum(each <= place for each in ends)
        if place >= len(texts[side]):
            shown.append(f"the {name}'s text has ended")
            continue
        described = sides.tables[side].describe(int(sides.ids[side][token]))
        if texts[side][place] in (reference.STUDENT_ALONE, reference.TEACHER_ALONE):
            advice = (
                f" The map bridges no control token {described}: name its partner in bridge= of "
                "VocabMap.from_tokenizers, or leave it out of the segment."
            )
        shown.append(f"the {name} has {described} at {name}_ids[{token}]")
    if "\xef\xbf\xbd" in texts[1][max(place - 2, 0) : place + 3]:
        advice = (
            " The teacher's text has the replacement character U+FFFD: the student's tokens were decoded "
            "although they are no whole characters. Cut the incomplete character off before tokenising."
        )
    elif not advice:
        advice = (
            " Give the ids of one and the same text on both sides: what TokenBytes.text(student_ids) spells, "
            "tokenised by the teacher without special tokens, and both ends of turn or none; truncated=True "
            "for a response that was cut off."
        )
    return AlignmentError(f"{where}: the texts differ: {', '.join(shown)}.{advice}", segment)


def _merge_to_anchors(student: Tensor, teacher: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Join to each 1:1 unit the units before it, back to the 1:1 unit before or the segment's beginning."""
    anchors = Units(student, teacher).is_one_to_one().nonzero().squeeze(1)
    segment = torch.repeat_interleave(torch.arange(counts.numel()), counts)
    first_of_segment = (counts.cumsum(0) - counts)[segment[anchors]]
    after_previous = torch.cat([anchors.new_zeros(1), anchors[:-1] + 1])[: anchors.numel()]
    first = torch.maximum(first_of_segment, after_previous)
    return (
        torch.stack([student[first, 0], student[anchors, 1]], 1),
        torch.stack([teacher[first, 0], teacher[anchors, 1]], 1),
    )
