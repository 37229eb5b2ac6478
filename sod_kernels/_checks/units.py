"""Checks of vocabulary maps and units."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sod_kernels._checks.values import can_look, check_tensor


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
