"""Logits of frozen models kept over the epochs of a round, within a limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sod.packing import Batch
from sod.teacher.base import Teacher


class RoundScores:
    """Scores of one round's microbatches, kept within a limit and computed again beyond it."""

    def __init__(self, teacher: Teacher, *, max_bytes: int) -> None:
        """Start with nothing kept.

        Args:
            teacher: Who scores.
            max_bytes: Memory for kept logits; 0 keeps none.
        """
        self._teacher = teacher
        self._bytes_left = max_bytes
        self._kept: dict[int, Tensor] = {}

    def logits(self, key: int, batch: Batch) -> Tensor:
        """Score a microbatch.

        Args:
            key: Names the microbatch within the round.
            batch: The microbatch.

        Returns:
            (N, V) logits, without a gradient.
        """
        if key in self._kept:
            return self._kept[key]
        logits = self._teacher.logits(batch)
        if logits.nbytes <= self._bytes_left:
            self._bytes_left -= logits.nbytes
            self._kept[key] = logits
        return logits


class Targets(NamedTuple):
    """What the student is compared with on one microbatch; (N, V) each, without a gradient."""

    teacher: Tensor | None
    reference: Tensor | None


class RoundTargets:
    """Teacher and reference of one round, which share the memory for kept logits."""

    def __init__(self, teacher: Teacher | None, reference: Teacher | None, *, max_bytes: int) -> None:
        """Start with nothing kept.

        Args:
            teacher: Who teaches; None for an algorithm without.
            reference: The policy that the run started from; None for an algorithm without.
            max_bytes: Memory for kept logits of both; 0 keeps none.
        """
        models = (teacher, reference)
        share = max_bytes // max(1, sum(model is not None for model in models))
        self._scores = [None if model is None else RoundScores(model, max_bytes=share) for model in models]

    def source(self, first_key: int) -> Callable[[int, Batch], Targets]:
        """Give the targets of a minibatch whose first microbatch has a key, by position and microbatch."""
        return lambda index, batch: Targets(
            *(None if scores is None else scores.logits(first_key + index, batch) for scores in self._scores)
        )
