"""Checks of vocabulary maps and units."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sod_kernels._checks.values import can_look, check_tensor

if TYPE_CHECKING:
    from sod_kernels.token_bytes import TokenBytes

MAP_FORMAT = "sod-vocab-map-1"


def check_columns(function: str, student_columns: Any, teacher_columns: Any) -> None:
    """Check paired columns: int64, as many on one side as on the other, none twice.

    Args:
        function: Name for the message.
        student_columns: (C,) int64.
        teacher_columns: (C,) int64.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For a wrong shape or device, no column at all, or (looked at on the CPU only) a column
            that is negative or occurs twice.
    """
    check_tensor(function, "student_columns", student_columns, dtypes=(torch.int64,))
    if student_columns.dim() != 1 or student_columns.numel() == 0:
        shape = tuple(student_columns.shape)
        raise ValueError(
            f"{function}: student_columns has shape {shape}; wanted (C,) with at least one column, since "
            "tokenizers without a common token share nothing to compare."
        )
    shape, device = tuple(student_columns.shape), student_columns.device
    check_tensor(
        function, "teacher_columns", teacher_columns, shape=shape, dtypes=(torch.int64,), device=device
    )
    for name, columns in (("student_columns", student_columns), ("teacher_columns", teacher_columns)):
        if can_look(columns):
            _check_distinct(function, name, columns)


def check_spans(function: str, student_spans: Any, teacher_spans: Any) -> None:
    """Check the spans of units: (U, 2) int64 on both sides, none empty, in order, disjoint.

    Args:
        function: Name for the message.
        student_spans: (U, 2) int64 of [start, end).
        teacher_spans: (U, 2) int64 of [start, end).

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For a wrong shape or device, or (looked at on the CPU only) a span that is empty,
            negative or overlaps the one before it.
    """
    check_tensor(function, "student_spans", student_spans, dtypes=(torch.int64,))
    if student_spans.dim() != 2 or student_spans.shape[1] != 2:
        raise ValueError(
            f"{function}: student_spans has shape {tuple(student_spans.shape)}; wanted (U, 2), start and end "
            "of each unit."
        )
    shape, device = tuple(student_spans.shape), student_spans.device
    check_tensor(function, "teacher_spans", teacher_spans, shape=shape, dtypes=(torch.int64,), device=device)
    for name, spans in (("student_spans", student_spans), ("teacher_spans", teacher_spans)):
        if can_look(spans):
            _check_ordered(function, name, spans)


def check_map(function: str, vocab_map: Any) -> None:
    """Check that a map's columns and bridge are tokens of its two tokenizers, if it has them.

    Args:
        function: Name for the message.
        vocab_map: A `VocabMap` whose columns are checked.

    Raises:
        ValueError: If only one side's tokens are given, or a column or bridged id is none of them.
    """
    if (vocab_map.student is None) != (vocab_map.teacher is None):
        raise ValueError(f"{function}: got student or teacher without the other; wanted both or neither.")
    if vocab_map.student is None:
        return
    for name, table, columns in (
        ("student", vocab_map.student, vocab_map.student_columns),
        ("teacher", vocab_map.teacher, vocab_map.teacher_columns),
    ):
        if can_look(columns) and int(columns.max()) >= len(table):
            raise ValueError(
                f"{function}: {name}_columns holds {int(columns.max())}; wanted ids below {len(table)}, the "
                f"number of tokens that {name} has."
            )
    for pair in vocab_map.bridge:
        for name, table, token in zip(
            ("student", "teacher"), (vocab_map.student, vocab_map.teacher), pair, strict=True
        ):
            if token not in table.names:
                raise ValueError(
                    f"{function}: bridge holds {token} for the {name}, which is no control token of its; "
                    "wanted pairs of ids of control tokens, student first."
                )


def check_has_tables(function: str, vocab_map: Any) -> tuple[TokenBytes, TokenBytes]:
    """Check that a map knows what the tokens spell.

    Args:
        function: Name for the message.
        vocab_map: A `VocabMap`.

    Returns:
        The student's and the teacher's tokens.

    Raises:
        ValueError: If it was made from columns alone.
    """
    if vocab_map.student is None or vocab_map.teacher is None:
        raise ValueError(
            f"{function}: the VocabMap was made from columns alone and does not know what the tokens spell; "
            "make it with VocabMap.from_tokenizers."
        )
    return vocab_map.student, vocab_map.teacher


def check_record(path: Any, text: str, fingerprints: Sequence[str]) -> dict[str, Any]:
    """Check a saved map against the tokenizers it is loaded for.

    Args:
        path: File, for the message.
        text: Its contents.
        fingerprints: The student's and the teacher's.

    Returns:
        The record.

    Raises:
        ValueError: If it is no record, or that of other tokenizers.
    """
    try:
        record = json.loads(text)
    except json.JSONDecodeError:
        record = None
    if not isinstance(record, dict) or record.get("format") != MAP_FORMAT:
        raise ValueError(
            f"VocabMap.load: {path} is no map that VocabMap.save wrote; make the map again with "
            "VocabMap.from_tokenizers."
        )
    for side, fingerprint in zip(("student", "teacher"), fingerprints, strict=True):
        if record[side] != fingerprint:
            raise ValueError(
                f"VocabMap.load: {path} was made from another {side} tokenizer (fingerprint "
                f"{record[side][:12]}, this one has {fingerprint[:12]}); make the map again with "
                "VocabMap.from_tokenizers."
            )
    return record


def check_tiling(function: str, units: Any, student_segments: Tensor, teacher_segments: Tensor) -> None:
    """Check that units fill segments without a gap.

    Args:
        function: Name for the message.
        units: `Units`.
        student_segments: (G, 2) int64.
        teacher_segments: (G, 2) int64.

    Raises:
        ValueError: Naming the first gap or unit that crosses a border.
    """
    spans = zip(units.student_spans.tolist(), units.teacher_spans.tolist(), strict=True)
    segments = zip(student_segments.tolist(), teacher_segments.tolist(), strict=True)
    for number, ((student, student_end), (teacher, teacher_end)) in enumerate(segments):
        at = student, teacher
        while at != (student_end, teacher_end):
            unit = next(spans, None)
            if unit is None or (unit[0][0], unit[1][0]) != at:
                found = "no unit" if unit is None else f"a unit at {unit[0][0]} and {unit[1][0]}"
                raise ValueError(
                    f"{function}: segment {number} is in units up to student token {at[0]} and teacher token "
                    f"{at[1]}, but then comes {found}; wanted units without a gap up to {student_end} and "
                    f"{teacher_end}."
                )
            at = unit[0][1], unit[1][1]
            if at[0] > student_end or at[1] > teacher_end:
                raise ValueError(
                    f"{function}: a unit ends at student token {at[0]} and teacher token {at[1]}, beyond "
                    f"segment {number}, which ends at {student_end} and {teacher_end}; align each segment on "
                    "its own."
                )
    left = next(spans, None)
    if left is not None:
        raise ValueError(
            f"{function}: a unit at student token {left[0][0]} and teacher token {left[1][0]} is in no "
            "segment; give the segments that were aligned."
        )


def _check_distinct(function: str, name: str, columns: Tensor) -> None:
    ranked = columns.sort().values
    if int(ranked[0]) < 0:
        raise ValueError(f"{function}: {name} holds {int(ranked[0])}; wanted token ids, from 0.")
    is_again = ranked[1:] == ranked[:-1]
    if bool(is_again.any()):
        raise ValueError(
            f"{function}: {name} holds {int(ranked[1:][is_again][0])} twice; wanted each column once, since "
            "one that occurs twice counts twice."
        )


def _check_ordered(function: str, name: str, spans: Tensor) -> None:
    # The end of the unit before; the first one may start anywhere from 0.
    before = torch.cat([spans.new_zeros(1), spans[:-1, 1]]) if spans.shape[0] else spans[:, 1]
    is_odd = (spans[:, 0] >= spans[:, 1]) | (spans[:, 0] < before)
    if bool(is_odd.any()):
        unit = int(is_odd.nonzero()[0])
        start, end = spans[unit].tolist()
        raise ValueError(
            f"{function}: {name}[{unit}] is [{start}, {end}); wanted at least one row, beginning at or after "
            f"row {int(before[unit])}, where the unit before it ends."
        )
