"""What two tokenizers share: paired columns of their vocabularies, and units that spell the same bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sod_kernels._checks import units as _checks


@dataclass(frozen=True, eq=False)
class VocabMap:
    """Columns of the two vocabularies that mean the same token, one to one.

    Column `student_columns[c]` of the student's logits and `teacher_columns[c]` of the teacher's are the
    shared column c. Their order means nothing.

    Attributes:
        student_columns: (C,) int64, distinct.
        teacher_columns: (C,) int64, distinct, on the same device.
    """

    student_columns: Tensor
    teacher_columns: Tensor

    def __post_init__(self) -> None:
        _checks.check_columns("VocabMap", self.student_columns, self.teacher_columns)

    @property
    def num_shared(self) -> int:
        """Number of shared columns, C."""
        return self.student_columns.shape[0]


@dataclass(frozen=True, eq=False)
class Units:
    """Spans of tokens on both sides that spell the same bytes, in order.

    Unit u is the student's labels [start, end) = `student_spans[u]` and the teacher's `teacher_spans[u]`.
    Tokens between two spans are in no unit.

    Attributes:
        student_spans: (U, 2) int64, ascending, disjoint, none empty.
        teacher_spans: (U, 2) int64, likewise, on the same device.
    """

    student_spans: Tensor
    teacher_spans: Tensor

    def __post_init__(self) -> None:
        _checks.check_spans("Units", self.student_spans, self.teacher_spans)

    def __len__(self) -> int:
        return self.student_spans.shape[0]

    def to(self, device: torch.device | str) -> Units:
        """Copy the spans to a device.

        Args:
            device: Where to.

        Returns:
            Units there; the same tensors if they are there already.
        """
        return Units(self.student_spans.to(device), self.teacher_spans.to(device))

    def is_one_to_one(self) -> Tensor:
        """Tell which units have one token on each side.

        Returns:
            (U,) bool.
        """
        lengths = torch.stack([self.student_spans, self.teacher_spans]).diff(dim=-1)
        return (lengths == 1).all(0).squeeze(-1)
