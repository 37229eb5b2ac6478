"""What hostile code tries, every attempt bounded: a hole shows as a failed test, not as a dead machine."""

import os
import platform
import pwd
import socket
import tempfile
from pathlib import Path

import pytest

from sod.sandbox import LocalSandbox
from sod.sandbox.session import SandboxSession
from sod.types import ToolOutcome

pytestmark = pytest.mark.sandbox

# Defined in front of each attack: prints the error that stopped it, or that nothing did.
ATTEMPT = """
import ctypes, errno, os, signal, socket, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(function, *arguments):
    try:
        answer = function(*arguments)
    except (OSError, MemoryError) as error:
        print("stopped", type(error).__name__, errno.errorcode.get(getattr(error, "errno", None), ""))
    else:
        print("went through", answer)
def system(name, *arguments):
    answer = getattr(libc, name)(*arguments)
    if answer == -1:
        raise OSError(ctypes.get_errno(), name)
    return answer
"""


@pytest.fixture(scope="module", params=["call", "session"])
def sandbox(request):
    """Both ways to run code: a process per call, and an interpreter that keeps its state."""
    with LocalSandbox(num_workers=1, memory_bytes=256 << 20, disk_bytes=8 << 20) as sandbox:
        if request.param == "call":
            yield sandbox
            return
        with sandbox.session() as session:
            yield session


def attack(sandbox: LocalSandbox | SandboxSession, code: str, timeout_s: float = 20.0) -> list[str]:
    result = sandbox.run(ATTEMPT + code, timeout_s=timeout_s)
    assert result.outcome is ToolOutcome.OK, result
    assert result.stdout
    return result.stdout.splitlines()


def assert_all_stopped(lines: list[str]) -> None:
    assert [line for line in lines if not line.startswith("stopped")] == []


def assert_all_refused(lines: list[str]) -> None:
    """By the filter, that is, and not because of odd arguments."""
    assert [line for line in lines if line.split()[-1] not in ("EPERM", "ENOSYS")] == []


@pytest.mark.parametrize(
    "path",
    ["/etc/shadow", "/etc/passwd", "/proc/1/mem", "/proc/self/environ", "/sys", "/dev/sda", "/var/log"],
)
def test_files_of_the_machine_are_not_there(sandbox, path):
    assert attack(sandbox, f"attempt(os.stat, {path!r})") == ["stopped FileNotFoundError ENOENT"]


def test_home_of_root_and_a_secret_next_to_the_tests_are_not_there(sandbox):
    with tempfile.NamedTemporaryFile() as secret:
        home = Path(pwd.getpwuid(0).pw_dir)
        paths = [str(home / ".ssh"), str(home / ".bashrc"), secret.name, __file__]
        lines = attack(sandbox, f"for path in {paths!r}: attempt(os.stat, path)")
    assert lines == ["stopped FileNotFoundError ENOENT"] * 4


def test_environment_of_this_process_is_not_inherited(sandbox, monkeypatch):
    monkeypatch.setenv("SOD_TEST_SECRET", "hunter2")
    with LocalSandbox(num_workers=1) as fresh:
        result = fresh.run("import os\nprint('HOME' in os.environ, sorted(os.environ.items()))")
    assert result.stdout.startswith("True")
    assert "hunter2" not in result.stdout
    assert os.environ["PATH"] not in result.stdout or os.environ["PATH"] == "/usr/bin:/bin"


