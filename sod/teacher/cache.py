"""Scores of frozen models kept over the epochs of a round: within a limit, or in host memory where they wait.

A model on the device is asked when an update needs its scores. One whose weights wait in host memory (an
offloaded teacher) is asked in a phase of its own before the updates, and gone when they begin.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import groupby
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import torch

from sod.packing import Batch
from sod.scoring import ModelScores, TeacherScores
from sod.teacher.base import AnyTeacher, teacher_scores
from sod.teacher.factory import local_teachers
from sod.teacher.local import LocalTeacher
from sod.teacher.own import CurrentPolicy

HOST = torch.device("cpu")


class _Scores(Protocol):
    @property
    def nbytes(self) -> int: ...

    def to(self, device: torch.device, /) -> Self: ...


Scores = TypeVar("Scores", bound=_Scores)


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
            What `ask` gave for it, on the microbatch's device.
        """
        if key in self._kept:
            return self._kept[key].to(batch.rows.device)
        scores = self._ask(batch)
        if scores.nbytes <= self._bytes_left:
            self._bytes_left -= scores.nbytes
            self._kept[key] = scores
        return scores

    def ask_ahead(self, key: int, batch: Batch) -> None:
        """Score a microbatch now, and keep the scores in host memory beyond any limit.

        Args:
            key: Names the microbatch within the round.
            batch: The microbatch.
        """
        self._kept[key] = self._ask(batch).to(HOST)


class Targets(NamedTuple):
    """What the student is compared with on one microbatch, without a gradient."""

    teacher: TeacherScores | None
    reference: ModelScores | None


class RoundTargets:
    """Teacher and reference of one round, which share the memory for kept scores.

    Attributes:
        metrics: Of the phase in which offloaded models score; empty without one.
    """

    def __init__(self, teacher: AnyTeacher | None, reference: LocalTeacher | None, *, max_bytes: int) -> None:
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
        self._offloaded: list[tuple[RoundScores[Any], list[LocalTeacher]]] = []
        for scores, owner in ((self._teacher, teacher), (self._reference, reference)):
            models = [one for one in local_teachers(owner) if one.copy_weight is not None]
            if scores is not None and models:
                self._offloaded.append((scores, models))
        self.metrics: dict[str, float] = {}

    def score_ahead(
        self, batches: Mapping[int, Batch], report: Callable[[int, int], None] | None = None
    ) -> None:
        """Ask offloaded models now, one after the other, and whoever is routed beside them.

        A resident teacher or reference is asked when an update needs it.

        Args:
            batches: Microbatches by their key, all that the updates to come will ask for.
            report: Called with scored microbatches and their number, over all models.
        """
        started, num_done = time.perf_counter(), 0

        def route_of(key: int) -> str:
            return batches[key].route

        for scores, models in self._offloaded:
            for _, keys in groupby(sorted(batches, key=route_of), key=route_of):
                try:
                    for key in keys:
                        scores.ask_ahead(key, batches[key])
                        num_done += 1
                        if report is not None:
                            report(num_done, len(batches) * len(self._offloaded))
                finally:
                    for model in models:
                        model.release()
        if self._offloaded:
            self.metrics = {"time/score_s": time.perf_counter() - started}

    def source(self, first_key: int) -> Callable[[int, Batch], Targets]:
        """Give the targets of a minibatch whose first microbatch has a key, by position and microbatch."""

        def targets(index: int, batch: Batch) -> Targets:
            key, teacher, reference = first_key + index, self._teacher, self._reference
            return Targets(
                teacher=None if teacher is None else teacher.scores(key, batch),
                reference=None if reference is None else reference.scores(key, batch),
            )

        return targets
