"""Append-only JSON lines that a resumed run cuts back to its checkpoint."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

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
        self._file: BinaryIO = path.open("ab")
        if offset is not None:
            size = self._file.tell()
            if size < offset:
                self._file.close()
                raise CheckpointError(
                    f"{path} has {size} bytes, but the checkpoint was made when it had {offset}; the file was "
                    "changed, so the run cannot go on from here"
                )
            self._file.truncate(offset)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one row; numbers that are not finite are written as null."""
        line = json.dumps({key: _json_value(value) for key, value in row.items()}, allow_nan=False)
        self._file.write(line.encode() + b"\n")

    def flush(self) -> None:
        """Hand the rows to the operating system, so that readers see them."""
        self._file.flush()

    def sync(self) -> int:
        """Bring the rows to the disk, and give the size of the file in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read all rows of a .jsonl file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
