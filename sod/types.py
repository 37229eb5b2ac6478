"""The data that flows through the loop, each arrow one type.

`Task -> (rollout) -> Trajectory of Turns -> (tokenization) -> TokenSequence -> (packing) -> Batch`.
All are frozen: no stage changes what an earlier one made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
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
    """

    task_id: str
    turns: tuple[Turn, ...]
    group_id: int = 0
    reward: float = 0.0
    is_success: bool = False
    end_reason: EndReason = EndReason.DONE
    segments: Sequence[int] = (0,)

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens that the policy wrote."""
        return sum(len(turn.sampled_ids) for turn in self.turns)

    @property
    def num_errors(self) -> int:
        """Error observations over all turns."""
        return sum(result.is_error for turn in self.turns for result in turn.results)
