"""The state before each turn, and what is counted by it, on attempts that are written out."""

from __future__ import annotations

import pytest

from benchmarks.evidence.grid import load_grid
from benchmarks.evidence.states import (
    AFTER_FAULT,
    CLEAN,
    LATER,
    STATES,
    count_retries,
    turn_groups,
    turn_states,
)
from benchmarks.evidence.worlds import ledger_section, make_questions
from sod.envs.ledger_faults import LedgerFaults
from sod.types import ToolCall, ToolOutcome, ToolResult, Trajectory, Turn

WORLD = load_grid(("smoke",)).world
TASK = make_questions(WORLD, 1, seed=3, split="train")[0]


class Kinds(LedgerFaults):
    """Faults by the number of the call, as a test wants them."""

    def kind(self, task_id, number):
        return self.wanted[number] if number < len(self.wanted) else "none"


def faults_of(*wanted):
    faults = Kinds(rate=0.5, garbled_share=0.5, seed=0)
    object.__setattr__(faults, "wanted", wanted)
    return faults


QUESTION = ledger_section(WORLD, 3, has_faults=False).question(3, 0)
PLACES = [(amount.item, amount.field) for amount in QUESTION.amounts]
WRONG = ToolCall(name="lookup", arguments={"item": "nothing", "field": "price"})


def look(place):
    return ToolCall(name="lookup", arguments={"item": PLACES[place][0], "field": PLACES[place][1]})


def turn(call, text="5", outcome=ToolOutcome.OK):
    result = ToolResult(name=call.name, outcome=outcome, text=text)
    return Turn(context_ids=(1,), sampled_ids=(2,), calls=(call,), results=(result,))


TIMEOUT = {"outcome": ToolOutcome.TIMEOUT, "text": "error: timeout"}
ERROR = {"outcome": ToolOutcome.TOOL_ERROR, "text": "error: LookupError"}
FINAL = Turn(context_ids=(1,), sampled_ids=(2,))
SUM = ToolCall(name="python", arguments={"code": "print(1)"})


@pytest.mark.parametrize(
    ("kinds", "turns", "states", "retries"),
    [
        ((), [turn(look(0)), turn(look(1)), FINAL], [CLEAN, CLEAN, CLEAN], (0, 0)),
        (
            ("timeout",),
            [turn(look(0), **TIMEOUT), turn(look(0)), turn(look(1)), FINAL],
            [CLEAN, "first fault, timeout", "fault repaired", "fault repaired"],
            (1, 1),
        ),
        (
            ("none", "garbled"),
            [turn(look(0)), turn(look(1), "lamp"), turn(look(2)), FINAL],
            [CLEAN, CLEAN, "first fault, garbled", "fault not repaired"],
            (0, 1),
        ),
        (
            ("garbled", "timeout"),
            [turn(look(0), "lamp"), turn(look(0), **TIMEOUT), turn(look(0)), FINAL],
            [CLEAN, "first fault, garbled", "later fault, timeout", "fault repaired"],
            (2, 2),
        ),
        # A wrong call is no right one: the faults do not move.
        (
            ("garbled",),
            [turn(WRONG, **ERROR), turn(look(0), "lamp"), FINAL],
            [CLEAN, "own error", "first fault, garbled"],
            (0, 1),
        ),
        # An answer that exists but was not asked for, and a sum that is wrong.
        ((), [turn(WRONG), turn(look(0)), FINAL], [CLEAN, "silently wrong", "silently wrong"], (0, 0)),
        ((), [turn(SUM, "-99"), FINAL], [CLEAN, "silently wrong"], (0, 0)),
        ((), [turn(SUM, str(QUESTION.answer)), FINAL], [CLEAN, CLEAN], (0, 0)),
        # A real timeout, which is no fault of the experiment.
        ((), [turn(SUM, **TIMEOUT), FINAL], [CLEAN, "own error"], (0, 0)),
    ],
)
def test_states_follow_from_the_faults(kinds, turns, states, retries):
    attempt = Trajectory(task_id=TASK.task_id, turns=tuple(turns))
    found = turn_states(attempt, TASK, faults_of(*kinds))
    assert found == states
    assert set(found) <= set(STATES)
    assert count_retries(attempt, found) == retries


def test_steps_are_split_into_three():
    states = [CLEAN, "first fault, timeout", "fault repaired", "later fault, garbled", "own error"]
    assert turn_groups(states) == [CLEAN, AFTER_FAULT, LATER, AFTER_FAULT, LATER]
    assert turn_groups([CLEAN, "own error", CLEAN]) == [CLEAN, CLEAN, CLEAN]


def test_the_first_question_of_the_task_file_is_the_one_looked_at():
    assert TASK.messages[0]["content"] == QUESTION.text
