"""An interpreter that keeps its state from one call to the next: one sandbox worker per trajectory."""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable
from enum import Enum, auto
from types import TracebackType
from typing import Self

from sod.errors import SandboxUnavailableError
from sod.sandbox.calls import SandboxResult, encoded_inputs, failed, outcome_of, too_long
from sod.sandbox.capture import Capture
from sod.sandbox.inside.user_code import CALL_HEADER
from sod.sandbox.worker import Ending, Worker, WorkerLostError
from sod.types import ToolOutcome

_FLOOD = "the interpreter was stopped: its output had no end"
_MAX_ANSWER_BYTES = 1 << 16
_MARK_BYTES = 8


class _Ended(Enum):
    """Why a call has no answer."""

    OVERDUE = auto()
    FLOODED = auto()
    GONE = auto()


class Interpreter:
    """The host's side of one running session in a worker. Not thread-safe.

    Args:
        worker: A worker that runs nothing; it runs nothing else until `end`.
        max_output_bytes: Most bytes kept of each output stream, per call.

    Raises:
        WorkerLostError: The worker is gone.
    """

    def __init__(self, worker: Worker, max_output_bytes: int) -> None:
        self.worker = worker
        self._max_output_bytes = max_output_bytes
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            self._commands, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            ours.enter_context(self._commands)
            theirs.enter_context(inside)
            null = os.open(os.devnull, os.O_RDONLY)
            theirs.callback(os.close, null)
            self._outputs: list[int] = []
            descriptors = [inside.fileno(), null]
            for _ in range(2):
                read_end, write_end = os.pipe()
                self._outputs.append(read_end)
                descriptors.append(write_end)
                ours.callback(os.close, read_end)
                theirs.callback(os.close, write_end)
            worker.open_session(descriptors)
            self._commands.setblocking(False)
            self._resources = ours.pop_all()

    def call(self, code: bytes, stdin: bytes, timeout_s: float) -> tuple[Ending, str | None]:
        """Run one piece of code.

        Args:
            code: Source text, UTF-8.
            stdin: What the code can read from its standard input.
            timeout_s: Wall-clock deadline in seconds.

        Returns:
            How it ended, and why the session is over, None where it goes on.

        Raises:
            WorkerLostError: The fork server is gone.
        """
        start = time.monotonic()
        captures = [Capture(os.dup(fd), self._max_output_bytes) for fd in self._outputs]
        try:
            self.worker.order("go")
            mark = secrets.token_bytes(_MARK_BYTES)
            request = CALL_HEADER.pack(mark, len(code), len(stdin)) + code + stdin
            ended = self._exchange(memoryview(request), mark, captures, start + timeout_s)
            is_timeout, over = ended is _Ended.OVERDUE, None
            if isinstance(ended, int):
                exit_code = ended
                self.worker.order("pause")
            else:
                over = _FLOOD if ended is _Ended.FLOODED else ""
                exit_code = self.end()
            for capture in captures:
                capture.read_available()
            ending = Ending(
                exit_code=exit_code,
                is_timeout=is_timeout,
                seconds=time.monotonic() - start,
                stdout=captures[0].text(),
                stderr=captures[1].text(),
                is_truncated=any(capture.is_truncated for capture in captures),
            )
            return ending, over
        finally:
            for capture in captures:
                capture.close()

    def end(self) -> int:
        """End the interpreter and clean up; the worker is free, or no longer usable.

        Returns:
            Exit code, or minus the signal.

        Raises:
            WorkerLostError: The fork server is gone.
        """
        try:
            return self.worker.end_session()
        finally:
            self.release()

    def release(self) -> None:
        """Close what belongs to the session on this side; harmless twice."""
        self._resources.close()

    def _exchange(
        self, request: memoryview, mark: bytes, captures: list[Capture], deadline: float
    ) -> int | _Ended:
        """Send the request and read output until the answer; return the exit code, or why there is none."""
        answer = bytearray()
        while (left_s := deadline - time.monotonic()) > 0:
            poll = select.poll()
            poll.register(self._commands, select.POLLIN | (select.POLLOUT if request else 0))
            for capture in captures:
                if capture.is_open:
                    poll.register(capture.fd, select.POLLIN)
            ready = dict(poll.poll(left_s * 1000 + 1))
            for capture in captures:
                if capture.fd in ready:
                    capture.read_available()
            events = ready.get(self._commands.fileno(), 0)
            try:
                if events & select.POLLOUT:
                    request = request[self._commands.send(request) :]
                if events & ~select.POLLOUT:
                    data = self._commands.recv(_MAX_ANSWER_BYTES)
                    if not data:
                        return _Ended.GONE
                    answer += data
            except BlockingIOError:
                continue
            except OSError:
                return _Ended.GONE
            if any(capture.is_flooded for capture in captures) or len(answer) > _MAX_ANSWER_BYTES:
                return _Ended.FLOODED
            # The code can write here too, but it was not told the mark.
            found = answer.find(mark)
            if 0 <= found < len(answer) - _MARK_BYTES:
                return answer[found + _MARK_BYTES]
        return _Ended.OVERDUE


