"""The data that flows through the loop, each arrow one type.

`Task -> (rollout) -> Trajectory of Turns -> (tokenization) -> TokenSequence -> (packing) -> Batch`.
All are frozen, and checked when they are made: no stage changes what an earlier one made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any

Message = Mapping[str, Any]
"""One chat message in the Hugging Face form: `role`, `content`, for an assistant also `tool_calls`."""


class ToolOutcome(StrEnum):
    """How one tool call ended."""

    OK = "ok"
    TOOL_ERROR = "tool_error"
    TIMEOUT = "timeout"
    INVALID_JSON = "invalid_json"
    UNKNOWN_TOOL = "unknown_tool"
    BAD_ARGS = "bad_args"
    KILLED = "killed"
    UNAVAILABLE = "unavailable"
    """The tool itself is down: the trajectory is dropped and retried, never trained on."""


class StopReason(StrEnum):
    """Why an engine stopped sampling a turn."""

    STOP_TOKEN = "stop_token"  # noqa: S105
    LENGTH = "length"


class EndReason(StrEnum):
    """Why a trajectory ended."""

    DONE = "done"
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"
    MAX_ERRORS = "max_errors"


class Drift(StrEnum):
    """What a program that keeps messages instead of token ids would have made of a turn.

    The ids that were sampled are kept in every case; this says how far a re-tokenised conversation would
    have been from them.
    """

    CLEAN = "clean"
    """The turn's text gives these very ids."""
    REALIGN = "realign"
    """The turn's text gives other ids, or does not hold all that was sampled (a piece of a character)."""
    FORK = "fork"
    """What followed does not extend what was read and written: a new token sequence begins after the turn."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One problem to roll out: the opening messages and whatever its environment needs.

    Attributes:
        task_id: Stable name, unique within a data set.
        messages: The opening conversation (system, user).
        fields: Everything else of the row: ground truth, tables, data source.
    """

    task_id: str
    messages: tuple[Message, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call that the student wrote and the parser understood."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ToolResult:
    """What came back from one call (or from a call that could not be parsed).

    Attributes:
        name: Tool asked for; empty where the call could not be parsed.
        outcome: How the call ended.
        text: What the model reads; errors are text too.
        seconds: Wall-clock time of the call.
    """

    name: str
    outcome: ToolOutcome
    text: str
    seconds: float = 0.0

    @property
    def is_error(self) -> bool:
        """Whether the model sees an error."""
        return self.outcome is not ToolOutcome.OK


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One assistant generation and what it led to; its sampled tokens are one *step*.

    Attributes:
        context_ids: Token ids placed before the generation since the previous turn ended: the prompt
            for the first turn of a segment, observation and header tokens otherwise.
        sampled_ids: Token ids as the engine sampled them, stop token included.
        sampled_log_probs: Their log-probabilities under the sampling policy, in nats, at the
            sampling temperature; empty where the turn was not sampled (expert data).
        calls: Calls parsed from the turn.
        results: What the tools answered, malformed calls included.
        reward: Reward given for this turn.
        stop_reason: Why sampling stopped.
        policy_version: Number of optimiser updates behind the weights that sampled the turn.
        is_trained: False where the loss must skip the turn (loss_mask within response_mask).
        drift: How a re-tokenised conversation would differ; None where nobody looked (expert data).
        is_truncated: Whether top_p cut the vocabulary that the turn was sampled from, so that the policy
            was not the model's own.
        teacher_context_ids: What the teacher reads in place of `context_ids`, where it is told more than
            the student; None where it reads the same.
        messages: What `context_ids` renders: the whole prompt at the beginning of a segment, else what came
            back after the turn before. Empty where nobody kept them (expert data).

    Raises:
        ValueError: Nothing was sampled, an id is negative, or the log-probabilities do not fit the ids.
    """

    context_ids: tuple[int, ...]
    sampled_ids: tuple[int, ...]
    sampled_log_probs: tuple[float, ...] = ()
    calls: tuple[ToolCall, ...] = ()
    results: tuple[ToolResult, ...] = ()
    reward: float = 0.0
    stop_reason: StopReason = StopReason.STOP_TOKEN
    policy_version: int = 0
    is_trained: bool = True
    drift: Drift | None = None
    is_truncated: bool = False
    teacher_context_ids: tuple[int, ...] | None = None
    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        ids, log_probs = self.sampled_ids, self.sampled_log_probs
        if not ids:
            raise ValueError("Turn: sampled_ids is empty; every turn needs at least its stop token.")
        lowest = min((*ids, *self.context_ids, *(self.teacher_context_ids or ())))
        if lowest < 0:
            raise ValueError(f"Turn: {lowest} is no token id; ids are 0 or more.")
        if log_probs and len(log_probs) != len(ids):
            raise ValueError(
                f"Turn: {len(log_probs)} sampled_log_probs for {len(ids)} sampled_ids; give one per token, "
                "or none where the turn was not sampled."
            )
        if not all(map(math.isfinite, log_probs)):
            raise ValueError(
                "Turn: a sampled log-probability is not finite, so the token could not have been sampled; "
                "look at the engine."
            )


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """All turns of one attempt at a task.

    Attributes:
        task_id: The task attempted.
        group_id: Shared by the attempts at one task within one rollout batch.
        turns: In order.
        reward: Total reward.
        is_success: Whether the environment calls it solved.
        end_reason: Why it ended.
        segments: Indices of the turns at which a new token sequence begins. `(0,)` is one growing
            sequence (SOD); `(0, 1, 2, ...)` is one sequence per turn (ATOD).
        tools: Schemas that its prompts offered where they are not those of the run; None for the run's.

    Raises:
        ValueError: There are no turns, the segments do not cut them, or a segment begins with a token that
            nothing can predict.
    """

    task_id: str
    turns: tuple[Turn, ...]
    group_id: int = 0
    reward: float = 0.0
    is_success: bool = False
    end_reason: EndReason = EndReason.DONE
    segments: Sequence[int] = (0,)
    tools: tuple[Mapping[str, Any], ...] | None = None

    def __post_init__(self) -> None:
        segments, num_turns = tuple(self.segments), len(self.turns)
        if num_turns == 0:
            raise ValueError(f"Trajectory: task {self.task_id!r} has no turns; give at least one.")
        is_rising = all(left < right for left, right in pairwise(segments))
        if not segments or segments[0] != 0 or not is_rising or segments[-1] >= num_turns:
            raise ValueError(
                f"Trajectory: the segments of {self.task_id!r} must be rising turn indices that begin with 0 "
                f"and stay below {num_turns}, got {segments}."
            )
        for index in segments:
            if not self.turns[index].context_ids:
                raise ValueError(
                    f"Trajectory: turn {index} of {self.task_id!r} begins a segment without context_ids, "
                    "so nothing predicts its first token; put the prompt there."
                )

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens that the policy wrote."""
        return sum(len(turn.sampled_ids) for turn in self.turns)

    @property
    def num_errors(self) -> int:
        """Error observations over all turns."""
        return sum(result.is_error for turn in self.turns for result in turn.results)
