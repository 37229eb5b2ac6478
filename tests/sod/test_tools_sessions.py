"""The Python tool that keeps its state: whose it is, how long, and what the model reads when it is lost."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from sod.envs.tool_env import ToolEnvironment
from sod.rewards import get_reward
from sod.sandbox import LocalSandbox
from sod.tools import ToolRunner, python_session_tool
from sod.types import Task, ToolCall, ToolOutcome

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def sandbox():
    with LocalSandbox(num_workers=1) as sandbox:
        yield sandbox


def call(code: str) -> ToolCall:
    return ToolCall(name="python", arguments={"code": code})


def test_python_tool_keeps_state_within_a_trajectory_and_not_beyond(sandbox):
    described = python_session_tool(sandbox, timeout_s=0.5)
    task = Task(task_id="t", messages=(), fields={"answer": "1"})
    environments = [ToolEnvironment(task, [described], get_reward("exact")) for _ in range(2)]
    with ToolRunner([described], num_threads=2) as runner:
        tools = [environment.tools for environment in environments]
        runner.run_batch([[call("x = 1")], [call("x = 2")]], tools=tools)
        results = runner.run_batch([[call("x"), call("x + 1")], [call("x")]], tools=tools)
        assert [[result.text for result in row] for row in results] == [["1\n", "2\n"], ["2\n"]]
        ((slow,), (gone,)) = runner.run_batch(
            [[call("while True: pass")], [call("import os; os._exit(0)")]], tools=tools
        )
        lost = "The interpreter was restarted: variables and files of earlier calls are gone."
        assert slow.text == f"The code was stopped: it ran longer than 0.5 seconds.\n{lost}"
        assert gone.text == f"The code ended the interpreter with exit code 0.\n{lost}"
        (without,) = runner.run([call("1")])
        assert without.outcome is ToolOutcome.UNAVAILABLE
        assert "python keeps state for one trajectory, but was called without one" in without.text
    for environment in environments:
        environment.close()
    assert "are kept, as in a notebook" in described.schema["function"]["description"]
    with ExitStack() as stack:
        assert described.for_trajectory(stack).schema == described.schema
