"""What each unit compares: whether it is compared at all, over which columns, and with which extra one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sod_kernels._checks.values import can_look
from sod_kernels.units import Units, VocabMap

# Gathered logits that the choice of top columns holds at a time.
_MOST_ENTRIES = 1 << 22


class Columns(NamedTuple):
    """Lists of shared columns.

    Attributes:
        student: (1, C) for all units or (U, C), int32, ascending within a list.
        teacher: Same shape, int32.
        excluded: (U, 2) int64 positions in the list that do not take part, -1 for none.
    """

    student: Tensor
    teacher: Tensor
    excluded: Tensor


class Space(NamedTuple):
    """What each unit compares.

    Attributes:
        columns: The shared columns.
        steps: (U,) int64 step of each unit, -1 where it is not compared.
        kinds: (U,) int64: -1 not compared, 0 over the columns alone, 1 with a span column.
    """

    columns: Columns
    steps: Tensor
    kinds: Tensor


def sorted_columns(vocab_map: VocabMap) -> tuple[Tensor, Tensor]:
    """Bring the pairs into the order of the student's columns, which makes its reads run forward.

    Args:
        vocab_map: Pairs in any order.

    Returns:
        (C,) student's and teacher's columns, int32.
    """
    student, teacher = vocab_map.student_columns, vocab_map.teacher_columns
    is_sorted = can_look(student) and bool((student[1:] > student[:-1]).all())
    if not is_sorted:
        student, order = student.sort()
        teacher = teacher[order]
    return student.to(torch.int32), teacher.to(torch.int32)


def _positions(ranked: Tensor, wanted: Tensor) -> Tensor:
    """Where each wanted number is in an ascending list, -1 where it is not."""
    wanted = wanted.to(ranked.dtype)
    at = torch.searchsorted(ranked, wanted).clamp(max=ranked.shape[0] - 1)
    return torch.where(ranked[at] == wanted, at, -1)


def _labels(ids: Tensor, spans: Tensor) -> Tensor:
    """(U,) label of each unit's first row; spans out of range were refused on the CPU."""
    return ids[spans[:, 0].clamp(max=max(ids.shape[0] - 1, 0))]


def unit_steps(step_ids: Tensor, student_spans: Tensor) -> Tensor:
    """Find the step of each unit: that of its first student token, if all its student tokens are in steps.

    Args:
        step_ids: (N,) int64, -1 in no step.
        student_spans: (U, 2) int64.

    Returns:
        (U,) int64, -1 in no step.
    """
    num_rows = step_ids.shape[0]
    inside = torch.nn.functional.pad((step_ids >= 0).long().cumsum(0), (1, 0))
    spans = student_spans.clamp(max=num_rows)
    is_whole = inside[spans[:, 1]] - inside[spans[:, 0]] == student_spans[:, 1] - student_spans[:, 0]
    return torch.where(is_whole, _labels(step_ids, student_spans), -1)


def make_space(
    units: Units,
    vocab_map: VocabMap,
    ids: tuple[Tensor, Tensor],
    step_ids: Tensor,
    *,
    unit_filter: str | None,
    masks_first_token: bool,
) -> Space:
    """Work out what each unit compares.

    A unit needs no span column where both sides have one token and these are a pair of the map.

    Args:
        units: The units.
        vocab_map: The pairs.
        ids: (N,) and (M,) labels.
        step_ids: (N,) int64, -1 in no step.
        unit_filter: "one_to_one" drops units with a span column.
        masks_first_token: Whether the first tokens of a span do not take part beside it.

    Returns:
        The space.
    """
    student, teacher = sorted_columns(vocab_map)
    student_label = _labels(ids[0], units.student_spans)
    teacher_label = _labels(ids[1], units.teacher_spans)
    at_student = _positions(student, student_label)
    is_pair = (at_student >= 0) & (teacher[at_student.clamp(min=0)] == teacher_label)
    has_span = ~(is_pair & units.is_one_to_one())
    steps = unit_steps(step_ids, units.student_spans)
    if unit_filter == "one_to_one":
        steps = torch.where(has_span, -1, steps)
    excluded = torch.full((len(units), 2), -1, device=student.device)
    if masks_first_token:
        ranked, order = teacher.sort()
        at_teacher = _positions(ranked, teacher_label)
        at_teacher = torch.where(at_teacher >= 0, order[at_teacher.clamp(min=0)], -1)
        excluded = torch.where(has_span[:, None], torch.stack([at_student, at_teacher], -1), -1)
    kinds = torch.where(steps >= 0, has_span.long(), -1)
    columns = Columns(student[None].contiguous(), teacher[None].contiguous(), excluded.contiguous())
    return Space(columns=columns, steps=steps, kinds=kinds)


def top_columns(student_logits: Tensor, columns: Columns, rows: Tensor, k: int) -> Columns:
    """Choose, for each unit, the k shared columns that the student holds likeliest.

    Args:
        student_logits: (N, width), detached.
        columns: One list for all units.
        rows: (U,) first student row of each unit, -1 for one that is not compared.
        k: How many, at most the length of the list.

    Returns:
        One list of length k per unit; no (U, C) tensor is built.
    """
    chunk = max(1, _MOST_ENTRIES // columns.student.shape[1])
    found = []
    for first in range(0, rows.shape[0], chunk):
        row = rows[first : first + chunk].clamp(min=0)
        values = student_logits[row[:, None], columns.student.long()]
        place = torch.arange(values.shape[1], device=values.device)
        for excluded in columns.excluded[first : first + chunk].unbind(-1):
            values = torch.where(place == excluded[:, None], -torch.inf, values)
        found.append(values.topk(k, dim=-1).indices.sort(-1).values)
    if not found:
        return columns._replace(student=columns.student[:, :k], teacher=columns.teacher[:, :k])
    chosen = torch.cat(found)
    is_excluded = chosen[:, None, :] == columns.excluded[:, :, None]
    position = is_excluded.long().argmax(-1)
    return Columns(
        student=columns.student[0][chosen],
        teacher=columns.teacher[0][chosen],
        excluded=torch.where(is_excluded.any(-1), position, -1),
    )
