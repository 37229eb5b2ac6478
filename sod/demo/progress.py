"""What the demo shows while it works: a heading per phase, bars on a terminal, lines everywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

Report = Callable[[int, int], None]
"""Takes how much is done and how much there is in all."""


class Show:
    """Headings, bars and lines on one console, with the time since the demo began."""

    def __init__(self, console: Console, num_phases: int) -> None:
        """Take the console.

        Args:
            console: Where everything goes.
            num_phases: Headings that will come.
        """
        self.console = console
        self._num_phases = num_phases
        self._phase = 0
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Wall-clock time since the demo began."""
        return time.perf_counter() - self._started

    def heading(self, text: str) -> None:
        """Begin the next phase."""
        self._phase += 1
        self.line("")
        self.line(f"[{self._phase}/{self._num_phases}] {text}  (at {_clock(self.seconds)})")

    def line(self, text: str) -> None:
        """Write one line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, text: str) -> Iterator[Report]:
        """Show how far a part is: a bar on a terminal, otherwise one line when it is done."""
        started = time.perf_counter()
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn())
        with Progress(
            *columns,
            TimeElapsedColumn(),
            Remaining(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        ) as progress:
            part = progress.add_task(text, total=None)

            def report(done: int, total: int) -> None:
                progress.update(part, completed=done, total=total)

            yield report
        self.line(f"{text}: done in {time.perf_counter() - started:.1f} s")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
