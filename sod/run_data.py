"""The rows that a run reads: tasks, expert conversations, and what must be in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from sod.chat import ChatRenderer
from sod.config import RunConfig
from sod.config_teachers import RoutedTeacherSection
from sod.data import expert_trajectories, load_tasks
from sod.errors import ConfigError
from sod.questions import load_questions
from sod.rollout.privilege import privilege_of
from sod.rollout.store import read_trajectories
from sod.teacher.routed import task_routes
from sod.types import Task, Trajectory


def load_task_file(config: RunConfig, which: Literal["train", "eval"]) -> Sequence[Task]:
    """Read the training or the held-out tasks of a run.

    Raises:
        ConfigError: If the configuration names no such file.
        DataError: Naming file, row and column.
    """
    data = config.data
    path = None if data is None else getattr(data, which)
    if data is None or path is None:
        raise ConfigError(f"[data] {which} is missing; give a .jsonl, .parquet or .json file of tasks")
    limit = data.train_limit if which == "train" else data.eval_limit
    if data.form != "plain":
        return load_questions(path, data.form, limit=limit)
    return load_tasks(
        path, prompt_column=data.prompt_column, answer_column=data.answer_column or None, limit=limit
    )


def expert_file(config: RunConfig) -> Path | None:
    """Give the file of expert conversations of a run; None where it reads none."""
    if config.data is None or not config.algorithm.reads_expert:
        return None
    return config.data.expert if config.algorithm.is_on_policy else config.data.train


def load_expert(config: RunConfig, renderer: ChatRenderer) -> Sequence[Trajectory]:
    """Read expert trajectories: a trajectories file (.jsonl.gz), or rows of chat messages.

    Raises:
        ConfigError: If the configuration names no file.
        DataError: Naming file, row and column.
    """
    path = expert_file(config)
    if config.data is None or path is None:
        raise ConfigError("[data] train is missing; give a file of expert conversations")
    is_stored = path.name.endswith(".jsonl.gz")
    expert = read_trajectories(path) if is_stored else expert_trajectories(path, renderer)
    return expert[: config.data.train_limit]


def check_tasks(config: RunConfig, tasks: Sequence[Task]) -> None:
    """Prove that tasks have what teacher and algorithm read of them.

    Args:
        config: The settings.
        tasks: The training tasks.

    Raises:
        ConfigError: Naming the first that has not.
    """
    privilege = privilege_of(config.algorithm)
    if privilege is not None:
        privilege.check(tasks)
    if isinstance(config.teacher, RoutedTeacherSection):
        task_routes(tasks, config.teacher.route_field, tuple(config.teacher.routes))
