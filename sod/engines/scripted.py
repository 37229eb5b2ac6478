"""An engine that answers from a script: for tests, and to turn written text into trajectories."""

from __future__ import annotations

from collections.abc import Sequence

from sod.engines.base import Generation, Respond, SamplingParams, WeightlessEngine
from sod.errors import RolloutError
from sod.types import StopReason

Script = Sequence[Sequence[int]]
"""The turns of one row, each as token ids with its stop token."""


class ScriptedEngine(WeightlessEngine):
    """Gives every row the turns of the next unused script."""

    def __init__(self, scripts: Sequence[Script]) -> None:
        """Take the scripts.

        Args:
            scripts: One per row, in the order in which rows are asked for over all rollouts.
        """
        super().__init__()
        self._scripts = list(scripts)
        self._num_used = 0

    def rollout(
        self, prompts: Sequence[tuple[int, ...]], respond: Respond, params: SamplingParams, *, seed: int
    ) -> None:
        """Play one script per row; all rows end their n-th turn at the same time.

        Args:
            prompts: One token id sequence per row.
            respond: Answers every ended turn.
            params: Its stop_ids and max_turn_tokens hold for scripts too; longer turns are cut.
            seed: Not read.

        Raises:
            RolloutError: There is no script for a row, or a script ends before its trajectory.
        """
        scripts = self._scripts[self._num_used : self._num_used + len(prompts)]
        if len(scripts) < len(prompts):
            raise RolloutError(
                f"ScriptedEngine.rollout: {len(prompts)} rows asked for, {len(scripts)} scripts are left of "
                f"{len(self._scripts)}; give one script per row."
            )
        self._num_used += len(prompts)
        running, index = list(range(len(prompts))), 0
        while running:
            ended = [(row, _generation(row, scripts[row], index, params)) for row in running]
            answers = respond(ended)
            running = [row for row, ids in zip(running, answers, strict=True) if ids is not None]
            index += 1


def _generation(row: int, script: Script, index: int, params: SamplingParams) -> Generation:
    if index >= len(script):
        raise RolloutError(
            f"ScriptedEngine.rollout: the script of row {row} has {len(script)} turns, but its trajectory "
            "goes on; add a turn or end the trajectory sooner."
        )
    ids = tuple(script[index][: params.max_turn_tokens])
    is_stopped = bool(ids) and ids[-1] in params.stop_ids
    reason = StopReason.STOP_TOKEN if is_stopped else StopReason.LENGTH
    return Generation(sampled_ids=ids, log_probs=(), stop_reason=reason)
