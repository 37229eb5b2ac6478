"""The fork server: pid 1 of the sandbox, one child per call or session, nothing left when that ends.

It sees neither the code nor its output: the host passes both as descriptors straight to the child, so that
one call cannot find in this process's memory what another call did. Messages on the control socket are JSON,
one per packet:

    host -> here   {"uid", "memory_bytes", "disk_bytes", "code_filter", "pid_offsets", "paths", "preload"}
    here -> host   {"event": "ready"} | {"event": "failed", "reason"}
    then per call
    host -> here   {"timeout_s"} + descriptors: code, stdin, stdout, stderr
    here -> host   {"event": "started"}, then
                   {"event": "ended", "reason", "status", "is_timeout", "seconds", "is_retiring"}
    or per session, whose pieces of code go straight to the child (`sod.sandbox.inside.user_code.run_session`)
    host -> here   {"order": "open"} + descriptors: command socket, stdin, stdout, stderr
    here -> host   {"event": "started"}, then for every piece
    host -> here   {"order": "go"}, {"order": "pause"}, and in the end {"order": "end"}
    here -> host   {"event": "ended", ...}

`reason` is why the child could not be confined (the code did not run), else empty. `status` is the wait
status of the child. Between the pieces of a session the child is stopped: its threads cost nothing and
see nothing. `is_retiring` says that this server could not clean up and ends.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import importlib
import json
import math
import os
import select
import signal
import socket
import sys
import time

from sod.sandbox.inside.confine import Limits, confine, make_unreadable
from sod.sandbox.inside.user_code import run_and_exit, run_session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_MAX_MESSAGE_BYTES = 1 << 20
_NUM_DESCRIPTORS = 4
_MAX_DESCRIPTOR = 1 << 20
_WRITABLE = ("/work", "/tmp")  # noqa: S108 - a tmpfs of this sandbox alone
# Above it a new sandbox is cheaper than cleaning this one.
_MAX_LEFT_ENTRIES = 1000
# Over all pieces of a session; each piece has a deadline, and between pieces the child is stopped.
_SESSION_CPU_S = 3600
_COMMAND_FD = 3
# What code often imports and the start has no time for.
_IDLE_MS = 50
_IMPORTED_WHEN_IDLE = (
    *("shutil", "pathlib", "typing", "dataclasses", "random", "datetime", "decimal", "fractions"),
    *("statistics", "heapq", "bisect", "string", "copy"),
)


def serve(control_fd: int) -> None:
    """Answer calls until the host closes its end.

    Args:
        control_fd: Descriptor of a connected SOCK_SEQPACKET socket.
    """
    control = socket.socket(fileno=control_fd)
    try:
        limits = _set_up(json.loads(control.recv(_MAX_MESSAGE_BYTES)))
    except Exception as error:
        _send(control, {"event": "failed", "reason": f"{type(error).__name__}: {error}"})
        raise
    _send(control, {"event": "ready"})
    is_retiring = False
    is_called = select.poll()
    is_called.register(control, select.POLLIN)
    later = list(_IMPORTED_WHEN_IDLE)
    while not is_retiring:
        while later and not is_called.poll(_IDLE_MS):
            importlib.import_module(later.pop(0))
            gc.freeze()
        message, descriptors, _, _ = socket.recv_fds(control, _MAX_MESSAGE_BYTES, _NUM_DESCRIPTORS)
        if not message:
            return
        _send(control, {"event": "started"})
        request = json.loads(message)
        if "order" in request:
            answer = _session(control, limits, descriptors)
        else:
            answer = _call(control, limits, request["timeout_s"], descriptors)
        is_retiring = answer["is_retiring"]
        _send(control, answer)


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    """Send one packet."""
    control.send(json.dumps(message).encode())


def _set_up(settings: dict[str, Any]) -> Limits:
    """Hide this process, import what every call shall find imported, make the directories writable."""
    make_unreadable()
    sys.path[:] = ["/work", *(path for path in sys.path if path != "/sandbox"), *settings["paths"]]
    for name in settings["preload"]:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name == "sod" or name.startswith("sod.")]:
        del sys.modules[name]
    limits = Limits(
        uid=settings["uid"],
        memory_bytes=settings["memory_bytes"],
        disk_bytes=settings["disk_bytes"],
        code_filter=base64.b64decode(settings["code_filter"]),
        pid_offsets=tuple(settings["pid_offsets"]),
    )
    _clean_up()
    # Objects made so far stay out of the collector, so that a child's collection does not copy their pages.
    gc.freeze()
    gc.enable()
    return limits


def _call(control: socket.socket, limits: Limits, timeout_s: float, descriptors: list[int]) -> dict[str, Any]:
    """Fork, wait for the child to the deadline, and remove every trace of it."""
    start = time.monotonic()
    # A second above the deadline: one busy thread meets the deadline, many meet this.
    pid, reason_fd = _fork(limits, math.ceil(timeout_s) + 1, descriptors, is_session=False)
    is_timeout = _wait(control, pid, start + timeout_s)
    return _ended(pid, reason_fd, start, is_timeout=is_timeout)


def _session(control: socket.socket, limits: Limits, descriptors: list[int]) -> dict[str, Any]:
    """Fork, let the child run and stop as the host orders, and remove every trace of it."""
    start = time.monotonic()
    pid, reason_fd = _fork(limits, _SESSION_CPU_S, descriptors, is_session=True)
    while True:
        message = control.recv(_MAX_MESSAGE_BYTES)
        if not message:
            os._exit(1)
        order = json.loads(message)["order"]
        if order == "end":
            return _ended(pid, reason_fd, start, is_timeout=False)
        # A child that has ended is still there to be signalled: nobody has waited for it.
        os.kill(pid, signal.SIGCONT if order == "go" else signal.SIGSTOP)


def _fork(limits: Limits, cpu_s: int, descriptors: list[int], *, is_session: bool) -> tuple[int, int]:
    """Start the child; return its pid and where it says why it could not be confined."""
    reason_fd, report_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_child(limits, cpu_s, descriptors, report_fd, is_session=is_session)
    for descriptor in (report_fd, *descriptors):
        os.close(descriptor)
    return pid, reason_fd


def _ended(pid: int, reason_fd: int, start: float, *, is_timeout: bool) -> dict[str, Any]:
    """Kill the child if it is still there, clean up, and say how it ended."""
    status = _kill_all(pid)
    with os.fdopen(reason_fd) as file:
        reason = file.read()
    return {
        "event": "ended",
        "reason": reason,
        "status": status,
        "is_timeout": is_timeout,
        "seconds": time.monotonic() - start,
        "is_retiring": not _clean_up(),
    }


def _be_child(
    limits: Limits, cpu_s: int, descriptors: list[int], report_fd: int, *, is_session: bool
) -> NoReturn:
    """Become the confined process and run the code; never return."""
    try:
        source_fd, *streams = descriptors
        code = ""
        if not is_session:
            with os.fdopen(source_fd, encoding="utf-8", errors="surrogatepass", newline="") as file:
                code = file.read()
        for target, descriptor in enumerate(streams):
            os.dup2(descriptor, target)
        os.chdir("/work")
        confine(limits, cpu_s)
        # The report pipe too: from here on the code can tell the server nothing.
        if is_session:
            os.dup2(source_fd, _COMMAND_FD)
        os.closerange(_COMMAND_FD + is_session, _MAX_DESCRIPTOR)
    except BaseException as error:
        os.write(report_fd, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    if is_session:
        run_session(_COMMAND_FD)
    run_and_exit(code)


def _wait(control: socket.socket, pid: int, deadline: float) -> bool:
    """Return whether the deadline came before the child's end; end this process if the host is gone."""
    process = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.register(control, select.POLLIN)
    try:
        # poll counts whole milliseconds; rounding up avoids a spin through the last one.
        events = poll.poll(math.ceil(max(0.0, deadline - time.monotonic()) * 1000))
    finally:
        os.close(process)
    if any(descriptor == control.fileno() for descriptor, _ in events):
        # Nothing is due from the host during a call but its end. As pid 1 we take everything with us.
        os._exit(1)
    return not events


def _kill_all(pid: int) -> int:
    """Kill and reap whatever there is besides this process; return the wait status of the child."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return status


def _clean_up() -> bool:
    """Empty the writable directories and give them back their first mode and times.

    Returns:
        False where that failed or would take long: this sandbox must not be used again.
    """
    try:
        for root in _WRITABLE:
            os.chmod(root, 0o777)  # noqa: S103 - no other user is in the sandbox
            num_entries = 0
            for _, directories, files in os.walk(root):
                num_entries += len(directories) + len(files)
                if num_entries > _MAX_LEFT_ENTRIES:
                    return False
            with os.scandir(root) as entries:
                for entry in list(entries):
                    _remove(entry)
            os.utime(root, (0, 0))
    except (OSError, RecursionError):
        return False
    return True


def _remove(entry: os.DirEntry[str]) -> None:
    """Remove a file, a link, or a directory with all that is in it."""
    if not entry.is_dir(follow_symlinks=False):
        os.unlink(entry.path)
        return
    # Most calls leave no directory, and importing this takes as long as a call.
    import shutil

    shutil.rmtree(entry.path)
