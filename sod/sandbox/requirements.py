"""What the sandbox needs from this machine, and what to do where that is missing."""

from __future__ import annotations

import errno
import importlib
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

_INSTALL_BUBBLEWRAP = (
    "bubblewrap (the program `bwrap`) is not installed. Install it: "
    "`apt-get install bubblewrap` (Debian, Ubuntu) or `dnf install bubblewrap` (Fedora, RHEL)."
)
_OLD_BUBBLEWRAP = (
    "bubblewrap is too old: it cannot limit the size of a tmpfs (`--size`). Install a newer one: "
    "Debian 12 and Ubuntu 24.04 have it."
)
_INSTALL_LIBSECCOMP = (
    "libseccomp or its Python binding is not installed. Install them: `apt-get install libseccomp2` "
    "(Debian, Ubuntu) or `dnf install libseccomp` (Fedora, RHEL), and `pip install pyseccomp`."
)
_HELP_TIMEOUT_S = 60.0
_SWITCHES = (
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "Ordinary users may not make user namespaces: `sysctl -w kernel.unprivileged_userns_clone=1`.",
    ),
    (
        "/proc/sys/user/max_user_namespaces",
        "0",
        "User namespaces are switched off or used up (ENOSPC): `sysctl -w user.max_user_namespaces=10000`.",
    ),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor restricts user namespaces (Ubuntu 23.10 and later): allow them to bwrap with an AppArmor "
        "profile, or `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`.",
    ),
)
_IN_A_CONTAINER = (
    "Inside a container, bwrap needs permission to make namespaces: run Docker with "
    "`--security-opt seccomp=unconfined --security-opt apparmor=unconfined` (and, as root, "
    "`--cap-add SYS_ADMIN`), or let an ordinary user run the rollout outside of one."
)


def missing_requirement() -> str | None:
    """Return what is not installed, with what to do about it, or None.

    It starts nothing but `bwrap --help`.
    """
    if not sys.platform.startswith("linux"):
        return f"the sandbox needs Linux (namespaces, seccomp); this is {sys.platform}. Use a Linux machine."
    if shutil.which("bwrap") is None:
        return _INSTALL_BUBBLEWRAP
    if "--size" not in bubblewrap()[1]:
        return _OLD_BUBBLEWRAP
    try:
        importlib.import_module("pyseccomp")
    except (ImportError, RuntimeError, OSError) as error:
        return f"{_INSTALL_LIBSECCOMP} ({error})"
    for directory in ("/work", "/tmp"):  # noqa: S108 - names inside the sandbox
        if Path(sys.base_prefix).is_relative_to(directory):
            return (
                f"the Python interpreter lies in {sys.base_prefix}, and the sandbox has its own {directory}. "
                "Use an interpreter that is installed elsewhere."
            )
    return None


def bubblewrap() -> tuple[str, str]:
    """Return the path of bubblewrap and what it answers to `--help`.

    Raises:
        FileNotFoundError: It is not installed.
    """
    path = shutil.which("bwrap")
    if path is None:
        raise FileNotFoundError(_INSTALL_BUBBLEWRAP)
    return path, _help(path, Path(path).stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _help(path: str, modified_ns: int) -> str:
    """Return what the program answers to `--help`; asked once, and again when another takes its place."""
    answer = subprocess.run(
        [path, "--help"], capture_output=True, text=True, check=False, timeout=_HELP_TIMEOUT_S
    )
    return answer.stdout + answer.stderr


def start_advice(reason: str) -> str:
    """Return a text for a sandbox that is installed but does not start.

    Args:
        reason: What bubblewrap or the fork server said.
    """
    parts = [f"the sandbox does not start: {reason}."]
    if f"[Errno {errno.EMFILE}]" in reason:
        # Then the switches cannot be read either.
        return f"{parts[0]} This process may not open more files: raise the limit, `ulimit -n 65536`."
    for path, value, advice in _SWITCHES:
        file = Path(path)
        is_used_up = "ENOSPC" in reason and "ENOSPC" in advice
        if is_used_up or (file.exists() and file.read_text().strip() == value):
            parts.append(advice)
    if reason.startswith("bwrap:"):
        parts.append(_IN_A_CONTAINER)
    return " ".join(parts)
