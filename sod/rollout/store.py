"""Trajectories on disk: `*.jsonl.gz`, a header line and then one trajectory per line.

What is read back equals what was written, to the last bit of every log-probability.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sod.errors import DataError
from sod.types import Drift, EndReason, StopReason, ToolCall, ToolOutcome, ToolResult, Trajectory, Turn

_FORMAT = "sod-trajectories"
SCHEMA_VERSION = 1


def round_file(run: Path, round_index: int) -> Path:
    """Give the file of the trajectories of a round in a run folder."""
    return run / "trajectories" / f"round_{round_index:04d}.jsonl.gz"


def write_trajectories(path: str | Path, trajectories: Iterable[Trajectory]) -> None:
    """Write trajectories to a new file, or replace one, all or nothing.

    Args:
        path: Where to write; its folder exists and its name ends with `.jsonl.gz`.
        trajectories: What to write. Equal trajectories give equal bytes.

    Raises:
        DataError: The name ends otherwise, the disk takes no more, or an argument of a tool call is nothing
            that JSON can hold.
    """
    target = _checked_path(path, "write_trajectories")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as raw:
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as file:
                file.write(_line({"format": _FORMAT, "version": SCHEMA_VERSION}))
                for index, trajectory in enumerate(trajectories):
                    file.write(_exact_line(index, trajectory))
            raw.flush()
            os.fsync(raw.fileno())
        partial.replace(target)
    except OSError as error:
        raise DataError(
            f"write_trajectories: {target} cannot be written: {error}. Free disk space or give another "
            "folder."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def read_trajectories(path: str | Path) -> list[Trajectory]:
    """Read a file of trajectories.

    Args:
        path: A file written by `write_trajectories`.

    Returns:
        The trajectories, in order.

    Raises:
        DataError: The file is missing, no trajectory file, of a newer version, cut off or damaged; the
            message names the line.
    """
    source = _checked_path(path, "read_trajectories")
    if not source.is_file():
        raise DataError(f"read_trajectories: {source} does not exist.")
    lines = _lines(source)
    _check_header(source, next(lines, (1, b"")))
    return [_parse_line(source, number, line) for number, line in lines]


def trajectory_to_dict(trajectory: Trajectory) -> dict[str, Any]:
    """Give a trajectory as plain JSON values.

    Args:
        trajectory: Any trajectory.

    Returns:
        Nested dicts and lists.
    """
    values = _shallow(trajectory)
    values["segments"] = list(trajectory.segments)
    values["tools"] = _plain(trajectory.tools)
    values["turns"] = [
        {
            **_shallow(turn),
            "calls": [_shallow(call) for call in turn.calls],
            "results": [_shallow(result) for result in turn.results],
            "messages": _plain(turn.messages),
        }
        for turn in trajectory.turns
    ]
    return values


def trajectory_from_dict(values: Mapping[str, Any]) -> Trajectory:
    """Make a trajectory of what `trajectory_to_dict` gave.

    Args:
        values: Nested dicts and lists.

    Returns:
        The trajectory.

    Raises:
        KeyError, TypeError, ValueError: A field is missing, unknown or of a wrong kind.
    """
    turns = tuple(_turn_from_dict(turn) for turn in values["turns"])
    changed: dict[str, Any] = {"turns": turns, "segments": tuple(values["segments"])}
    tools = values.get("tools")
    changed |= {
        "end_reason": EndReason(values["end_reason"]),
        "tools": None if tools is None else tuple(tools),
    }
    return Trajectory(**{**values, **changed})


def _turn_from_dict(values: Mapping[str, Any]) -> Turn:
    changed: dict[str, Any] = {
        name: tuple(values[name]) for name in ("context_ids", "sampled_ids", "sampled_log_probs")
    }
    changed["calls"] = tuple(ToolCall(**call) for call in values["calls"])
    changed["results"] = tuple(
        ToolResult(**{**result, "outcome": ToolOutcome(result["outcome"])}) for result in values["results"]
    )
    changed["stop_reason"] = StopReason(values["stop_reason"])
    # Files of before these were kept do not have them.
    drift = values.get("drift")
    changed["drift"] = None if drift is None else Drift(drift)
    changed["messages"] = tuple(values.get("messages", ()))
    told = values.get("teacher_context_ids")
    changed["teacher_context_ids"] = None if told is None else tuple(told)
    return Turn(**{**values, **changed})


def _shallow(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _plain(entries: Iterable[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    return None if entries is None else [dict(entry) for entry in entries]


def _line(values: Mapping[str, Any]) -> bytes:
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    # Text that a model wrote may hold lone surrogates, which only this escape carries through UTF-8.
    return text.encode("utf-8", errors="surrogatepass") + b"\n"


def _exact_line(index: int, trajectory: Trajectory) -> bytes:
    values = trajectory_to_dict(trajectory)
    try:
        line = _line(values)
        is_exact = trajectory_to_dict(trajectory_from_dict(_loads(line))) == values
    except (TypeError, ValueError) as error:
        raise DataError(
            f"write_trajectories: trajectory {index} (task {trajectory.task_id!r}) cannot be written: "
            f"{error}. Arguments of tool calls must be plain JSON values."
        ) from error
    if not is_exact:
        raise DataError(
            f"write_trajectories: trajectory {index} (task {trajectory.task_id!r}) would be read back "
            "changed; tuples, not-a-number and keys that are no strings cannot stand in arguments or rewards."
        )
    return line


def _loads(line: bytes) -> Any:
    return json.loads(line.decode("utf-8", errors="surrogatepass"))


def _lines(source: Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    try:
        with gzip.open(source, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"read_trajectories: {source} is damaged or cut off after line {number}: {error}"
        ) from error


def _check_header(source: Path, first: tuple[int, bytes]) -> None:
    try:
        header = _loads(first[1])
        is_ours = header["format"] == _FORMAT
    except (ValueError, TypeError, KeyError):
        is_ours = False
    if not is_ours:
        raise DataError(
            f"read_trajectories: {source} is no trajectory file: its first line is no {_FORMAT} header."
        )
    if header.get("version") != SCHEMA_VERSION:
        raise DataError(
            f"read_trajectories: {source} has schema version {header.get('version')!r}, this release reads "
            f"version {SCHEMA_VERSION}; read it with the release that wrote it."
        )


def _parse_line(source: Path, number: int, line: bytes) -> Trajectory:
    try:
        return trajectory_from_dict(_loads(line))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"read_trajectories: line {number} of {source} is no trajectory: {type(error).__name__}: {error}"
        ) from error


def _checked_path(path: str | Path, function: str) -> Path:
    if not str(path).endswith(".jsonl.gz"):
        raise DataError(f"{function}: the file name must end with .jsonl.gz, got {str(path)!r}.")
    return Path(path)
