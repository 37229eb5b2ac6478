"""Demonstrations: an environment's own expert plays, and the conversation is written down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from sod.envs.base import Environment
from sod.errors import RolloutError
from sod.parsing import parse_hermes
from sod.types import Message, Task


@runtime_checkable
class ExpertEnvironment(Environment, Protocol):
    """An environment that knows what a good turn would be."""

    def expert_turn(self) -> str:
        """Write the next assistant turn, for the state that the attempt is in."""


def expert_conversation(environment: Environment, task: Task, *, max_turns: int) -> list[Message]:
    """Let the expert of an environment play one attempt, and close the environment.

    Args:
        environment: Not begun, without tools.
        task: What it attempts, for errors.
        max_turns: Turns that the expert may take.

    Returns:
        The conversation, which ends with the turn that solved the task.

    Raises:
        RolloutError: There is no expert, or it does not solve the task in so many turns.
    """
    try:
        if not isinstance(environment, ExpertEnvironment) or environment.tools:
            raise RolloutError(
                f"expert_conversation: {type(environment).__name__} has no expert that plays without tools; "
                "take demonstrations from elsewhere."
            )
        messages: list[Message] = list(environment.reset())
        for _ in range(max_turns):
            text = environment.expert_turn()
            messages.append({"role": "assistant", "content": text})
            step = environment.step(parse_hermes(text), ())
            if step.is_success:
                return messages
            if step.is_done:
                break
            messages += step.messages
    finally:
        environment.close()
    raise RolloutError(
        f"expert_conversation: the expert did not solve task {task.task_id!r} in {max_turns} turns; the last "
        f"observation was {_last_text(messages)!r}. Allow more turns, or leave the task out."
    )


def _last_text(messages: Sequence[Message]) -> str:
    return str(next((one["content"] for one in reversed(messages) if one["role"] != "assistant"), ""))[-200:]
