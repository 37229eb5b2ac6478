"""What the forked process gives up before it runs the user's code."""

from __future__ import annotations

import ctypes
import os
import resource
import struct

_PR_SET_DUMPABLE = 4
_PR_SET_SECCOMP = 22
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2
_INSTRUCTION_BYTES = 8
_MAX_OPEN_FILES = 64
_MAX_THREADS = 64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
_libc.prctl.restype = ctypes.c_int


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


class Limits:
    """What one call may use. Not a dataclass: importing those would be a quarter of the fork server's start.

    Args:
        uid: User and group id of the code; None where the fork server cannot change it.
        memory_bytes: Address space.
        disk_bytes: Largest file.
        code_filter: BPF program of the code.
        pid_offsets: Where in it the pid of the confined process belongs, in bytes.
    """

    def __init__(
        self,
        *,
        uid: int | None,
        memory_bytes: int,
        disk_bytes: int,
        code_filter: bytes,
        pid_offsets: tuple[int, ...],
    ) -> None:
        self.uid = uid
        self.memory_bytes = memory_bytes
        self.disk_bytes = disk_bytes
        self.code_filter = code_filter
        self.pid_offsets = pid_offsets


def make_unreadable() -> None:
    """Hide this process's memory and `/proc` entries from every other process of the same user.

    Raises:
        OSError: The kernel refuses.
    """
    _prctl(_PR_SET_DUMPABLE, 0)


def confine(limits: Limits, cpu_s: int) -> None:
    """Give up resources, identity and system calls, for good.

    Args:
        limits: What the call may use.
        cpu_s: Processor time, in seconds; past it the kernel kills.

    Raises:
        OSError: One of the steps is refused; the code must not run.
    """
    os.setsid()
    os.umask(0o077)
    for what, amount in (
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, limits.disk_bytes),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        (resource.RLIMIT_NPROC, _MAX_THREADS),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (amount, amount))
    if limits.uid is not None:
        os.setgroups([])
        os.setresgid(limits.uid, limits.uid, limits.uid)
        os.setresuid(limits.uid, limits.uid, limits.uid)
    make_unreadable()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _install_filter(limits)


def _install_filter(limits: Limits) -> None:
    """Install the seccomp filter of the code, made out to this process."""
    program = ctypes.create_string_buffer(limits.code_filter, len(limits.code_filter))
    for offset in limits.pid_offsets:
        struct.pack_into("=I", program, offset, os.getpid())
    header = _FilterProgram(len(program) // _INSTRUCTION_BYTES, ctypes.addressof(program))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(header))


def _prctl(option: int, value: int, pointer: int | None = None) -> None:
    """Call prctl and raise what it answers."""
    if _libc.prctl(option, value, pointer, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
