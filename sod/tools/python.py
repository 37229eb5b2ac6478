"""The Python tool: the student's code in the sandbox."""

from __future__ import annotations

import signal

from sod.sandbox import LocalSandbox, SandboxResult
from sod.tools.tool import Tool
from sod.types import ToolOutcome, ToolResult

_NAME = "python"


def python_tool(sandbox: LocalSandbox, *, timeout_s: float = 10.0) -> Tool:
    """Return a tool `python` that runs code in a sandbox.

    The model reads what the code printed, the value of a last expression, and after an error the traceback.

    Args:
        sandbox: Where the code runs; the caller closes it.
        timeout_s: Wall-clock deadline of one call in seconds, from when the code starts.

    Returns:
        The tool.
    """

    def python(code: str) -> ToolResult:
        """Runs Python code and returns what it prints and the value of a last expression.

        Every call starts afresh: variables and files of earlier calls are gone. There is no network.

        Args:
            code: The Python code to run.
        """
        result = sandbox.run(code, timeout_s=timeout_s)
        return ToolResult(
            name=_NAME, outcome=result.outcome, text=_text(result, timeout_s), seconds=result.seconds
        )

    return Tool.from_function(python, has_own_deadline=True)


def _text(result: SandboxResult, timeout_s: float) -> str:
    """Return what the model reads of a result."""
    if result.outcome is ToolOutcome.OK:
        return result.stdout or result.stderr or "(no output)"
    parts = [result.stdout.rstrip("\n"), result.stderr.rstrip("\n")]
    if result.outcome is ToolOutcome.TIMEOUT:
        parts.append(f"The code was stopped: it ran longer than {timeout_s:g} seconds.")
    elif result.outcome is ToolOutcome.KILLED and result.exit_code is not None:
        parts.append(f"The code was killed by {_signal_name(-result.exit_code)}.")
    elif result.outcome is ToolOutcome.TOOL_ERROR and not result.stderr:
        parts.append(f"The code ended with exit code {result.exit_code}.")
    return "\n".join(part for part in parts if part)


def _signal_name(number: int) -> str:
    """Return the name of a signal, or its number where it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
