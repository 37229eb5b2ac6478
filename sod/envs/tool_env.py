"""The standard environment: tools are called until the student answers without a call."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from sod.envs.base import StepResult
from sod.parsing import ParsedTurn
from sod.rewards import Reward
from sod.types import EndReason, Message, Task, ToolResult

if TYPE_CHECKING:
    from sod.tools import Tool


class ToolEnvironment:
    """Gives every result back as a role "tool" message; a turn without a call is the final answer.

    Calls that are malformed or name no tool get their error as text like any other result.

    Attributes:
        tools: The tools that the student may call.
    """

    tools: Sequence[Tool]

    def __init__(
        self,
        task: Task,
        tools: Sequence[Tool],
        reward: Reward,
        *,
        max_errors_in_a_row: int | None = None,
        success_threshold: float = 1.0,
    ) -> None:
        """Prepare one attempt; `functools.partial` over the rest makes the factory.

        Args:
            task: The task, with its opening messages.
            tools: The tools that the student may call; those that keep state get one of their own.
            reward: Scores the content of the final answer.
            max_errors_in_a_row: Error results without a good one between them that end the attempt; None
                never ends it.
            success_threshold: Reward from which on the task counts as solved.
        """
        if max_errors_in_a_row is not None and max_errors_in_a_row < 1:
            raise ValueError(
                f"ToolEnvironment: max_errors_in_a_row must be 1 or more, or None; got {max_errors_in_a_row}."
            )
        self._open = ExitStack()
        self.tools = tuple(
            one if one.for_trajectory is None else one.for_trajectory(self._open) for one in tools
        )
        self._task = task
        self._reward = reward
        self._max_errors_in_a_row = max_errors_in_a_row
        self._success_threshold = success_threshold
        self._num_errors_in_a_row = 0

    def reset(self) -> tuple[Message, ...]:
        """Begin an attempt.

        Returns:
            The task's messages.
        """
        self._num_errors_in_a_row = 0
        return self._task.messages

    def step(self, turn: ParsedTurn, results: tuple[ToolResult, ...]) -> StepResult:
        """Answer one assistant turn.

        Args:
            turn: What the student wrote.
            results: One per call of the turn.

        Returns:
            The results as messages, or the score of the final answer.
        """
        if not turn.calls:
            reward = float(self._reward(self._task, turn.content))
            return StepResult(reward=reward, is_done=True, is_success=reward >= self._success_threshold)
        if self._has_too_many_errors(results):
            return StepResult(results=results, is_done=True, end_reason=EndReason.MAX_ERRORS)
        return StepResult(results=results, messages=tuple(_message(result) for result in results))

    def close(self) -> None:
        """End what the tools keep for this attempt; the tools belong to whoever made them."""
        self._open.close()

    def _has_too_many_errors(self, results: Sequence[ToolResult]) -> bool:
        has_too_many = False
        for result in results:
            self._num_errors_in_a_row = self._num_errors_in_a_row + 1 if result.is_error else 0
            has_too_many |= self._num_errors_in_a_row == self._max_errors_in_a_row
        return has_too_many


def _message(result: ToolResult) -> Message:
    message = {"role": "tool", "content": result.text}
    return {**message, "name": result.name} if result.name else message
