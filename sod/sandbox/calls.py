"""What every sandbox takes and gives: one piece of Python in, one result out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sod.types import ToolOutcome

MAX_INPUT_BYTES = 8 << 20
"""Most bytes of code, and of stdin, that a sandbox accepts."""
MAX_TIMEOUT_S = 3600.0
"""Longest deadline of one call, in seconds."""


@dataclass(frozen=True, kw_only=True)
class SandboxResult:
    """What one piece of code did.

    Attributes:
        outcome: OK; TOOL_ERROR for an exception or a non-zero exit; TIMEOUT; KILLED by a signal (memory,
            processor time, a crash); UNAVAILABLE where the sandbox itself is down and the code did not run.
        stdout: Standard output, then the value of a last expression, as in a REPL.
        stderr: Standard error: the traceback with the user's frames, or why the sandbox is down.
        exit_code: Exit code, minus the signal that killed it, or None where there is none.
        seconds: Wall-clock time of the code; waiting for a free worker not included.
        truncated: Whether some of the output was dropped.
        is_state_lost: Whether variables and files of earlier calls are gone, where a session keeps them.
    """

    outcome: ToolOutcome
    stdout: str
    stderr: str
    exit_code: int | None
    seconds: float
    truncated: bool
    is_state_lost: bool = False


class Sandbox(Protocol):
    """Runs untrusted Python somewhere; safe to call from many threads."""

    def run(self, code: str, stdin: str = "", timeout_s: float = 10.0) -> SandboxResult:
        """Run one piece of Python and wait for its end.

        Args:
            code: Python source, run as `__main__`.
            stdin: What it can read from standard input.
            timeout_s: Wall-clock deadline in seconds.

        Returns:
            What it did.
        """

    def close(self) -> None:
        """Give back what the sandbox holds; harmless twice."""


def encoded_inputs(where: str, code: str, stdin: str, timeout_s: float) -> tuple[bytes, bytes]:
    """Check the arguments of a call.

    Args:
        where: Class and method, for the messages.
        code: Python source.
        stdin: Standard input.
        timeout_s: Deadline in seconds.

    Returns:
        Code and stdin in UTF-8.

    Raises:
        TypeError: `code` or `stdin` is not text.
        ValueError: `timeout_s` is out of range.
    """
    for name, value in (("code", code), ("stdin", stdin)):
        if not isinstance(value, str):
            raise TypeError(f"{where}: {name} is {type(value).__name__}, wanted str. Decode bytes first.")
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise ValueError(f"{where}: timeout_s is {timeout_s}, wanted above 0 and at most {MAX_TIMEOUT_S:g}.")
    return code.encode(errors="surrogatepass"), stdin.encode(errors="surrogatepass")


def too_long(code: bytes, stdin: bytes) -> SandboxResult | None:
    """Refuse inputs that are too long, in words for the model; None where both fit.

    Args:
        code: Python source.
        stdin: Standard input.
    """
    for name, data in (("code", code), ("stdin", stdin)):
        if len(data) > MAX_INPUT_BYTES:
            text = f"{name} has {len(data)} bytes; at most {MAX_INPUT_BYTES} are accepted"
            return failed(ToolOutcome.TOOL_ERROR, text)
    return None


def failed(outcome: ToolOutcome, text: str, *, is_state_lost: bool = False) -> SandboxResult:
    """Return the result of code that left nothing.

    Args:
        outcome: How the call ended.
        text: Why.
        is_state_lost: See `SandboxResult`.
    """
    return SandboxResult(
        outcome=outcome,
        stdout="",
        stderr=text,
        exit_code=None,
        seconds=0.0,
        truncated=False,
        is_state_lost=is_state_lost,
    )


def outcome_of(exit_code: int, *, is_timeout: bool) -> ToolOutcome:
    """Say what an ending means.

    Args:
        exit_code: Exit code, or minus the signal.
        is_timeout: Whether the deadline ended it.
    """
    if is_timeout:
        return ToolOutcome.TIMEOUT
    if exit_code < 0:
        return ToolOutcome.KILLED
    return ToolOutcome.TOOL_ERROR if exit_code else ToolOutcome.OK
