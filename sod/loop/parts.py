"""A long evaluation in parts that are kept, so that one that was cut short goes on."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sod.config_file import dump_config
from sod.errors import ConfigError
from sod.evaluate import EvalResult, summarise
from sod.loop.sampling import Progress, Sampler
from sod.rollout.store import read_trajectories, write_trajectories
from sod.types import Task, Trajectory

SETTINGS_FILE = "config.resolved.toml"


def evaluate_in_parts(
    sampler: Sampler, tasks: Sequence[Task], folder: Path, progress: Progress | None = None
) -> EvalResult:
    """Evaluate as many tasks at a time as fill a batch, and keep their attempts.

    Args:
        sampler: With the student's weights.
        tasks: Held-out tasks.
        folder: Where the parts are kept; those that are there are not made again.
        progress: Called with attempts done and in all.

    Returns:
        The result over all parts. Each part has draws of its own, so sampled attempts are others than those
        of an evaluation in one piece; greedy ones are the same.

    Raises:
        ConfigError: If the folder holds attempts of other settings.
        DataError: If a part cannot be read or written.
    """
    _claim(folder, sampler)
    num_samples = sampler.config.evaluation.num_samples
    size = max(1, sampler.config.rollout.max_batch // num_samples)
    attempts: list[Trajectory] = []
    for number, start in enumerate(range(0, len(tasks), size)):
        path = folder / f"part_{number:05d}.jsonl.gz"
        chosen = tasks[start : start + size]
        if path.is_file():
            part = read_trajectories(path)
        else:
            shown = _shifted(progress, len(attempts), len(tasks) * num_samples)
            made = sampler.evaluate(chosen, number, shown).trajectories
            part = [replace(one, group_id=one.group_id + start) for one in made]
            write_trajectories(path, part)
        _check(path, part, chosen, num_samples)
        attempts += part
        if progress is not None:
            progress(len(attempts), len(tasks) * num_samples)
    return summarise(attempts, sampler.answers(attempts))


def _claim(folder: Path, sampler: Sampler) -> None:
    """Begin a folder, or prove that it was begun with the same settings."""
    path, wanted = folder / SETTINGS_FILE, dump_config(sampler.config)
    if path.is_file():
        before, now = (tomllib.loads(text) for text in (path.read_text(encoding="utf-8"), wanted))
        differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if differing:
            names = ", ".join(f"[{name}]" for name in differing)
            raise ConfigError(
                f"eval: {folder} holds attempts of other settings, in {names}; give another --attempts folder"
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"eval: {folder} is not empty; give a new folder for --attempts")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(wanted, encoding="utf-8")


def _check(path: Path, part: Sequence[Trajectory], tasks: Sequence[Task], num_samples: int) -> None:
    found = [one.task_id for one in part]
    if found != [task.task_id for task in tasks for _ in range(num_samples)]:
        raise ConfigError(
            f"eval: {path} holds attempts at other tasks than [data] eval has now; give another folder for "
            "--attempts"
        )


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    if progress is None:
        return None
    return lambda done, _: progress(before + done, total)
