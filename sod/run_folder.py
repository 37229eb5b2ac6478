"""The folder of a run: who may write to it, what it was started with, where its files are."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import time
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self, TextIO

import torch

from sod.config import RunConfig
from sod.config_file import dump_config
from sod.errors import CheckpointError, ConfigError
from sod.rollout.store import round_file

CONFIG_FILE = "config.resolved.toml"
ENV_FILE = "env.json"
LOCK_FILE = "run.lock"
_GIT_TIMEOUT_S = 10.0
_PARTIAL = ".partial"
FREE_ON_RESUME = {
    ("checkpoint", "every"),
    ("checkpoint", "keep_last"),
    ("run", "output"),
    ("trainer", "rounds"),
}
PACKAGES = ("sod-kernels", "torch", "transformers", "triton", "numpy", "datasets", "pyarrow")


class RunFolder:
    """One run's folder, locked while it is open."""

    def __init__(self, path: Path, lock: TextIO) -> None:
        """Wrap a folder that is already locked; use `create` or `reopen`."""
        self.path = path
        self._lock = lock
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.steps = path / "steps.jsonl"

    @classmethod
    def create(cls, config: RunConfig) -> Self:
        """Start a new run.

        Args:
            config: Its settings; written to `config.resolved.toml`.

        Returns:
            The folder, locked.

        Raises:
            ConfigError: If the folder holds a run or anything else.
        """
        path = config.run.output
        check_is_new(path)
        folder = cls(path, _lock(path))
        folder._describe(config)
        return folder

    @classmethod
    def reopen(cls, config: RunConfig) -> Self:
        """Go on with a run.

        Args:
            config: Settings; they must be those of the run, apart from `FREE_ON_RESUME`.

        Returns:
            The folder, locked.

        Raises:
            CheckpointError: If there is no run, or it was made with other settings.
        """
        path = config.run.output
        check_is_same_run(config)
        folder = cls(path, _lock(path))
        folder._describe(config)
        return folder

    def trajectories(self, round_index: int) -> Path:
        """File of the trajectories of a round."""
        return round_file(self.path, round_index)

    def record_environment(self, config: RunConfig) -> None:
        """Add what runs here (versions, commit, processor, threads) to `env.json`, one entry per start."""
        target = self.path / ENV_FILE
        starts = json.loads(target.read_text(encoding="utf-8"))["starts"] if target.is_file() else []
        starts.append(describe_environment(config))
        _write_whole(target, json.dumps({"starts": starts}, indent=1) + "\n")

    def _describe(self, config: RunConfig) -> None:
        try:
            _write_whole(self.path / CONFIG_FILE, dump_config(config))
            self.record_environment(config)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_folder(config: RunConfig, *, resume: bool) -> None:
    """Prove that the run folder is free, or holds the run that is to be gone on with.

    Raises:
        SodError: See `check_is_new` and `check_is_same_run`.
    """
    if resume:
        check_is_same_run(config)
    else:
        check_is_new(config.run.output)


def check_is_new(path: Path) -> None:
    """Prove that a run may start in a folder.

    Raises:
        ConfigError: If the folder holds a run, or other files, or is a file.
    """
    # What a process that was killed at its very start can leave.
    own = (LOCK_FILE, f"{CONFIG_FILE}{_PARTIAL}")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"[run] output = {str(path)!r}: is a file; wanted a folder that is new or empty")
    if (path / CONFIG_FILE).exists():
        raise ConfigError(
            f"[run] output = {str(path)!r}: holds a run already; go on with it by --resume, "
            "or give another folder"
        )
    if path.is_dir() and any(entry.name not in own for entry in path.iterdir()):
        raise ConfigError(f"[run] output = {str(path)!r}: is not empty; wanted a folder that is new or empty")


def check_is_same_run(config: RunConfig) -> None:
    """Prove that settings are those that the run in their output folder was started with.

    Raises:
        CheckpointError: If there is no run, or settings differ; they are named.
    """
    path = config.run.output / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"--resume: {config.run.output} holds no run ({CONFIG_FILE} is missing); leave --resume out"
        )
    before = tomllib.loads(path.read_text(encoding="utf-8"))
    after = tomllib.loads(dump_config(config))
    keys = {(section, key) for raw in (before, after) for section in raw for key in raw[section]}
    differing = [
        f"[{section}] {key}: {before.get(section, {}).get(key)!r} -> {after.get(section, {}).get(key)!r}"
        for section, key in sorted(keys - FREE_ON_RESUME)
        if before.get(section, {}).get(key) != after.get(section, {}).get(key)
    ]
    if differing:
        raise CheckpointError(
            f"--resume: the run in {config.run.output} was started with other settings: "
            f"{'; '.join(differing)}. Put them back, or start a new run in another folder."
        )


def describe_environment(config: RunConfig) -> dict[str, Any]:
    """Say what the run runs on."""
    return {
        "started_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_sha": _git_sha(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "num_cpus": os.cpu_count(),
        "num_threads": config.trainer.num_threads,
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _write_whole(target: Path, text: str) -> None:
    """Replace a file: whoever is killed on the way leaves the one before."""
    partial = target.with_name(f"{target.name}{_PARTIAL}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as error:
        raise CheckpointError(
            f"{target} cannot be written: {error}. Free disk space or give another [run] output."
        ) from error


def _lock(path: Path) -> TextIO:
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = (path / LOCK_FILE).open("w")
    except OSError as error:
        raise ConfigError(f"[run] output = {str(path)!r}: cannot be written: {error}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise ConfigError(
            f"[run] output = {str(path)!r}: another process is training there; stop it or give another folder"
        ) from None
    return handle


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_sha() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
