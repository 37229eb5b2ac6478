"""Files of tasks and of demonstrations, for environments that make their own."""

from __future__ import annotations

from pathlib import Path

from sod.config_environments import EnvironmentSection
from sod.data import write_rows, write_tasks
from sod.envs.expert import expert_conversation
from sod.envs.registry import TaskRequest, build_environment, environment_entry
from sod.errors import ConfigError
from sod.types import Task


def make_tasks(section: EnvironmentSection, request: TaskRequest) -> list[Task]:
    """Make tasks for an environment.

    Args:
        section: Its settings.
        request: Which tasks.

    Returns:
        The tasks; the same arguments always give the same.

    Raises:
        ConfigError: The environment makes no tasks.
        DataError: The request cannot be met.
    """
    entry = environment_entry(section.name)
    if entry.make_tasks is None:
        raise ConfigError(
            f'[environment] name = "{section.name}": makes no tasks; write a file of them, with the columns '
            "that [data] names"
        )
    return entry.make_tasks(section, request)


def write_task_file(section: EnvironmentSection, request: TaskRequest, output: Path) -> None:
    """Write tasks for `[data] train` or `eval`.

    Args:
        section: Settings of the environment.
        request: Which tasks.
        output: A `.jsonl` file.

    Raises:
        SodError: See `make_tasks` and `sod.data.write_tasks`.
    """
    write_tasks(output, make_tasks(section, request))


def write_expert_file(
    section: EnvironmentSection, request: TaskRequest, output: Path, *, max_turns: int
) -> None:
    """Write the expert's conversations, for `[data] train` of the algorithm "sft".

    Args:
        section: Settings of the environment.
        request: Which tasks.
        output: A `.jsonl` file.
        max_turns: Turns that the expert may take.

    Raises:
        SodError: See `make_tasks` and `sod.envs.expert.expert_conversation`.
    """
    tasks = make_tasks(section, request)
    built = build_environment(section)
    try:
        written = [expert_conversation(built.factory(task), task, max_turns=max_turns) for task in tasks]
    finally:
        built.close()
    write_rows(output, ({"messages": messages} for messages in written))
