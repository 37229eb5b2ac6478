"""What the state of an attempt is before each turn, reconstructed from the faults that are known by seed.

Half of the faults say nothing of themselves, so only the world can tell a state, never the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sod.envs.ledger_chain import CODES
from sod.envs.ledger_faults import LedgerFaults
from sod.types import Task, ToolCall, ToolOutcome, Trajectory, Turn

CLEAN = "clean"
AFTER_FAULT = "right after a fault"
LATER = "a fault behind"
STATES = (
    CLEAN,
    "first fault, timeout",
    "first fault, garbled",
    "later fault, timeout",
    "later fault, garbled",
    "fault repaired",
    "fault not repaired",
    "own error",
    "silently wrong",
)
"""Every state, in the order of the tables."""
GROUPS = (CLEAN, AFTER_FAULT, LATER)
"""How d_k and w_k are split."""

_AMOUNT = re.compile(r"the (price|stock) of (\w+ \d)")


@dataclass(kw_only=True)
class _Attempt:
    """What has happened so far."""

    wanted: frozenset[tuple[str, str]]
    answer: str
    num_right_calls: int = 0
    num_faults: int = 0
    last_fault: str = ""
    has_just_erred: bool = False
    is_wrong: bool = False
    open_faults: set[str] | None = None

    @property
    def state(self) -> str:
        if self.is_wrong:
            return "silently wrong"
        if self.last_fault:
            return f"{'first' if self.num_faults == 1 else 'later'} fault, {self.last_fault}"
        if self.has_just_erred:
            return "own error"
        if not self.num_faults:
            return CLEAN
        return "fault not repaired" if self.open_faults else "fault repaired"


def turn_states(trajectory: Trajectory, task: Task, faults: LedgerFaults) -> list[str]:
    """Tell the state before each turn of an attempt.

    Args:
        trajectory: The attempt.
        task: A question with codes.
        faults: Those that the tools had.

    Returns:
        One of `STATES` per turn.
    """
    text = str(task.messages[-1]["content"])
    attempt = _Attempt(
        wanted=frozenset((CODES[code], field) for field, code in _AMOUNT.findall(text)),
        answer=str(task.fields["answer"]),
        open_faults=set(),
    )
    states = []
    for turn in trajectory.turns:
        states.append(attempt.state)
        _advance(attempt, turn, task.task_id, faults)
    return states


def _advance(attempt: _Attempt, turn: Turn, task_id: str, faults: LedgerFaults) -> None:
    attempt.last_fault, attempt.has_just_erred = "", False
    for index, result in enumerate(turn.results):
        kind = faults.kind(task_id, attempt.num_right_calls)
        is_timeout = result.outcome is ToolOutcome.TIMEOUT and kind == "timeout"
        if result.is_error and not is_timeout:
            attempt.has_just_erred = True
            continue
        attempt.num_right_calls += 1
        call = turn.calls[index] if index < len(turn.calls) else None
        key = call_key(call)
        open_faults = attempt.open_faults or set()
        if kind != "none":
            attempt.last_fault, attempt.num_faults = kind, attempt.num_faults + 1
            attempt.open_faults = {*open_faults, key}
        else:
            attempt.open_faults = open_faults - {key}
            attempt.is_wrong |= call is not None and _is_wrong(call, result.text, attempt)


def _is_wrong(call: ToolCall, text: str, attempt: _Attempt) -> bool:
    if call.name == "lookup":
        place = (str(call.arguments.get("item")), str(call.arguments.get("field")))
        return place not in attempt.wanted
    return text.strip() != attempt.answer


def call_key(call: ToolCall | None) -> str:
    """Name a call so that a repetition of it has the same name."""
    return "" if call is None else f"{call.name}:{sorted(call.arguments.items())}"


def group_of(state: str, has_fault_behind: bool) -> str:
    """Put a state into the group that it is averaged in: one of `GROUPS`."""
    if "fault, " in state:
        return AFTER_FAULT
    return LATER if has_fault_behind else CLEAN


def turn_groups(states: Sequence[str]) -> list[str]:
    """Group the states of an attempt, see `GROUPS`."""
    groups, has_fault = [], False
    for state in states:
        has_fault |= "fault, " in state
        groups.append(group_of(state, has_fault))
    return groups


def count_retries(trajectory: Trajectory, states: Sequence[str]) -> tuple[int, int]:
    """Count how often a faulted call was repeated right away.

    Args:
        trajectory: The attempt.
        states: Of its turns.

    Returns:
        Repetitions, and turns right after a fault.
    """
    num_repeated = num_after = 0
    for index, (state, turn) in enumerate(zip(states, trajectory.turns, strict=True)):
        if "fault, " not in state:
            continue
        num_after += 1
        before = trajectory.turns[index - 1].calls
        is_same = bool(turn.calls) and bool(before) and call_key(turn.calls[0]) == call_key(before[-1])
        num_repeated += is_same
    return num_repeated, num_after
