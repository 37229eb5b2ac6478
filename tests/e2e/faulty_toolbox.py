"""The toolbox's `add`, with what can go wrong in a tool; switched by the tests of faults."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from itertools import count

from sod.sandbox import LocalSandbox
from sod.tools import ToolUnavailableError
from sod.types import ToolResult

RELEASE = threading.Event()
"""Set by a test when the calls that hang may end."""
HANGS_AT = {1, 3, 5, 7, 9}
"""First numbers at which `hanging` does not come back."""
AT_FIRST_HANG: list[Callable[[], None]] = []
"""What to do when the first call hangs."""
CALLS = count()
"""Calls of `flaky` and of `in_sandbox` so far."""
FLAKY = {"num_failures": 0}
"""How many calls of `flaky` find it down."""
SANDBOXES: list[LocalSandbox] = []
"""Where `in_sandbox` computes; its worker is killed before every third call."""


def _named_add(function):
    function.__name__ = "add"
    function.__doc__ = """Adds two small numbers.

    Args:
        a: First number, 0 to 9.
        b: Second number, 0 to 9.
    """
    return function


@_named_add
def hanging(a: int, b: int) -> int:
    if a in HANGS_AT:
        if AT_FIRST_HANG:
            AT_FIRST_HANG.pop()()
        RELEASE.wait()
    return a + b


@_named_add
def flaky(a: int, b: int) -> int:
    if next(CALLS) < FLAKY["num_failures"]:
        raise ToolUnavailableError("the adding service is down")
    return a + b


@_named_add
def in_sandbox(a: int, b: int) -> ToolResult:
    sandbox = SANDBOXES[0]
    if next(CALLS) % 3 == 0:
        for pid in sandbox.worker_pids:
            os.kill(pid, signal.SIGKILL)
    result = sandbox.run(f"{a} + {b}")
    return ToolResult(name="add", outcome=result.outcome, text=result.stdout or result.stderr)
