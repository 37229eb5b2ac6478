"""The standard environment, turn by turn."""

from __future__ import annotations

import pytest

from sod.envs.tool_env import ToolEnvironment
from sod.parsing import parse_hermes
from sod.types import EndReason, Task, ToolOutcome, ToolResult

TASK = Task(task_id="t", messages=({"role": "user", "content": "6 times 7?"},), fields={"answer": "42"})
CALL = '<tool_call>{"name": "python", "arguments": {"code": "6*7"}}</tool_call>'


def reward(task, text):
    return 1.0 if text == task.fields["answer"] else 0.4


def ok(text="42"):
    return ToolResult(name="python", outcome=ToolOutcome.OK, text=text)


def error(name="python"):
    return ToolResult(name=name, outcome=ToolOutcome.INVALID_JSON, text="error: not JSON")


def test_results_go_back_as_tool_messages_and_a_turn_without_call_is_scored():
    environment = ToolEnvironment(TASK, (), reward)
    assert environment.reset() == TASK.messages
    answer = environment.step(parse_hermes(CALL * 2), (ok(), error("")))
    assert answer.messages == (
        {"role": "tool", "content": "42", "name": "python"},
        {"role": "tool", "content": "error: not JSON"},
    )
    assert answer.results == (ok(), error(""))
    assert (answer.is_done, answer.reward) == (False, 0.0)
    last = environment.step(parse_hermes("<think>6*7 is 42</think>\n42 "), ())
    assert (last.is_done, last.is_success, last.reward) == (True, True, 1.0)
    assert last.end_reason is EndReason.DONE


@pytest.mark.parametrize(("threshold", "is_success"), [(1.0, False), (0.4, True)])
def test_success_is_a_threshold_on_the_reward(threshold, is_success):
    environment = ToolEnvironment(TASK, (), reward, success_threshold=threshold)
    last = environment.step(parse_hermes("43"), ())
    assert (last.reward, last.is_success) == (0.4, is_success)


def test_errors_in_a_row_end_the_attempt_and_a_good_result_starts_anew():
    environment = ToolEnvironment(TASK, (), reward, max_errors_in_a_row=3)
    turn = parse_hermes(CALL)
    steps = [environment.step(turn, results) for results in [(error(),), (error(), ok()), (error(), error())]]
    assert not any(step.is_done for step in steps)
    # The third error in a row counts even where a good result of the same turn follows it.
    last = environment.step(turn, (error(), ok()))
    assert (last.is_done, last.end_reason, last.reward, last.is_success) == (
        True,
        EndReason.MAX_ERRORS,
        0.0,
        False,
    )
    assert last.results == (error(), ok())
    environment.reset()
    assert not environment.step(turn, (error(), error())).is_done


def test_a_bad_limit_is_named():
    with pytest.raises(ValueError, match="max_errors_in_a_row must be 1 or more, or None; got 0"):
        ToolEnvironment(TASK, (), reward, max_errors_in_a_row=0)
