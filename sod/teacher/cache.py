"""Scores of frozen models kept over the epochs of a round, within a limit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Generic, NamedTuple, Protocol, TypeVar

from sod.packing import Batch
from sod.scoring import ModelScores, TeacherScores
from sod.teacher.base import AnyTeacher, HiddenTeacher, teacher_scores
from sod.teacher.own import CurrentPolicy


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Scores = TypeVar("Scores", bound=_Sized)


class RoundScores(Generic[Scores]):
    """Scores of one round's microbatches, kept within a limit and computed again beyond it."""

    def __init__(self, ask: Callable[[Batch], Scores], *, max_bytes: int) -> None:
        """Start with nothing kept.

        Args:
            ask: Scores a microbatch.
            max_bytes: Memory for kept scores; 0 keeps none.
        """
        self._ask = ask
        self._bytes_left = max_bytes
        self._kept: dict[int, Scores] = {}

    def scores(self, key: int, batch: Batch) -> Scores:
        """Score a microbatch.

        Args:
            key: Names the microbatch within the round.
            batch: The microbatch.

        Returns:
            What `ask` gave for it.
        """
        if key in self._kept:
            return self._kept[key]
        scores = self._ask(batch)
        if scores.nbytes <= self._bytes_left:
            self._bytes_left -= scores.nbytes
            self._kept[key] = scores
        return scores


class Targets(NamedTuple):
    """What the student is compared with on one microbatch, without a gradient."""

    teacher: TeacherScores | None
    reference: ModelScores | None


class RoundTargets:
    """Teacher and reference of one round, which share the memory for kept scores."""

    def __init__(
        self, teacher: AnyTeacher | None, reference: HiddenTeacher | None, *, max_bytes: int
    ) -> None:
        """Start with nothing kept.

        Args:
            teacher: Who teaches; None for an algorithm without.
            reference: The policy that the run started from; None for an algorithm without.
            max_bytes: Memory for kept scores of both; 0 keeps none.
        """
        share = max_bytes // max(1, (teacher is not None) + (reference is not None))
        ask = None if teacher is None else partial(teacher_scores, teacher)
        # What changes with every update is not kept.
        kept = 0 if isinstance(teacher, CurrentPolicy) else share
        self._teacher = None if ask is None else RoundScores(ask, max_bytes=kept)
        self._reference = None if reference is None else RoundScores(reference.hidden, max_bytes=share)

    def source(self, first_key: int) -> Callable[[int, Batch], Targets]:
        """Give the targets of a minibatch whose first microbatch has a key, by position and microbatch."""

        def targets(index: int, batch: Batch) -> Targets:
            key, teacher, reference = first_key + index, self._teacher, self._reference
            return Targets(
                teacher=None if teacher is None else teacher.scores(key, batch),
                reference=None if reference is None else reference.scores(key, batch),
            )

        return targets