def test_live_listener_on_this_machine_cannot_be_reached(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0sod-sandbox-test-" + str(os.getpid()))
        abstract.listen()
        tcp.setblocking(False)
        lines = attack(
            sandbox,
            f"attempt(socket.create_connection, {tcp.getsockname()!r}, 2)\n"
            "for family in range(1, 45):\n"
            "    for kind in (1, 2, 3):\n"
            "        attempt(socket.socket, family, kind)\n"
            "attempt(system, 'socket', 1, 1, 0)\n",
        )
        with pytest.raises(BlockingIOError):
            tcp.accept()
    assert_all_refused(lines)


def test_datagram_pair_cannot_be_used_to_address_others(sandbox):
    lines = attack(
        sandbox,
        "attempt(socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "a, b = socket.socketpair()\n"
        "attempt(a.sendto, b'x', '\\0somebody')\n"
        "attempt(socket.send_fds, a, [b'x'], [0])\n",
    )
    assert_all_stopped(lines)


def test_processes_cannot_be_made(sandbox):
    lines = attack(
        sandbox,
        "import subprocess, multiprocessing\n"
        "def fork():\n"
        "    if os.fork() == 0: os._exit(0)\n"
        "for _ in range(10): attempt(fork)\n"
        "attempt(subprocess.run, ['/bin/true'])\n"
        "attempt(os.posix_spawn, '/bin/true', ['true'], {})\n"
        "attempt(os.execv, '/bin/true', ['true'])\n"
        "SIGCHLD, CLONE_PARENT, CLONE_NEWUSER = 17, 0x8000, 0x10000000\n"
        "libc.syscall.restype = ctypes.c_long\n"
        "def clone(flags):\n"
        f"    answer = libc.syscall({56 if platform.machine() == 'x86_64' else 220}, flags, 0, 0, 0, 0)\n"
        "    if answer == 0: os._exit(0)\n"
        "    if answer == -1: raise OSError(ctypes.get_errno(), 'clone')\n"
        "    return answer\n"
        "for flags in (SIGCHLD, CLONE_PARENT | SIGCHLD, CLONE_NEWUSER | SIGCHLD): attempt(clone, flags)\n",
    )
    assert len(lines) == 16
    assert_all_refused(lines)


def test_memory_at_once_and_in_steps_is_refused(sandbox):
    lines = attack(
        sandbox,
        "attempt(bytearray, 10 << 30)\n"
        "def grow():\n"
        "    blocks = []\n"
        "    for _ in range(40): blocks.append(bytearray(16 << 20))\n"
        "attempt(grow)\n"
        "attempt(os.memfd_create, 'more')\n"
        "attempt(system, 'shmget', 0, 1 << 20, 0o1600)\n",
    )
    assert lines[:2] == ["stopped MemoryError "] * 2
    assert_all_stopped(lines)


def test_memory_error_that_nobody_catches_is_killed(sandbox):
    result = sandbox.run("blocks = []\nfor _ in range(40): blocks.append(bytearray(16 << 20))")
    assert result.outcome is ToolOutcome.KILLED
    assert result.stderr == "MemoryError: the code went over its memory limit\n"


def test_threads_are_bounded(sandbox):
    result = sandbox.run(
        "import threading, time\n"
        "threading.stack_size(32768)\n"
        "started = 0\n"
        "try:\n"
        "    for _ in range(200):\n"
        "        threading.Thread(target=time.sleep, args=(3,), daemon=True).start(); started += 1\n"
        "except RuntimeError: pass\n"
        "print(started)"
    )
    assert 16 <= int(result.stdout) < 100


@pytest.mark.parametrize(
    "code", ["while True: pass", "import time; time.sleep(60)", "import signal; signal.pause()"]
)
def test_code_that_does_not_end_is_ended(sandbox, code):
    result = sandbox.run("print('before')\n" + code, timeout_s=0.5)
    assert result.outcome is ToolOutcome.TIMEOUT
    assert result.stdout == "before\n"
    assert 0.5 <= result.seconds < 10


def test_code_cannot_shield_itself_from_the_deadline(sandbox):
    result = sandbox.run(
        "import signal\n"
        "for number in range(1, 65):\n"
        "    try: signal.signal(number, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n"
        "while True: pass",
        timeout_s=0.5,
    )
    assert result.outcome is ToolOutcome.TIMEOUT


def test_processor_time_of_many_threads_is_bounded(sandbox):
    result = sandbox.run(
        "import hashlib, threading\n"
        "def burn():\n"
        "    while True: hashlib.sha256(bytes(1 << 22))\n"
        "threads = [threading.Thread(target=burn, daemon=True) for _ in range(3)]\n"
        "for thread in threads: thread.start()\n"
        "threads[0].join()",
        timeout_s=1.0,
    )
    assert result.outcome in (ToolOutcome.TIMEOUT, ToolOutcome.KILLED)
    assert sandbox.run("1").outcome is ToolOutcome.OK


def test_output_flood_is_cut_and_stopped(sandbox):
    result = sandbox.run(
        "line = 'x' * 1023 + '\\n'\nfor _ in range(100_000): print(line, end='')", timeout_s=60
    )
    if isinstance(sandbox, SandboxSession):
        assert result.outcome is ToolOutcome.KILLED
        assert "its output had no end" in result.stderr
    else:
        assert result.outcome is ToolOutcome.TOOL_ERROR
        assert "BrokenPipeError" in result.stderr
    assert result.truncated
    assert len(result.stdout) < 70_000


def test_writes_outside_the_working_directory_fail(sandbox):
    lines = attack(
        sandbox,
        "library = os.path.dirname(os.__file__)\n"
        "for directory in ('/', '/usr', '/usr/lib', '/dev', '/sandbox', '/etc', sys.prefix, library):\n"
        "    attempt(open, directory + '/planted', 'w')\n"
        "attempt(os.unlink, os.__file__)\n"
        "attempt(os.chmod, os.__file__, 0o777)\n"
        "attempt(os.symlink, '/', '/dev/link')\n"
        "attempt(os.mknod, '/work/device', 0o60666, 0x800)\n",
    )
    assert len(lines) == 12
    assert_all_stopped(lines)


def test_disk_is_bounded(sandbox):
    lines = attack(
        sandbox,
        "def fill(directory):\n"
        "    for number in range(20):\n"
        "        with open(f'{directory}/{number}', 'wb') as file: file.write(bytes(1 << 20))\n"
        "attempt(fill, '/work')\n"
        "attempt(fill, '/tmp')\n"
        "os.unlink('/work/0')\n"
        "attempt(lambda: open('/work/big', 'wb').truncate(100 << 20))\n",
    )
    assert_all_stopped(lines)


def test_fork_server_and_others_cannot_be_signalled_or_slowed(sandbox):
    lines = attack(
        sandbox,
        "for pid in (1, 2, -1, 0, os.getppid()): attempt(os.kill, pid, signal.SIGKILL)\n"
        "attempt(os.killpg, 0, signal.SIGKILL)\n"
        "attempt(system, 'tgkill', 1, 1, 9)\n"
        "attempt(os.setpriority, os.PRIO_PROCESS, 1, 19)\n"
        "attempt(os.sched_setaffinity, 1, {0})\n"
        "import resource\n"
        "attempt(resource.prlimit, 1, resource.RLIMIT_CPU, (1, 1))\n"
        "attempt(os.pidfd_open, 1)\n"
        "import fcntl\n"
        "attempt(fcntl.fcntl, 1, fcntl.F_SETOWN, 1)\n",
    )
    assert len(lines) == 12
    assert_all_refused(lines)


def test_kernel_doors_are_shut(sandbox):
    lines = attack(
        sandbox,
        "attempt(system, 'mount', b'none', b'/work', b'tmpfs', 0, None)\n"
        "attempt(system, 'umount2', b'/work', 2)\n"
        "for flag in (0x20000, 0x10000000, 0x40000000, 0x8000000): attempt(system, 'unshare', flag)\n"
        "attempt(system, 'setns', 0, 0)\n"
        "attempt(os.chroot, '/work')\n"
        "PTRACE_ATTACH, PTRACE_TRACEME = 16, 0\n"
        "attempt(system, 'ptrace', PTRACE_ATTACH, 1, None, None)\n"
        "attempt(system, 'ptrace', PTRACE_TRACEME, 0, None, None)\n"
        "attempt(system, 'process_vm_readv', 1, None, 0, None, 0, 0)\n"
        "attempt(os.setuid, 0)\n"
        "attempt(os.setgroups, [0])\n"
        "attempt(system, 'prctl', 4, 1, 0, 0, 0)\n"
        # On x86-64: bpf, io_uring_setup, keyctl, perf_event_open, userfaultfd, clone3, one nobody has yet.
        "for number in (321, 425, 250, 298, 323, 435, 1000):\n"
        "    attempt(system, 'syscall', number, 0, 0, 0, 0, 0)\n",
    )
    assert len(lines) == 21
    assert_all_refused(lines)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x32 is a second table of x86-64")
def test_foreign_system_call_table_kills(sandbox):
    # x32: the same numbers with bit 30 set.
    result = sandbox.run("import ctypes\nctypes.CDLL(None).syscall(0x40000000 + 57)\nprint('went through')")
    assert result.outcome is ToolOutcome.KILLED
    assert result.stdout == ""


def test_no_limit_can_be_raised(sandbox):
    lines = attack(
        sandbox,
        "import resource\n"
        "for name in ('AS', 'CPU', 'NPROC', 'FSIZE'):\n"
        "    what = getattr(resource, 'RLIMIT_' + name)\n"
        "    try: resource.setrlimit(what, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "    except (ValueError, OSError) as error: print('stopped', error)\n"
        "    else: print('went through')\n",
    )
    assert len(lines) == 4
    assert_all_stopped(lines)


def test_no_descriptor_is_inherited(sandbox):
    # Of a session, the socket on which its own code comes.
    first = 4 if isinstance(sandbox, SandboxSession) else 3
    lines = attack(sandbox, f"for fd in range({first}, 1024): attempt(os.fstat, fd)")
    assert lines == ["stopped OSError EBADF"] * (1024 - first)


SECRET = "correct-horse-battery-staple"
# Every object that the process inherited: all were made before any call.
SEARCH = (
    "import gc, sys\n"
    "seen, found, pending = set(), [], []\n"
    "gc.freeze(); gc.unfreeze(); pending += gc.get_objects()\n"
    "while pending:\n"
    "    item = pending.pop()\n"
    "    if id(item) in seen: continue\n"
    "    seen.add(id(item))\n"
    "    if isinstance(item, (str, bytes)) and ('correct-' + 'horse') in str(item) and len(item) < 100:\n"
    "        found.append(item)\n"
    "    if len(seen) < 300_000: pending += gc.get_referents(item)\n"
    "len(seen) > 1000, [item for item in found if 'battery' + '-staple' in str(item)]"
)


def plant_secret(runner: LocalSandbox | SandboxSession) -> None:
    assert runner.run(f"print('{SECRET}' + input())", stdin="7734").stdout == SECRET + "7734\n"


def test_nothing_of_a_call_or_of_a_session_can_be_found_in_the_memory_of_the_next():
    with LocalSandbox(num_workers=1) as sandbox:
        plant_secret(sandbox)
        assert sandbox.run(SEARCH, timeout_s=60).stdout == "(True, [])\n"
        # One after the other in one worker.
        with sandbox.session() as first:
            plant_secret(first)
        with sandbox.session() as second:
            assert second.run(SEARCH, timeout_s=60).stdout == "(True, [])\n"
