"""What a teacher is: frozen, and asked for scores of what the student wrote."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol, runtime_checkable

from torch import Tensor

from sod.packing import Batch
from sod.scoring import HiddenRows, TeacherScores


class Capability(StrEnum):
    """What a teacher can give."""

    HIDDEN = "hidden"
    """Hidden states and the head: logits that need not be held."""
    LOGITS = "logits"
    TOP_K = "top_k"
    """Log-probabilities of the most likely ids and of the sampled one."""
    SAMPLED = "sampled"
    """Log-probability of the sampled id."""


@runtime_checkable
class Teacher(Protocol):
    """Scores the rows of a batch with logits; never trained, never given a gradient."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can give."""

    def logits(self, batch: Batch) -> Tensor:
        """Score the rows of a batch.

        Args:
            batch: The microbatch, N rows.

        Returns:
            (N, V) logits, without a gradient.
        """


@runtime_checkable
class HiddenTeacher(Protocol):
    """Scores the rows of a batch with hidden states and a head; never trained, never given a gradient."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can give."""

    def hidden(self, batch: Batch) -> HiddenRows:
        """Score the rows of a batch.

        Args:
            batch: The microbatch, N rows.

        Returns:
            N rows, without a gradient.
        """


@runtime_checkable
class ListingTeacher(Protocol):
    """Lists log-probabilities of a few ids per row: a teacher whose logits are too large to travel."""

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can give."""

    def top_scores(self, batch: Batch) -> TeacherScores:
        """Score the rows of a batch.

        Args:
            batch: The microbatch, N rows.

        Returns:
            K ids of each row and their log-probabilities, or all as (N, V) logits.
        """

    def close(self) -> None:
        """Release what it holds."""


AnyTeacher = Teacher | HiddenTeacher | ListingTeacher
"""Whoever can teach."""


def teacher_scores(teacher: AnyTeacher, batch: Batch) -> TeacherScores:
    """Ask a teacher for the most that it can give, showing it what it is told.

    Args:
        teacher: Any teacher.
        batch: The microbatch as the student reads it, N rows; `batch.of_teacher` is scored, M rows.

    Returns:
        Hidden states, logits or the listed ids of every row.
    """
    read = batch.of_teacher
    if isinstance(teacher, HiddenTeacher):
        return teacher.hidden(read)
    return teacher.logits(read) if isinstance(teacher, Teacher) else teacher.top_scores(read)
