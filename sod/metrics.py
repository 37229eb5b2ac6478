"""Append-only JSON lines that a resumed run cuts back to its checkpoint."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from sod.errors import CheckpointError

WALL_CLOCK_PREFIX = "time/"
"""Keys with this prefix are wall-clock readings; everything else repeats bitwise on a resumed run."""


class JsonLines:
    """One growing .jsonl file."""

    def __init__(self, path: Path, *, offset: int | None = None) -> None:
        """Open a file at its end, or cut it back first.

        Args:
            path: The file; made where it is missing.
            offset: Bytes to keep; None keeps everything.

        Raises:
            CheckpointError: If the file is shorter than `offset`.
        """
        self.path = path
        self._pending = bytearray()
        self._file = path.open("ab", buffering=0)
        if offset is not None:
            size = self._file.tell()
            if size < offset:
                self._file.close()
                raise CheckpointError(
                    f"{path} has {size} bytes, but the checkpoint was made when it had {offset}; the file "
                    "was changed, so the run cannot go on from here"
                )
            self._file.truncate(offset)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; numbers that are not finite are written as null."""
        line = json.dumps({key: _json_value(value) for key, value in row.items()}, allow_nan=False)
        self._pending += line.encode() + b"\n"

    def flush(self) -> int:
        """Hand the rows to the operating system, so that readers see them, and give the size in bytes."""
        try:
            while self._pending:
                del self._pending[: self._file.write(self._pending)]
        except OSError as error:
            raise CheckpointError(
                f"{self.path} cannot be written: {error}; the latest checkpoint is whole. Free disk space, "
                "then use --resume."
            ) from error
        return self._file.tell()

    def sync(self) -> None:
        """Bring the rows to the disk."""
        self.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Close the file; after an error, without the rows that are still pending."""
        try:
            if kind is None:
                self.flush()
        finally:
            self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read all rows of a .jsonl file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
