"""The host's side of one fork server."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

from sod.sandbox.capture import Capture
from sod.sandbox.command import bubblewrap_command, inside_package_paths, next_code_uid
from sod.sandbox.filters import base_filter, code_filter, pid_offsets

_MAX_MESSAGE_BYTES = 1 << 16
_START_TIMEOUT_S = 60.0
# The fork server keeps the deadline; this is for a fork server that does not.
_GRACE_S = 10.0


class WorkerStartError(Exception):
    """A fork server did not come up; the message is what it or bubblewrap said."""


class WorkerLostError(Exception):
    """A fork server went away during a call.

    Args:
        has_started: Whether the code may have begun to run.
        is_overdue: Whether it was killed because it did not keep the deadline.
        reason: What is known about why.
    """

    def __init__(self, *, has_started: bool, is_overdue: bool = False, reason: str = "") -> None:
        super().__init__(reason)
        self.has_started = has_started
        self.is_overdue = is_overdue
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What every worker of a sandbox is started with.

    Attributes:
        bubblewrap: Path of the program.
        help_text: What it answers to `--help`.
        memory_bytes: Address space of one call.
        disk_bytes: Size of each writable directory.
        max_output_bytes: Most bytes kept of each output stream.
        preload: Modules that the fork server imports once.
    """

    bubblewrap: str
    help_text: str
    memory_bytes: int
    disk_bytes: int
    max_output_bytes: int
    preload: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How one call ended.

    Attributes:
        exit_code: Exit code of the code, or minus the signal that killed it.
        is_timeout: Whether the deadline ended it.
        seconds: From the fork to the last process gone.
        stdout: What was kept of it.
        stderr: What was kept of it.
        is_truncated: Whether some of the output was dropped.
    """

    exit_code: int
    is_timeout: bool
    seconds: float
    stdout: str
    stderr: str
    is_truncated: bool


class Worker:
    """One fork server in one sandbox. Not thread-safe, but for `kill`.

    `pid` is the process id of the fork server on the host.

    Must be made in a thread that outlives it: the kernel ends bubblewrap with the thread that started it.

    Args:
        settings: What to start it with.

    Raises:
        WorkerStartError: It did not come up.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self.is_usable = True
        self._server: int | None = None
        with contextlib.ExitStack() as stack:
            self._errors = stack.enter_context(tempfile.TemporaryFile())
            self._control, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(self._control)
            with inside:
                self._process, info = _start(settings, inside.fileno(), self._errors)
            stack.callback(self.close)
            self.pid = json.loads(info)["child-pid"] if info else 0
            if self.pid:
                self._server = os.pidfd_open(self.pid)
            self._greet()
            stack.pop_all()

    def call(self, code: bytes, stdin: bytes, timeout_s: float) -> Ending:
        """Run one piece of code.

        Args:
            code: Source text, UTF-8.
            stdin: What the code can read from its standard input.
            timeout_s: Wall-clock deadline in seconds.

        Returns:
            How it ended.

        Raises:
            WorkerLostError: The fork server is gone; this worker must not be used again.
        """
        with contextlib.ExitStack() as stack:
            # Whoever is interrupted here leaves a call behind whose answer the next one must not get.
            unless_done = stack.enter_context(contextlib.ExitStack())
            unless_done.callback(self.kill)
            captures = self._send_call(stack, code, stdin, timeout_s)
            ended = self._watch(captures, time.monotonic() + timeout_s + _GRACE_S)
            unless_done.pop_all()
            stdout, stderr = captures
            return Ending(
                exit_code=os.waitstatus_to_exitcode(ended["status"]),
                is_timeout=ended["is_timeout"],
                seconds=ended["seconds"],
                stdout=stdout.text(),
                stderr=stderr.text(),
                is_truncated=stdout.is_truncated or stderr.is_truncated,
            )

    def open_session(self, descriptors: Sequence[int]) -> None:
        """Start an interpreter that keeps its state; `call` must wait until `end_session`.

        Args:
            descriptors: Command socket, stdin, stdout and stderr of the interpreter.

        Raises:
            WorkerLostError: The fork server is gone; this worker must not be used again.
        """
        try:
            socket.send_fds(self._control, [json.dumps({"order": "open"}).encode()], descriptors)
        except OSError as error:
            raise self._lost(has_started=False) from error
        self._await_event("started", _GRACE_S)

    def order(self, what: Literal["go", "pause"]) -> None:
        """Let the interpreter of the session run, or stop it.

        Raises:
            WorkerLostError: The fork server is gone.
        """
        try:
            self._control.send(json.dumps({"order": what}).encode())
        except OSError as error:
            raise self._lost(has_started=True) from error

    def end_session(self) -> int:
        """End the interpreter of the session and clean up after it.

        Returns:
            Its exit code, or minus the signal that ended it.

        Raises:
            WorkerLostError: The fork server is gone, or could not confine the interpreter, which ran nothing.
        """
        try:
            self._control.send(json.dumps({"order": "end"}).encode())
        except OSError as error:
            raise self._lost(has_started=True) from error
        ended = self._await_event("ended", _GRACE_S)
        self.is_usable = self.is_usable and not ended["is_retiring"]
        if ended["reason"]:
            raise self._lost(has_started=False, reason=ended["reason"])
        return os.waitstatus_to_exitcode(ended["status"])

    def _await_event(self, event: str, timeout_s: float) -> dict[str, Any]:
        """Wait for one packet of the fork server."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        packet = self._receive() if poll.poll(timeout_s * 1000) else b""
        message = json.loads(packet) if packet else {}
        if message.get("event") != event:
            raise self._lost(has_started=True)
        return dict(message)

    def kill(self) -> None:
        """Kill the fork server and everything in its sandbox; a call under way raises WorkerLostError."""
        self.is_usable = False
        # As pid 1 of its namespace it takes everything in it along, and bubblewrap ends when it does.
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._server, signal.SIGKILL)
        else:
            self._process.kill()

    def close(self) -> None:
        """Kill and release everything; returns when the last process is gone."""
        self.kill()
        self._process.wait()
        self._control.close()
        self._errors.close()
        if self._server is not None:
            os.close(self._server)
            self._server = None

    def _greet(self) -> None:
        """Send the settings and wait until the fork server is ready."""
        program = code_filter()
        settings = {
            "uid": next_code_uid(),
            "memory_bytes": self._settings.memory_bytes,
            "disk_bytes": self._settings.disk_bytes,
            "code_filter": base64.b64encode(program).decode(),
            "pid_offsets": pid_offsets(program),
            "paths": inside_package_paths(),
            "preload": self._settings.preload,
        }
        self._control.settimeout(_START_TIMEOUT_S)
        try:
            self._control.send(json.dumps(settings).encode())
            answer = self._control.recv(_MAX_MESSAGE_BYTES)
        except OSError as error:
            raise WorkerStartError(self._said() or f"it did not answer: {error}") from error
        if not answer:
            raise WorkerStartError(self._said() or "it ended without a word")
        message = json.loads(answer)
        if message["event"] != "ready":
            raise WorkerStartError(message["reason"])

    def _said(self) -> str:
        """Return what bubblewrap or the fork server wrote on stderr."""
        self.kill()
        self._process.wait()
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()

    def _send_call(
        self, stack: contextlib.ExitStack, code: bytes, stdin: bytes, timeout_s: float
    ) -> tuple[Capture, Capture]:
        """Hand code, stdin and the write ends of two pipes to the fork server; return our ends."""
        with contextlib.ExitStack() as sent:
            captures, descriptors = [], []
            for data in (code, stdin):
                descriptors.append(_memory_file(data))
                sent.callback(os.close, descriptors[-1])
            for _ in range(2):
                ours, theirs = os.pipe()
                captures.append(Capture(ours, self._settings.max_output_bytes))
                stack.callback(captures[-1].close)
                descriptors.append(theirs)
                sent.callback(os.close, theirs)
            try:
                socket.send_fds(self._control, [json.dumps({"timeout_s": timeout_s}).encode()], descriptors)
            except OSError as error:
                raise self._lost(has_started=False) from error
        return captures[0], captures[1]

    def _watch(self, captures: tuple[Capture, Capture], deadline: float) -> dict[str, Any]:
        """Read output until the fork server reports the end; return that report."""
        has_started = False
        for ready in self._ready_descriptors(captures, deadline):
            for capture in captures:
                if capture.fd in ready:
                    capture.read_available()
            if self._control.fileno() not in ready:
                continue
            packet = self._receive()
            if not packet:
                raise self._lost(has_started=has_started)
            message = json.loads(packet)
            has_started = True
            if message["event"] == "ended":
                # The writers are gone: what is left is in the pipes now.
                for capture in captures:
                    capture.read_available()
                self.is_usable = self.is_usable and not message["is_retiring"]
                if message["reason"]:
                    raise self._lost(has_started=False, reason=message["reason"])
                return dict(message)
        raise self._lost(has_started=has_started, is_overdue=True)

    def _ready_descriptors(self, captures: tuple[Capture, Capture], deadline: float) -> Iterator[set[int]]:
        """Yield the descriptors that have something to read, until the deadline."""
        while (left_s := deadline - time.monotonic()) > 0:
            poll = select.poll()
            poll.register(self._control, select.POLLIN)
            for capture in captures:
                if capture.is_open:
                    poll.register(capture.fd, select.POLLIN)
            yield {descriptor for descriptor, _ in poll.poll(left_s * 1000 + 1)}

    def _receive(self) -> bytes:
        """Receive one packet; empty where the fork server is gone."""
        try:
            return self._control.recv(_MAX_MESSAGE_BYTES)
        except OSError:
            return b""

    def _lost(self, *, has_started: bool, is_overdue: bool = False, reason: str = "") -> WorkerLostError:
        """Give up the fork server; return the error to raise."""
        self.kill()
        return WorkerLostError(
            has_started=has_started, is_overdue=is_overdue, reason=reason or self._said() or "it was killed"
        )


def _memory_file(data: bytes) -> int:
    """Return a descriptor of a nameless file with this content, at its beginning."""
    fd = os.memfd_create("sod")
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _start(
    settings: WorkerSettings, control_fd: int, errors: IO[bytes]
) -> tuple[subprocess.Popen[bytes], bytes]:
    """Start bubblewrap with the fork server in it; return what it says about that, empty if it failed."""
    filter_fd = _memory_file(base_filter())
    info_fd, their_info_fd = os.pipe()
    try:
        command = bubblewrap_command(
            settings.bubblewrap,
            settings.help_text,
            control_fd=control_fd,
            filter_fd=filter_fd,
            info_fd=their_info_fd,
            disk_bytes=settings.disk_bytes,
        )
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            pass_fds=(control_fd, filter_fd, their_info_fd),
            start_new_session=True,
        )
    except OSError as error:
        os.close(info_fd)
        raise WorkerStartError(str(error)) from error
    finally:
        os.close(filter_fd)
        os.close(their_info_fd)
    with os.fdopen(info_fd, "rb") as info:
        # Written whole, at once, when the fork server is there; closed without a word where it will not be.
        poll = select.poll()
        poll.register(info, select.POLLIN)
        if not poll.poll(_START_TIMEOUT_S * 1000):
            process.kill()
            process.wait()
            raise WorkerStartError(f"bubblewrap said nothing in {_START_TIMEOUT_S:g} s")
        return process, info.read()
