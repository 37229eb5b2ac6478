"""What a teacher is: frozen, and asked for scores of what the student wrote."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from torch import Tensor

from sod.packing import Batch


class Capability(StrEnum):
    """What a teacher can give."""

    LOGITS = "logits"


class Teacher(Protocol):
    """Scores the rows of a batch; never trained, never given a gradient."""

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
