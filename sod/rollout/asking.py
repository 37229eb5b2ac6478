"""Environments of many attempts, asked side by side and not waited for for ever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from sod.envs.base import Environment
from sod.tools import Piece, ToolUnavailableError

if TYPE_CHECKING:
    from sod.tools import ToolRunner

T = TypeVar("T")


class HeldEnvironment:
    """The environment of one attempt, closed once: when the attempt ends, or when it comes back at last.

    Attributes:
        environment: Whatever it is.
        is_closed: Whether nobody may ask it any more.
    """

    def __init__(self, environment: Environment, task_id: str) -> None:
        """Hold an environment.

        Args:
            environment: Not begun.
            task_id: Of its task, for errors.
        """
        self.environment = environment
        self.is_closed = False
        self._task_id = task_id

    def close(self) -> None:
        """Close it, unless that was done or its thread will do it."""
        if not self.is_closed:
            self.is_closed = True
            self.environment.close()

    def piece(self, question: Callable[[], T], timeout_s: float) -> Piece[T | ToolUnavailableError]:
        """Say how a question is asked; an environment that does not answer in time is asked no more.

        Args:
            question: A call of the environment.
            timeout_s: Seconds that it may take.

        Returns:
            The work: its result is the answer, or why there is none.
        """

        def overdue(seconds: float) -> ToolUnavailableError:
            self.is_closed = True
            return ToolUnavailableError(
                f"the environment of task {self._task_id!r} did not answer within {timeout_s:g} s"
            )

        return Piece(
            work=lambda: _answer(question),
            timeout_s=timeout_s,
            overdue=overdue,
            # What runs in it still must not be closed under it.
            late=self.environment.close,
        )


class Asker:
    """Asks environments, one question each.

    Args:
        runner: Has the threads.
        timeout_s: Seconds that an answer may take; None asks one after the other in the caller's thread.

    Raises:
        ValueError: The time is no positive number.
    """

    def __init__(self, runner: ToolRunner, timeout_s: float | None) -> None:
        if timeout_s is not None and not 0 < timeout_s < float("inf"):
            raise ValueError(
                f"collect: environment_timeout_s is {timeout_s}, wanted a positive number of seconds; "
                "or None, to ask one after the other in this thread."
            )
        self._runner = runner
        self._timeout_s = timeout_s

    def ask(
        self, held: Sequence[HeldEnvironment], questions: Sequence[Callable[[], T]]
    ) -> list[T | ToolUnavailableError]:
        """Ask.

        Args:
            held: The environments.
            questions: A call of each.

        Returns:
            The answers in the order asked, or why there is none.
        """
        limit_s = self._timeout_s
        if limit_s is None:
            return [_answer(question) for question in questions]
        return self._runner.side_by_side(
            [one.piece(question, limit_s) for one, question in zip(held, questions, strict=True)]
        )


def _answer(question: Callable[[], T]) -> T | ToolUnavailableError:
    try:
        return question()
    except ToolUnavailableError as error:
        # What scores the answer is down: no score at all, and never a made-up one.
        return error
