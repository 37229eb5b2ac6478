"""What a teacher is told of a task beyond what the student reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sod.config_algorithms import AlgorithmSection, PrivilegedSection
from sod.errors import ConfigError, RolloutError
from sod.types import Message, Task


@dataclass(frozen=True, kw_only=True)
class Privilege:
    """Tells the teacher an answer or a hint, in the last message of the user that opens a sequence.

    Attributes:
        section: The algorithm's settings.
    """

    section: PrivilegedSection

    def text(self, task: Task) -> str:
        """Give what the teacher is told of a task.

        Args:
            task: The task.

        Returns:
            The text; of an expert's conversation the turns before its last, which gives the answer.

        Raises:
            ConfigError: The task does not have it.
        """
        name, field = self.section.name, self.section.told_field
        value = task.fields.get(field)
        found = (
            _trace(value) if isinstance(value, list | tuple) and _is_conversation(value) else _plain(value)
        )
        if not found:
            wanted = "a text, a number or a list of them"
            if self.section.name == "opsd_hint":
                wanted = "a text, or an expert's conversation of at least two turns"
            raise ConfigError(
                f'algorithm "{name}" tells the teacher fields[{field!r}] of a task, but that of task '
                f"{task.task_id!r} is {str(value)[:60]!r}; wanted {wanted}. Add the column to "
                "[data] train, or take another algorithm."
            )
        return found

    def check(self, tasks: Iterable[Task]) -> None:
        """Prove that every task has what the teacher is to be told.

        Args:
            tasks: The training tasks.

        Raises:
            ConfigError: Naming the first that does not.
        """
        for task in tasks:
            self.text(task)

    def told(self, task: Task, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Give the opening messages of a sequence as the teacher reads them.

        Args:
            task: The task.
            messages: As the student reads them.

        Returns:
            The same, the last message of the user longer.

        Raises:
            RolloutError: No message is the user's.
        """
        places = [place for place, message in enumerate(messages) if message["role"] == "user"]
        if not places:
            raise RolloutError(
                f'algorithm "{self.section.name}" tells the teacher more in a message of the user, but task '
                f"{task.task_id!r} opens with roles {[message['role'] for message in messages]}"
            )
        text = self.section.prompt.replace(self.section.placeholder, self.text(task))
        message = messages[places[-1]]
        longer = {**message, "content": f"{message['content']}{text}"}
        return (*messages[: places[-1]], longer, *messages[places[-1] + 1 :])

    def check_length(self, task: Task, told_ids: Sequence[int], prompt_ids: Sequence[int]) -> None:
        """Prove that a prompt of the teacher is within its bound.

        Args:
            task: The task.
            told_ids: The prompt as the teacher reads it.
            prompt_ids: As the student reads it.

        Raises:
            RolloutError: It is longer than the student's by more than `max_extra_tokens`.
        """
        extra, limit = len(told_ids) - len(prompt_ids), self.section.max_extra_tokens
        if extra > limit:
            raise RolloutError(
                f"task {task.task_id!r}: the teacher's prompt has {extra} tokens more than the student's; "
                f"wanted at most [algorithm] max_extra_tokens = {limit}. Raise it, as far as the teacher's "
                "context goes, or leave the task out."
            )


def privilege_of(section: AlgorithmSection) -> Privilege | None:
    """Give what the teacher of an algorithm is told; None where it reads what the student reads."""
    return Privilege(section=section) if isinstance(section, PrivilegedSection) else None


def _plain(value: Any) -> str:
    values = value if isinstance(value, list | tuple) else [value]
    is_plain = all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in values)
    return " or ".join(str(one) for one in values).strip() if is_plain else ""


def _is_conversation(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(one, Mapping) for one in values)


def _trace(messages: Sequence[Message]) -> str:
    turns = [message for message in messages if message.get("role") == "assistant"]
    return "\n".join(f"{number}. {_spoken(turn)}" for number, turn in enumerate(turns[:-1], start=1))


def _spoken(turn: Message) -> str:
    calls = [call.get("function", call) for call in turn.get("tool_calls") or ()]
    written = [f"{call['name']}({_arguments(call.get('arguments'))})" for call in calls]
    return " ".join(part for part in (str(turn.get("content") or "").strip(), *written) if part)


def _arguments(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
