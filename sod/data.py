"""Task files and expert conversations: rows of a file in, tasks or trajectories out, nothing guessed.

Every complaint names the file, the row (counted from 1) and the column.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from sod.chat import ChatRenderer
from sod.errors import DataError, TemplateError
from sod.types import Message, Task, ToolCall, Trajectory, Turn

_ROLES = ("system", "developer", "user", "assistant", "tool")


def load_tasks(
    path: str | Path,
    *,
    prompt_column: str = "prompt",
    answer_column: str | None = "answer",
    id_column: str | None = None,
    system_prompt: str | None = None,
    limit: int | None = None,
) -> list[Task]:
    """Read tasks from a `.jsonl`, `.parquet` or `.json` file (the last holds one list).

    Args:
        path: The file.
        prompt_column: A plain string (one user message) or a list of chat messages.
        answer_column: The ground truth; dots go into nested values (`reward_model.ground_truth`). It
            becomes `fields["answer"]`. None where tasks have none.
        id_column: Unique names of the tasks; None numbers the rows.
        system_prompt: Put before the messages of every task.
        limit: Number of rows read from the start; None reads all.

    Returns:
        One task per row; all other columns are in its `fields`.

    Raises:
        DataError: The file is missing, empty or not readable, a column or a value is missing, messages are
            malformed, or an id occurs twice.
    """
    tasks: list[Task] = []
    seen: dict[str, int] = {}
    source = Path(path)
    for number, row in read_rows(source, "load_tasks", limit):
        where = f"load_tasks: {source} row {number}"
        fields = {name: value for name, value in row.items() if name != prompt_column}
        if answer_column is not None:
            fields["answer"] = _value(row, answer_column, where)
        task_id = f"{source.stem}:{number}" if id_column is None else str(_value(row, id_column, where))
        if task_id in seen:
            raise DataError(
                f"{where}: id {task_id!r} in column {id_column!r} is that of row {seen[task_id]} too."
            )
        seen[task_id] = number
        messages = _prompt(_value(row, prompt_column, where), f"{where}, column {prompt_column!r}")
        if system_prompt is not None:
            if messages[0]["role"] == "system":
                raise DataError(
                    f"{where}, column {prompt_column!r}: the messages begin with a system message already; "
                    "leave system_prompt unset for this file."
                )
            messages = ({"role": "system", "content": system_prompt}, *messages)
        tasks.append(Task(task_id=task_id, messages=messages, fields=fields))
    return tasks


def expert_trajectories(
    path: str | Path, renderer: ChatRenderer, *, messages_column: str = "messages", limit: int | None = None
) -> list[Trajectory]:
    """Read written conversations as trajectories with the very ids that a rollout of them would have.

    Args:
        path: A `.jsonl`, `.parquet` or `.json` file.
        renderer: Makes the ids, with its own tools, and proves that the conversation only grows.
        messages_column: Chat messages that end with an assistant message; assistant messages may have
            `tool_calls`, and `"weight": 0` keeps one out of the loss.
        limit: Number of rows read from the start; None reads all.

    Returns:
        One trajectory per row, without log-probabilities; `group_id` is the row, counted from 0.

    Raises:
        DataError: As `load_tasks`, and where the template changes what came before a message.
    """
    source = Path(path)
    trajectories = []
    for number, row in read_rows(source, "expert_trajectories", limit):
        where = f"expert_trajectories: {source} row {number}, column {messages_column!r}"
        messages = _messages(_value(row, messages_column, where), where)
        trajectories.append(
            _expert_trajectory(messages, renderer, where, f"{source.stem}:{number}", number - 1)
        )
    return trajectories


def _expert_trajectory(
    messages: Sequence[Message], renderer: ChatRenderer, where: str, task_id: str, group_id: int
) -> Trajectory:
    if messages[-1]["role"] != "assistant":
        raise DataError(
            f"{where}: the last message has role {messages[-1]['role']!r}; nothing answers it, so end the "
            "conversation with an assistant message."
        )
    weights = [_weight(message, where) for message in messages if message["role"] == "assistant"]
    written = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    try:
        turns = renderer.conversation_turns(written)
    except TemplateError as error:
        raise DataError(f"{where}: {error}") from error
    return Trajectory(
        task_id=task_id,
        group_id=group_id,
        turns=tuple(
            Turn(
                context_ids=context,
                sampled_ids=sampled,
                calls=tuple(call for call in renderer.parse(sampled).calls if isinstance(call, ToolCall)),
                is_trained=is_trained,
            )
            for (context, sampled), is_trained in zip(turns, weights, strict=True)
        ),
    )


def _weight(message: Message, where: str) -> bool:
    weight = message.get("weight", 1)
    if weight not in (0, 1):
        raise DataError(f"{where}: the weight of an assistant message must be 0 or 1, got {weight!r}.")
    return bool(weight)


def read_rows(source: Path, function: str, limit: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a file row by row.

    Args:
        source: A `.jsonl` or `.parquet` file, or a `.json` file with one list of objects.
        function: Who asks, for the errors.
        limit: Number of rows read from the start; None reads all.

    Yields:
        Number of the row, counted from 1, and its columns.

    Raises:
        DataError: The file is missing, empty or not readable.
        ValueError: The limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"{function}: limit must be 1 or more, got {limit}.")
    if not source.is_file():
        raise DataError(f"{function}: {source} does not exist.")
    readers = {".jsonl": _jsonl_rows, ".parquet": _parquet_rows, ".json": _json_rows}
    reader = readers.get(source.suffix)
    if reader is None:
        raise DataError(f"{function}: {source} must be a .jsonl, .parquet or .json file.")
    is_empty = True
    for row in islice(reader(source, function), limit):
        is_empty = False
        yield row
    if is_empty:
        raise DataError(f"{function}: {source} has no rows.")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as a `.jsonl` file.

    Args:
        path: The file; its folder is made where absent.
        rows: Columns that JSON can hold.

    Raises:
        DataError: The file has another suffix, which would not be read back.
    """
    if path.suffix != ".jsonl":
        raise DataError(f"write_rows: {path} must be a .jsonl file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_tasks(path: Path, tasks: Iterable[Task]) -> None:
    """Write tasks as rows that `load_tasks` reads back unchanged.

    Args:
        path: A `.jsonl` file.
        tasks: With fields that JSON can hold.

    Raises:
        DataError: The file has another suffix.
    """
    write_rows(
        path, ({"task_id": task.task_id, "prompt": list(task.messages), **task.fields} for task in tasks)
    )


def _json_rows(source: Path, function: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        rows = json.loads(source.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{function}: {source} is not valid JSON: {error}.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{function}: {source} must hold one list of objects; else name it .jsonl.")
    yield from enumerate(rows, start=1)


def _jsonl_rows(source: Path, function: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with source.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except ValueError as error:
                raise DataError(f"{function}: {source} row {number} is not valid JSON: {error}.") from error
            if not isinstance(row, dict):
                raise DataError(
                    f"{function}: {source} row {number} must be a JSON object, got {line[:40]!r}."
                )
            yield number, row


def _parquet_rows(source: Path, function: str) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        raise DataError(f"{function}: {source} cannot be read as parquet: {error}") from error


def _value(row: Mapping[str, Any], column: str, where: str) -> Any:
    """A column's value; dots go into nested values unless the whole name is a column."""
    value: Any = row
    for key in [column] if column in row else column.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise DataError(f"{where} has no column {column!r}; it has {sorted(row)}.")
        value = value[key]
    if value is None:
        raise DataError(f"{where}: column {column!r} is empty.")
    return value


def _prompt(value: Any, where: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    messages = _messages(value, where)
    if messages[-1]["role"] == "assistant":
        raise DataError(f"{where}: a prompt must not end with an assistant message.")
    return messages


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: expected a non-empty list of messages, got {str(value)[:60]!r}.")
    return tuple(_message(message, f"{where}, message {index}") for index, message in enumerate(value))


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping) or value.get("role") not in _ROLES:
        raise DataError(f"{where}: expected a role of {', '.join(_ROLES)}, got {str(value)[:60]!r}.")
    # Parquet gives every message the keys of all others, empty.
    message = {key: item for key, item in value.items() if item is not None}
    calls = message.get("tool_calls")
    if calls:
        message["tool_calls"] = [_tool_call(call, where) for call in calls]
    message.setdefault("content", "" if calls else None)
    if not isinstance(message["content"], str) or not (message["content"].strip() or calls):
        raise DataError(f"{where}: the content must be a non-empty string, got {message['content']!r}.")
    return message


def _tool_call(value: Any, where: str) -> dict[str, Any]:
    call = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        raise DataError(f"{where}: expected a tool call with name and arguments, got {str(value)[:60]!r}.")
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise DataError(
                f"{where}: the arguments of {call['name']!r} are not valid JSON: {error}."
            ) from error
    if not isinstance(arguments, Mapping):
        raise DataError(f"{where}: the arguments of {call['name']!r} must be an object, got {arguments!r}.")
    return {"type": "function", "function": {"name": call["name"], "arguments": dict(arguments)}}
