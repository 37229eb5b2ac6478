"""The bubblewrap command line: what the sandbox sees of this machine."""

from __future__ import annotations

import compileall
import itertools
import os
import stat
import sys
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_INSIDE = Path(__file__).parent / "inside"
_START = (
    # The fork server turns the collector on again when it has imported what it needs.
    "import gc, sys; gc.disable(); sys.path.insert(0, '/sandbox'); "
    "from sod.sandbox.inside.fork_server import serve; serve(int(sys.argv[1]))"
)
# Containers with a user namespace often map only the lower 65536.
_FIRST_UID = 60000
_NUM_UIDS = 5000
_NOBODY = 65534

_uid_counter = itertools.count()


def can_change_uid() -> bool:
    """Return whether this process is a root that may become any of the sandbox's users."""
    if os.geteuid() != 0:
        return False
    rows = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(int(row[0]) == 0 and int(row[2]) >= _FIRST_UID + _NUM_UIDS for row in rows)


def next_code_uid() -> int | None:
    """Return a uid for the code of one more worker, or None where the uid cannot be changed.

    The kernel counts threads per uid, so workers should not share one.
    """
    if not can_change_uid():
        return None
    return _FIRST_UID + (os.getpid() * 64 + next(_uid_counter)) % _NUM_UIDS


def package_paths() -> tuple[str, ...]:
    """Return the directories of installed packages that the code may import from."""
    paths = sysconfig.get_paths()
    return tuple(path for path in dict.fromkeys((paths["purelib"], paths["platlib"])) if Path(path).is_dir())


def inside_package_paths() -> tuple[str, ...]:
    """Return where `package_paths` appear inside."""
    return tuple(f"/sandbox/packages/{index}" for index in range(len(package_paths())))


def bubblewrap_command(
    bubblewrap: str, help_text: str, *, control_fd: int, filter_fd: int, info_fd: int, disk_bytes: int
) -> Sequence[str]:
    """Return the command that starts a fork server inside a sandbox of its own.

    Args:
        bubblewrap: Path of the program.
        help_text: What it answers to `--help`: older versions lack an option.
        control_fd: Descriptor of the control socket.
        filter_fd: Descriptor of the base seccomp program.
        info_fd: Descriptor to which bubblewrap tells the pid of the fork server.
        disk_bytes: Size of each of the two writable directories, in bytes.

    Returns:
        Program and arguments.
    """
    return (
        *(bubblewrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
        *(
            "--unshare-cgroup-try",
            "--hostname",
            "sandbox",
            "--new-session",
            "--die-with-parent",
            "--as-pid-1",
        ),
        *_identity(bubblewrap, help_text),
        *_file_system(disk_bytes),
        *_environment(),
        *("--info-fd", str(info_fd), "--seccomp", str(filter_fd), "--"),
        *(os.path.realpath(sys.executable), "-s", "-S", "-P", "-B", "-c", _START, str(control_fd)),
    )


def _identity(bubblewrap: str, help_text: str) -> list[str]:
    """Options that decide who the fork server is and what it may do."""
    if can_change_uid():
        # What it takes to become another user, to kill that user's process and to remove its files.
        kept = ("CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_DAC_OVERRIDE", "CAP_FOWNER")
        return ["--cap-drop", "ALL", *(word for name in kept for word in ("--cap-add", name))]
    options = ["--unshare-user", "--uid", str(_NOBODY), "--gid", str(_NOBODY), "--cap-drop", "ALL"]
    # A setuid bubblewrap refuses the option, older ones do not know it; both filters deny it all the same.
    is_setuid = bool(Path(bubblewrap).stat().st_mode & stat.S_ISUID)
    if "--disable-userns" in help_text and not is_setuid:
        options.append("--disable-userns")
    return options


def _file_system(disk_bytes: int) -> list[str]:
    """Options that build the root: no `/proc`, no `/sys`, no home, four devices, two writable directories."""
    options = ["--ro-bind", "/usr", "/usr", *_open_directory("/etc"), *_open_directory("/dev")]
    for name in ("/bin", "/lib", "/lib32", "/lib64", "/sbin"):
        path = Path(name)
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            options += ["--ro-bind", name, name]
    for name in ("/etc/ld.so.cache", "/etc/alternatives"):
        options += ["--ro-bind-try", name, name]
    for prefix in dict.fromkeys((sys.base_prefix, sys.base_exec_prefix)):
        if not Path(prefix).is_relative_to("/usr"):
            options += _bind(prefix, prefix)
    _compile_inside()
    options += _bind(str(_INSIDE), "/sandbox/sod/sandbox/inside")
    for outside, inside in zip(package_paths(), inside_package_paths(), strict=True):
        options += _bind(outside, inside)
    for name in ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"):
        options += ["--dev-bind", name, name]
    for name in ("/work", "/tmp"):  # noqa: S108 - inside the sandbox
        options += ["--size", str(disk_bytes), "--tmpfs", name]
    return [*options, "--remount-ro", "/", "--chdir", "/work"]


@cache
def _compile_inside() -> None:
    """Make the byte code of what runs inside, where nothing can be written; without it starts take longer."""
    compileall.compile_dir(_INSIDE, quiet=2)


def _bind(outside: str, inside: str) -> list[str]:
    """Options that show a directory, read-only, below parents that every user may pass."""
    parents = [word for parent in reversed(Path(inside).parents) for word in _open_directory(str(parent))]
    return [*parents, "--ro-bind", outside, inside]


def _open_directory(inside: str) -> list[str]:
    """Options that make a directory; those that bubblewrap makes on its own can be closed to other users."""
    return ["--perms", "0755", "--dir", inside]


def _environment() -> list[str]:
    """Options that replace the environment, for the code as well."""
    variables = {
        "HOME": "/work",
        "TMPDIR": "/tmp",  # noqa: S108 - inside the sandbox
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        # The same code prints the same sets in every worker.
        "PYTHONHASHSEED": "0",
        # A pool of threads per call costs more than it brings, and address space besides.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    if sysconfig.get_config_var("Py_ENABLE_SHARED"):
        variables["LD_LIBRARY_PATH"] = f"{sys.base_prefix}/lib"
    options = ["--clearenv"]
    for name, value in variables.items():
        options += ["--setenv", name, value]
    return options
