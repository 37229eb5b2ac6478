"""Coefficients that change over a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LinearSchedule:
    """A line from `start` to `end` over `length` rounds, then `end`.

    Attributes:
        start: Value before the first round.
        end: Value from round `length` on.
        length: Rounds that the change takes; 0 keeps `start` for ever.

    Source: arXiv 2606.27814, equations (10) to (12); rounds are counted from 1, as in the released code.
    """

    start: float
    end: float
    length: int

    def at(self, round_number: int) -> float:
        """Give the value in a round.

        Args:
            round_number: 1 for the first.
        """
        if self.length == 0:
            return self.start
        progress = min(round_number / self.length, 1.0)
        return self.start + (self.end - self.start) * progress


def constant(value: float) -> LinearSchedule:
    """Make a schedule that keeps one value."""
    return LinearSchedule(start=value, end=value, length=0)
