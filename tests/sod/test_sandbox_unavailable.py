"""Machines on which isolation cannot be had: said at once, with what to do, and never worked around."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sod.errors import SandboxUnavailableError
from sod.sandbox import LocalSandbox, requirements, sandbox_problem

ROOT = Path(__file__).parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"
ORDINARY_UID = 45678


def test_missing_bubblewrap_names_the_packages(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        SandboxUnavailableError, match=r"`apt-get install bubblewrap`.*`dnf install bubblewrap`"
    ):
        LocalSandbox()
    assert "LocalSandbox: bubblewrap (the program `bwrap`) is not installed." in sandbox_problem()
    with pytest.raises(FileNotFoundError, match=r"bubblewrap .* is not installed"):
        requirements.bubblewrap()


def test_old_bubblewrap_is_told(monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho '--tmpfs DEST'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "LocalSandbox: bubblewrap is too old: it cannot limit the size of a tmpfs" in sandbox_problem()


def test_another_system_is_named(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert sandbox_problem() == (
        "LocalSandbox: the sandbox needs Linux (namespaces, seccomp); this is darwin. Use a Linux machine."
    )


@pytest.mark.sandbox
@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("raise ImportError('no module')", "no module"),
        ("raise RuntimeError('Unable to find libseccomp')", "Unable"),
    ],
)
def test_missing_libseccomp_names_the_packages(tmp_path, module, reason):
    (tmp_path / "pyseccomp.py").write_text(module)
    program = "from sod.sandbox import sandbox_problem\nprint(sandbox_problem())"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    answer = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert "`apt-get install libseccomp2`" in answer.stdout
    assert "`dnf install libseccomp`" in answer.stdout
    assert "`pip install pyseccomp`" in answer.stdout
    assert reason in answer.stdout


@pytest.mark.sandbox
def test_interpreter_in_a_place_that_the_sandbox_covers_is_named(monkeypatch):
    monkeypatch.setattr(sys, "base_prefix", "/tmp/python")
    assert (
        "the Python interpreter lies in /tmp/python, and the sandbox has its own /tmp." in sandbox_problem()
    )


@pytest.mark.sandbox
def test_what_bubblewrap_says_is_passed_on(monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text(
        "#!/bin/sh\nif [ $1 = --help ]; then echo ' --size BYTES'; exit; fi\n"
        "echo 'bwrap: Creating new namespace failed: Operation not permitted' >&2\nexit 1\n"
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    problem = sandbox_problem()
    assert (
        "the sandbox does not start: bwrap: Creating new namespace failed: Operation not permitted."
        in problem
    )
    assert "`--security-opt seccomp=unconfined" in problem


@pytest.mark.sandbox
def test_hole_that_the_self_test_finds_stops_everything(monkeypatch, tmp_path):
    # A bubblewrap that forgets to make the root read-only.
    real = shutil.which("bwrap")
    fake = tmp_path / "bwrap"
    fake.write_text(
        "#!/bin/bash\nwords=()\nwhile (( $# )); do\n"
        '  if [ "$1" = --remount-ro ]; then words+=(--chmod 0777 /); shift 2; else words+=("$1"); shift; fi\n'
        f'done\nexec {real} "${{words[@]}}"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(
        SandboxUnavailableError, match=r"the isolation does not hold on this machine: / can be written"
    ):
        LocalSandbox()


@pytest.mark.sandbox
def test_preload_that_fails_is_named():
    with pytest.raises(
        SandboxUnavailableError, match="ModuleNotFoundError: No module named 'no_such_module'"
    ):
        LocalSandbox(preload=("no_such_module",))


@pytest.mark.parametrize("index", range(3))
def test_each_switch_of_the_kernel_has_its_advice(monkeypatch, tmp_path, index):
    path, value, advice = requirements._SWITCHES[index]
    assert path.startswith("/proc/sys/")
    switch = tmp_path / "switch"
    monkeypatch.setattr(requirements, "_SWITCHES", ((str(switch), value, advice),))
    assert requirements.start_advice("why") == "the sandbox does not start: why."
    switch.write_text("7\n")
    assert requirements.start_advice("why") == "the sandbox does not start: why."
    switch.write_text(value + "\n")
    assert requirements.start_advice("why") == f"the sandbox does not start: why. {advice}"
    assert "sysctl -w" in advice


def as_ordinary_user(words: list[str]) -> subprocess.CompletedProcess:
    """Run a program as a user without rights, with the system's Python and our packages."""
    packages = Path(pytest.__file__).parents[1]
    return subprocess.run(
        words,
        user=ORDINARY_UID,
        group=ORDINARY_UID,
        extra_groups=[],
        cwd="/",
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": f"{ROOT}:{packages}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        },
        capture_output=True,
        text=True,
    )


@pytest.fixture
def ordinary_python():
    if os.geteuid() != 0:
        pytest.skip("this is an ordinary user: every other test of the sandbox is that test")
    probe = as_ordinary_user([SYSTEM_PYTHON, "-c", "import sod.sandbox, pyseccomp, pytest, psutil"])
    if probe.returncode != 0:
        pytest.skip(f"no interpreter that an ordinary user can run has our packages: {probe.stderr[-200:]}")
    return SYSTEM_PYTHON


@pytest.mark.sandbox
@pytest.mark.slow
def test_the_same_walls_stand_for_an_ordinary_user(ordinary_python):
    files = [
        str(Path(__file__).with_name(f"test_sandbox{name}.py"))
        for name in ("", "_attacks", "_sessions", "_workers")
    ]
    settings = ["-c", os.devnull, "--rootdir", "/", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    answer = as_ordinary_user([ordinary_python, "-m", "pytest", *settings, *files])
    assert answer.returncode == 0, answer.stdout[-6000:] + answer.stderr
    assert "skipped" not in answer.stdout


@pytest.mark.sandbox
def test_machine_without_user_namespaces_is_told(ordinary_python):
    # A real one: inside, the kernel makes no more user namespaces.
    answer = as_ordinary_user(
        [
            *("bwrap", "--unshare-user", "--disable-userns", "--dev-bind", "/", "/", ordinary_python, "-c"),
            "from sod.sandbox import sandbox_problem; print(sandbox_problem())",
        ]
    )
    assert "the sandbox does not start: bwrap: " in answer.stdout
    assert (
        "User namespaces are switched off or used up (ENOSPC): `sysctl -w user.max_user_namespaces=10000`."
        in answer.stdout
    )
