"""Plays a stored run back: the same turns, against the tools and environments of today."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sod.engines.base import Generation, Respond, SamplingParams, WeightlessEngine
from sod.errors import RolloutError
from sod.types import Trajectory, Turn


@dataclass(frozen=True, kw_only=True)
class _Sequence:
    """One segment of a stored trajectory: what an engine sampled as one row."""

    number: int
    task_id: str
    first_turn: int
    turns: tuple[Turn, ...]

    def describe(self, index: int) -> str:
        return f"trajectory {self.number} (task {self.task_id!r}), turn {self.first_turn + index}"


class ReplayEngine(WeightlessEngine):
    """Gives every row the turns of the first stored sequence that begins with its prompt.

    Prompts and observations must be those of the stored run to the token: a turn sampled after other text
    would be a turn that never was. Each sequence is played once.

    Attributes:
        policy_version: That of the turns played last, or as last set; a stored run has one per round.
    """

    def __init__(self, trajectories: Sequence[Trajectory] = ()) -> None:
        """Take the trajectories.

        Args:
            trajectories: Those of a stored run, in its order; `load` gives others.
        """
        super().__init__()
        self.load(trajectories)

    def load(self, trajectories: Sequence[Trajectory]) -> None:
        """Take other trajectories in the place of those that are left.

        Args:
            trajectories: Those of a round of a stored run, in its order.
        """
        self._unused = [
            sequence
            for number, trajectory in enumerate(trajectories)
            for sequence in _sequences(number, trajectory)
        ]

    def rollout(
        self, prompts: Sequence[tuple[int, ...]], respond: Respond, params: SamplingParams, *, seed: int
    ) -> None:
        """Play one sequence per row; all rows end their n-th turn at the same time.

        Args:
            prompts: One token id sequence per row.
            respond: Answers every ended turn.
            params: Not read; the turns are as long as they were.
            seed: Not read.

        Raises:
            RolloutError: No stored sequence begins with a prompt; an observation is not the stored one,
                naming the first token that differs; or a row is over at another turn than it was.
        """
        running = [(row, self._take(row, prompt)) for row, prompt in enumerate(prompts)]
        index = 0
        while running:
            ended = [(row, _generation(sequence.turns[index])) for row, sequence in running]
            self.policy_version = running[0][1].turns[index].policy_version
            answers = respond(ended)
            index += 1
            running = [
                (row, sequence)
                for (row, sequence), ids in zip(running, answers, strict=True)
                if _goes_on(sequence, index, ids)
            ]

    def _take(self, row: int, prompt: tuple[int, ...]) -> _Sequence:
        for place, sequence in enumerate(self._unused):
            if sequence.turns[0].context_ids == tuple(prompt):
                return self._unused.pop(place)
        raise RolloutError(
            f"ReplayEngine.rollout: no stored sequence begins with the prompt of row {row} ({len(prompt)} "
            f"tokens), {len(self._unused)} are left. Replay with the tasks, template and num_samples of the "
            "stored run."
        )


def _sequences(number: int, trajectory: Trajectory) -> list[_Sequence]:
    bounds = [*trajectory.segments, len(trajectory.turns)]
    return [
        _Sequence(
            number=number, task_id=trajectory.task_id, first_turn=start, turns=trajectory.turns[start:end]
        )
        for start, end in pairwise(bounds)
    ]


def _goes_on(sequence: _Sequence, index: int, ids: Sequence[int] | None) -> bool:
    is_stored_over = index == len(sequence.turns)
    if (ids is None) != is_stored_over:
        happened, stored = ("goes on", "was its last") if is_stored_over else ("is over", "was not its last")
        raise RolloutError(
            f"ReplayEngine.rollout: {sequence.describe(index - 1)}: the row {happened} after it, but in the "
            f"stored run it {stored}; limits or environment are not those of the stored run."
        )
    if ids is None:
        return False
    stored_ids = sequence.turns[index].context_ids
    if tuple(ids) != stored_ids:
        pairs = zip(ids, stored_ids, strict=False)
        shorter = min(len(ids), len(stored_ids))
        place = next((i for i, (got, was) in enumerate(pairs) if got != was), shorter)
        raise RolloutError(
            f"ReplayEngine.rollout: {sequence.describe(index)}: the observation before it has {len(ids)} "
            f"tokens, stored are {len(stored_ids)}; they differ from token {place} on (now "
            f"{list(ids[place : place + 1])}, stored {list(stored_ids[place : place + 1])}). Template or "
            "tools are not those of the stored run."
        )
    return True


def _generation(turn: Turn) -> Generation:
    return Generation(
        sampled_ids=turn.sampled_ids,
        log_probs=turn.sampled_log_probs,
        stop_reason=turn.stop_reason,
        is_truncated=turn.is_truncated,
    )
