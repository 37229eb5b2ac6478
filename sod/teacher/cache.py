"""Teacher logits kept over the epochs of a round, within a limit."""

from __future__ import annotations

from collections.abc import Callable

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

    def source(self, first_key: int) -> Callable[[int, Batch], Tensor]:
        """Give the scores of a minibatch whose first microbatch has a key, by position and microbatch."""
        return lambda index, batch: self.logits(first_key + index, batch)

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
