"""What answers an assistant turn: the environment protocol.

The collector asks an environment nothing between parsing a turn and `step`: it runs the calls of all rows
that ended a turn together (`ToolRunner.run_batch` over every environment's own tools), then hands each
environment its turn and the results, several at the same time. An environment that answers without tools
ignores the results. It is never asked by two threads at once, but not always by the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sod.parsing import ParsedTurn
from sod.types import EndReason, Message, Task, ToolResult

if TYPE_CHECKING:
    from sod.tools import Tool


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """An environment's answer to one turn.

    Attributes:
        messages: What the student reads next (role "tool" or "user"); ignored where the trajectory is over.
        prompt: Messages that replace all that was read so far: the next turn begins a sequence of its own
            with them, and `messages` is not read. Empty leaves that to the history setting.
        results: What the tools answered, kept with the turn.
        reward: Reward for this turn; a trajectory's reward is the sum.
        is_done: Whether the trajectory is over.
        is_success: Whether the task is solved.
        end_reason: Why it is over; read only with `is_done`.
    """

    messages: tuple[Message, ...] = ()
    prompt: tuple[Message, ...] = ()
    results: tuple[ToolResult, ...] = ()
    reward: float = 0.0
    is_done: bool = False
    is_success: bool = False
    end_reason: EndReason = EndReason.DONE


class Environment(Protocol):
    """One attempt at one task.

    Attributes:
        tools: The tools that the student may call in this attempt.
    """

    tools: Sequence[Tool]

    def reset(self) -> tuple[Message, ...]:
        """Begin, and return the opening messages (usually those of the task)."""

    def step(self, turn: ParsedTurn, results: tuple[ToolResult, ...]) -> StepResult:
        """Answer one assistant turn.

        Args:
            turn: What the student wrote.
            results: One per call of the turn, in order, from this environment's tools.

        Returns:
            The answer.
        """

    def close(self) -> None:
        """Free what the attempt holds; called exactly once, also after an error."""


EnvironmentFactory = Callable[[Task], Environment]
"""Makes the environment of one attempt."""