class SandboxSession:
    """Calls that share variables, modules and files; made by `LocalSandbox.session`.

    The interpreter starts at the first call. A call that runs over its deadline, crashes or floods ends it:
    the result says `is_state_lost`, and the next call begins with a fresh one. Between calls the interpreter
    is stopped. Calls from several threads run one after the other.

    Args:
        take_worker: Gives a worker that runs nothing; raises SandboxUnavailableError.
        give_back: Takes the session and its worker, None without one.
        max_output_bytes: Most bytes kept of each output stream, per call.
    """

    def __init__(
        self,
        take_worker: Callable[[], Worker],
        give_back: Callable[[SandboxSession, Worker | None], None],
        max_output_bytes: int,
    ) -> None:
        self.is_closed = False
        self._take_worker = take_worker
        self._give_back = give_back
        self._max_output_bytes = max_output_bytes
        self._interpreter: Interpreter | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        """Return the session itself."""
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the session."""
        self.close()

    def run(self, code: str, stdin: str = "", timeout_s: float = 10.0) -> SandboxResult:
        """Run one piece of Python in the state that the calls before it left.

        Args:
            code: Python source.
            stdin: What it can read from standard input.
            timeout_s: Wall-clock deadline in seconds.

        Returns:
            What it did.

        Raises:
            TypeError: `code` or `stdin` is not text.
            ValueError: `timeout_s` is out of range, or the session is closed.
        """
        inputs = encoded_inputs("SandboxSession.run", code, stdin, timeout_s)
        refused = too_long(*inputs)
        if refused is not None:
            return refused
        with self._lock:
            if self.is_closed:
                raise ValueError("SandboxSession.run: the session is closed. Make a new one.")
            had_state = self._interpreter is not None
            try:
                interpreter = self._interpreter or self._start()
            except SandboxUnavailableError as error:
                return failed(ToolOutcome.UNAVAILABLE, str(error))
            try:
                ending, over = interpreter.call(*inputs, timeout_s)
            except WorkerLostError as error:
                self._forget(interpreter)
                # A first call that could not begin has lost nothing; it is the sandbox that failed.
                is_down = not error.has_started and not had_state
                outcome = ToolOutcome.UNAVAILABLE if is_down else ToolOutcome.KILLED
                text = f"the sandbox worker was lost: {error.reason}"
                return failed(outcome, text, is_state_lost=had_state)
            except OSError as error:
                interpreter.worker.kill()
                self._forget(interpreter)
                return failed(ToolOutcome.UNAVAILABLE, f"SandboxSession: {error}", is_state_lost=had_state)
            except BaseException:
                # Whoever is interrupted here leaves a call behind whose answer the next one must not get.
                interpreter.worker.kill()
                self._forget(interpreter)
                raise
            if over is not None:
                self._forget(interpreter)
            return _result(ending, over)

    def close(self) -> None:
        """End the interpreter and wipe what it left; waits for a call under way. Harmless twice."""
        with self._lock:
            if self.is_closed:
                return
            self.is_closed = True
            interpreter, self._interpreter = self._interpreter, None
            if interpreter is not None:
                with contextlib.suppress(WorkerLostError):
                    interpreter.end()
            self._give_back(self, interpreter.worker if interpreter is not None else None)

    def _start(self) -> Interpreter:
        """Start an interpreter; a worker that died while it was idle is replaced once."""
        reason = ""
        for _ in range(2):
            worker = self._take_worker()
            try:
                self._interpreter = Interpreter(worker, self._max_output_bytes)
            except (WorkerLostError, OSError) as error:
                worker.kill()
                self._give_back(self, worker)
                reason = str(error)
                continue
            return self._interpreter
        raise SandboxUnavailableError(f"SandboxSession: the sandbox worker was lost twice: {reason}")

    def _forget(self, interpreter: Interpreter) -> None:
        """Give up an interpreter that is over."""
        self._interpreter = None
        interpreter.release()
        self._give_back(self, interpreter.worker)


def _result(ending: Ending, over: str | None) -> SandboxResult:
    """Say what an ending means."""
    is_killed = over is not None and not ending.is_timeout
    outcome = outcome_of(ending.exit_code, is_timeout=ending.is_timeout)
    return SandboxResult(
        # An interpreter that left without an answer was ended by its code, whatever its exit code.
        outcome=ToolOutcome.KILLED if is_killed else outcome,
        stdout=ending.stdout,
        stderr="\n".join(part for part in (ending.stderr.rstrip("\n"), over) if part)
        if over
        else ending.stderr,
        exit_code=ending.exit_code,
        seconds=ending.seconds,
        truncated=ending.is_truncated,
        is_state_lost=over is not None,
    )
