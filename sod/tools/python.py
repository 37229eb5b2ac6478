"""The Python tool: the student's code in the sandbox."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import NoReturn

from sod.sandbox import LocalSandbox, Sandbox, SandboxResult
from sod.tools.tool import Tool, ToolUnavailableError
from sod.types import ToolOutcome, ToolResult

_NAME = "python"


def python_tool(sandbox: Sandbox, *, timeout_s: float = 10.0) -> Tool:
    """Return a tool `python` that runs every piece of code afresh.

    The model reads what the code printed, the value of a last expression, and after an error the traceback.

    Args:
        sandbox: Where the code runs; the caller closes it.
        timeout_s: Wall-clock deadline of one call in seconds, from when the code starts.

    Returns:
        The tool.
    """
    run = _caller(sandbox.run, timeout_s)

    def python(code: str) -> ToolResult:
        """Runs Python code and returns what it prints and the value of a last expression.

        Every call starts afresh: variables and files of earlier calls are gone. There is no network.

        Args:
            code: The Python code to run.
        """
        return run(code)

    return Tool.from_function(python, has_own_deadline=True)


def python_session_tool(sandbox: LocalSandbox, *, timeout_s: float = 10.0) -> Tool:
    """Return a tool `python` whose variables, modules and files stay for the rest of the trajectory.

    `Tool.for_trajectory` makes the tool of one trajectory; this one only describes it. Code that runs over
    its deadline or crashes ends the interpreter; the model is told that its state is gone.

    Args:
        sandbox: Where the code runs; the caller closes it.
        timeout_s: Wall-clock deadline of one call in seconds, from when the code starts.

    Returns:
        The tool.
    """

    def python(code: str) -> NoReturn:
        """Runs Python code and returns what it prints and the value of a last expression.

        Variables and files of earlier calls are kept, as in a notebook. There is no network.

        Args:
            code: The Python code to run.
        """
        raise ToolUnavailableError(
            "python keeps state for one trajectory, but was called without one; call the tool that "
            "Tool.for_trajectory makes"
        )

    described = Tool.from_function(python, has_own_deadline=True)

    def for_trajectory(stack: ExitStack) -> Tool:
        session = stack.enter_context(sandbox.session())
        return replace(described, function=_caller(session.run, timeout_s), for_trajectory=None)

    return replace(described, for_trajectory=for_trajectory)


def _caller(run: Callable[[str, str, float], SandboxResult], timeout_s: float) -> Callable[[str], ToolResult]:
    """Return the function behind a tool."""

    def call(code: str) -> ToolResult:
        result = run(code, "", timeout_s)
        return ToolResult(
            name=_NAME, outcome=result.outcome, text=_text(result, timeout_s), seconds=result.seconds
        )

    return call


def _text(result: SandboxResult, timeout_s: float) -> str:
    """Return what the model reads of a result."""
    if result.outcome is ToolOutcome.OK:
        return result.stdout or result.stderr or "(no output)"
    parts = [result.stdout.rstrip("\n"), result.stderr.rstrip("\n")]
    if result.outcome is ToolOutcome.TIMEOUT:
        parts.append(f"The code was stopped: it ran longer than {timeout_s:g} seconds.")
    elif result.outcome is ToolOutcome.KILLED and result.exit_code is not None and result.exit_code < 0:
        parts.append(f"The code was killed by {_signal_name(-result.exit_code)}.")
    elif result.outcome is ToolOutcome.KILLED and result.exit_code is not None:
        parts.append(f"The code ended the interpreter with exit code {result.exit_code}.")
    elif result.outcome is ToolOutcome.TOOL_ERROR and not result.stderr:
        parts.append(f"The code ended with exit code {result.exit_code}.")
    if result.is_state_lost:
        parts.append("The interpreter was restarted: variables and files of earlier calls are gone.")
    return "\n".join(part for part in parts if part)


def _signal_name(number: int) -> str:
    """Return the name of a signal, or its number where it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
