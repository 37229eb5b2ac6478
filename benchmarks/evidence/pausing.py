"""Progress that can be asked to wait: while a file exists, nobody computes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from sod.loop.display import Display

_POLL_S = 1.0


class PausingDisplay(Display):
    """A display that shows warnings only, and returns to the trainer no earlier than a pause is over."""

    def __init__(self, pause_file: Path | None, console: Console | None = None) -> None:
        """Take the file.

        Args:
            pause_file: Work waits while it exists; None never waits.
            console: Where warnings go; None for stderr.
        """
        super().__init__(console, is_quiet=True)
        self._pause_file = pause_file

    def wait(self, done: int = 0, total: int = 0) -> None:
        """Come back when there is no pause; called between updates and between finished attempts."""
        while self._pause_file is not None and self._pause_file.exists():
            time.sleep(_POLL_S)

    def part(self, name: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """Take the trainer's progress as a chance to pause."""
        self.wait()
        super().part(name, done, total, metrics)
