"""Worlds that are played with one line of text per turn, and the environment around them.

A world (`TextGame`) knows observations and actions, nothing of chats or rewards. `TextEnvironment` reads the
action of a turn, `<action>open the fridge</action>`, plays it, and decides reward, success and what the
student reads next. A turn without a readable action is answered with an error text and changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Protocol, runtime_checkable

from sod.config_environments import ActionSection, penalty_of
from sod.config_schema import AtLeast
from sod.envs.base import StepResult
from sod.errors import DataError
from sod.parsing import ParsedTurn
from sod.tools.calls import ParseFailure
from sod.tools.truncation import truncate_middle
from sod.types import Message, Task, ToolCall, ToolOutcome, ToolResult

if TYPE_CHECKING:
    from sod.tools import Tool

ACTION_OPEN = "<action>"
ACTION_CLOSE = "</action>"
ACTION_CALL = "act"
"""Name of the call that a parser may make of an action."""
_ACTION = re.compile(f"{ACTION_OPEN}(.*?){ACTION_CLOSE}", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What a world shows after an action.

    Attributes:
        text: What there is to read.
        actions: Actions that are possible now, in order; empty where the world does not list them.
        score: Score so far; 1 where everything is reached, unless the world counts otherwise.
        is_done: Whether the game is over.
        is_success: Whether the task is solved.
        is_understood: Whether the world could do anything with the action.
    """

    text: str
    actions: tuple[str, ...] = ()
    score: float = 0.0
    is_done: bool = False
    is_success: bool = False
    is_understood: bool = True


class TextGame(Protocol):
    """One game of a world."""

    def begin(self) -> Observation:
        """Start the game and show what there is at its beginning."""

    def act(self, action: str) -> Observation:
        """Do one action, a line without line breaks and never empty."""

    def close(self) -> None:
        """Free what the game holds."""


@runtime_checkable
class ExpertGame(TextGame, Protocol):
    """A game that knows how it is won."""

    def expert_action(self) -> str:
        """Give a good action for the state that the game is in."""


@dataclass(frozen=True, kw_only=True)
class TextSection(ActionSection):
    """What every text world can set."""

    show_actions: bool = True
    """Whether the student reads the list of possible actions, where the world has one."""
    reward: Literal["score", "success"] = "score"
    """"score" gives what every turn adds to the score, "success" 1 at the end of a solved task."""
    invalid_action: Literal["unreadable", "impossible"] = "unreadable"
    """Which turns count as errors: those without a readable action, or also those that the world refused."""
    max_observation_chars: Annotated[int, AtLeast(64)] = 4096
    """Longest observation, in characters; the middle is cut out."""


class TextEnvironment:
    """Plays a text game for one trajectory; see the module's text.

    Attributes:
        tools: There are none; actions are text.
    """

    tools: Sequence[Tool] = ()

    def __init__(self, task: Task, game: TextGame, section: TextSection) -> None:
        """Prepare one attempt.

        Args:
            task: Its last message is the instruction; the first observation is put behind it.
            game: Not begun.
            section: Settings.

        Raises:
            DataError: The task does not end with a user message.
        """
        if not task.messages or task.messages[-1]["role"] != "user":
            raise DataError(
                f"TextEnvironment: task {task.task_id!r} must end with a user message, to which the first "
                f"observation is added; it has roles {[message['role'] for message in task.messages]}."
            )
        self._task = task
        self._game = game
        self._section = section
        self._last = Observation(text="")

    def reset(self) -> tuple[Message, ...]:
        """Begin the game.

        Returns:
            The task's messages, the last with the first observation.
        """
        self._last = self._game.begin()
        *before, instruction = self._task.messages
        content = f"{instruction['content']}\n\n{self._shown(self._last)}"
        return (*before, {**instruction, "content": content})

    def step(self, turn: ParsedTurn, results: tuple[ToolResult, ...]) -> StepResult:
        """Play one turn.

        Args:
            turn: What the student wrote.
            results: Not read; calls of tools mean nothing here.

        Returns:
            The observation, or what could not be read. `results` says how the action went.
        """
        action = read_action(turn)
        if isinstance(action, ActionError):
            # A world that stands still is seen as it was.
            text = f"{action.reason}\n\n{self._shown(self._last)}"
            return self._answer(text, ToolOutcome.INVALID_JSON, 0.0)
        before, self._last = self._last, self._game.act(action)
        is_refused = not self._last.is_understood and self._section.invalid_action == "impossible"
        gain = self._last.score - before.score
        if self._section.reward == "success":
            gain = float(self._last.is_success)
        outcome = ToolOutcome.TOOL_ERROR if is_refused else ToolOutcome.OK
        return self._answer(self._shown(self._last), outcome, gain)

    def close(self) -> None:
        """End the game."""
        self._game.close()

    def expert_turn(self) -> str:
        """Give what an expert would write now.

        Returns:
            A whole assistant turn.

        Raises:
            DataError: The game knows no expert.
        """
        if not isinstance(self._game, ExpertGame):
            raise DataError(
                f"TextEnvironment: {type(self._game).__name__} has no expert, asked for one in task "
                f"{self._task.task_id!r}; take demonstrations from elsewhere."
            )
        return f"{ACTION_OPEN}{self._game.expert_action()}{ACTION_CLOSE}"

    def _answer(self, text: str, outcome: ToolOutcome, gain: float) -> StepResult:
        result = ToolResult(name="action", outcome=outcome, text=text)
        return StepResult(
            messages=({"role": "user", "content": text},),
            results=(result,),
            reward=gain - (penalty_of(self._section) if result.is_error else 0.0),
            is_done=self._last.is_done,
            is_success=self._last.is_success,
        )

    def _shown(self, observation: Observation) -> str:
        text = truncate_middle(observation.text.strip(), self._section.max_observation_chars)
        if not (self._section.show_actions and observation.actions) or observation.is_done:
            return text
        return "\n".join([text, "", "Possible actions:", *(f"- {action}" for action in observation.actions)])


@dataclass(frozen=True, kw_only=True)
class ActionError:
    """Why a turn has no readable action, in words for the student."""

    reason: str


def read_action(turn: ParsedTurn) -> str | ActionError:
    """Read the one action of a turn.

    Args:
        turn: The action stands in its content, or is a call of `act` where the renderer's parser made one.

    Returns:
        The action in one line, or why there is none.
    """
    failures = [call.reason for call in turn.calls if isinstance(call, ParseFailure)]
    if failures:
        return ActionError(reason=f"error: the action cannot be read: {failures[0]}")
    calls = [call for call in turn.calls if isinstance(call, ToolCall) and call.name == ACTION_CALL]
    written = [str(call.arguments.get("action", "")) for call in calls] + _ACTION.findall(turn.content)
    found = [" ".join(action.split()) for action in written]
    if not found:
        return ActionError(
            reason=f"error: no action was found; write exactly one, {ACTION_OPEN}like this{ACTION_CLOSE}"
        )
    if len(found) > 1:
        return ActionError(reason=f"error: {len(found)} actions were found; write exactly one per turn")
    return found[0] or ActionError(reason="error: the action is empty")


def text_instruction(world: str) -> str:
    """Write the instruction of a text world: what it is, and how to act in it.

    Args:
        world: One or more sentences about the world and its goal.

    Returns:
        The text that the first observation is put behind.
    """
    return (
        f"{world}\nEach turn, think about what to do, then give exactly one action between {ACTION_OPEN} and "
        f"{ACTION_CLOSE}, for example {ACTION_OPEN}look{ACTION_CLOSE}."
    )
