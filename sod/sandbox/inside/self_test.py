"""Run as user code before the first call: prints a line for every wall that is down, then `checked`."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import socket
import sys
import threading
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CLONE_NEWUSER = 0x10000000
_MAX_DESCRIPTORS = 64


def _check(what: str, attempt: Callable[[], object]) -> None:
    """Print the name of an attempt that was not refused."""
    try:
        attempt()
    except OSError:
        return
    print(what)


def _fork() -> None:
    """Try to fork; the child of a fork that should not have been ends at once."""
    if os.fork() == 0:
        os._exit(0)


def _execute() -> None:
    """Try to become another program, which then says so."""
    os.execv(sys.executable, [sys.executable, "-c", "print('a program can be executed')"])  # noqa: S606


def _unshare() -> None:
    """Try to make a user namespace."""
    if ctypes.CDLL(None).unshare(_CLONE_NEWUSER) != 0:
        raise PermissionError


def _write(directory: str) -> None:
    """Try to make a file."""
    os.close(os.open(f"{directory}/sod-self-test", os.O_CREAT | os.O_WRONLY))


def _check_all() -> None:
    """Try each wall, then what has to work."""
    _check("a socket can be made", socket.socket)
    _check("a process can be forked", _fork)
    _check("the fork server can be signalled", partial(os.kill, 1, 0))
    _check("every process can be signalled", partial(os.kill, -1, 0))
    _check("a user namespace can be made", _unshare)
    for descriptor in range(3, _MAX_DESCRIPTORS):
        _check(f"descriptor {descriptor} was inherited", partial(os.fstat, descriptor))
    for directory in ("/", "/dev", "/usr", "/sandbox", sys.prefix):
        _check(f"{directory} can be written", partial(_write, directory))
    for path in ("/proc/1", "/sys/kernel", "/etc/shadow", "/etc/hostname"):
        _check(f"{path} can be seen", partial(os.stat, path))
    if 0 in os.getresuid() or 0 in os.getresgid():
        print("the code runs as root")
    # Not imported by the fork server: shows that this user can read the standard library and packages.
    importlib.import_module("colorsys")
    for path in sys.path:
        if path.startswith("/sandbox/"):
            with os.scandir(path) as entries:
                next(entries, None)
    os.close(os.open("/dev/null", os.O_RDWR))
    thread = threading.Thread(target=signal.raise_signal, args=(signal.SIGCONT,))
    thread.start()
    thread.join()
    print("checked", flush=True)
    _check("a program can be executed", _execute)


_check_all()
