"""What a student reads of its earlier turns: everything, or a summary in a prompt of its own.

With everything, a trajectory is one growing sequence. With a summary every turn is a sequence of its own: its
prompt is the task, the last few turns as text, and what came back last. Contexts then stay short however long
the task is, at the price of reading the prompt anew in every turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sod.types import Message


@dataclass(frozen=True, kw_only=True)
class History:
    """How much of its earlier turns a student reads.

    Attributes:
        window: Turns that a prompt tells about. None lets the whole conversation grow in one sequence; any
            number, 0 included, gives every turn a sequence of its own.

    Raises:
        ValueError: The window is negative.
    """

    window: int | None = None

    def __post_init__(self) -> None:
        if self.window is not None and self.window < 0:
            raise ValueError(
                f"History: window must be 0 or more, or None for one growing sequence; got {self.window}."
            )


@dataclass(frozen=True, kw_only=True)
class PastTurn:
    """One turn as a summary tells it.

    Attributes:
        said: What the student wrote, thinking left out.
        answer: What came back.
    """

    said: str
    answer: str


def summary_prompt(
    opening: Sequence[Message], past: Sequence[PastTurn], *, window: int
) -> tuple[Message, ...]:
    """Write the prompt of a turn that does not grow out of the one before it.

    Args:
        opening: The messages that the trajectory began with.
        past: All turns so far, at least one; what came back after the last of them is always told in full.
        window: How many of them are told.

    Returns:
        The opening messages; the last of them, if it is the user's, goes on with the summary.
    """
    told = past[len(past) - min(window, len(past)) :]
    first = len(past) - len(told) + 1
    lines = [f"Turns taken so far: {len(past)}."]
    for number, turn in enumerate(told, start=first):
        lines.append(f"Turn {number}, you wrote:\n{turn.said}")
        if number < len(past):
            lines.append(f"Turn {number}, the answer was:\n{turn.answer}")
    lines.append(f"The latest answer is:\n{past[-1].answer}")
    text = "\n\n".join(lines)
    last = opening[-1]
    if last["role"] != "user":
        return (*opening, {"role": "user", "content": text})
    return (*opening[:-1], {**last, "content": f"{last['content']}\n\n{text}"})


def text_of(messages: Sequence[Message]) -> str:
    """Join what messages say."""
    return "\n".join(str(message["content"]) for message in messages)
