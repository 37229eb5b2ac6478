"""What a run shows while it works: a live bar on a terminal, one line per round everywhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

SHOWN = (
    ("loss/total", "loss"),
    ("kl/token_mean", "kl"),
    ("nll/token_mean", "nll"),
    ("step/weight_mean", "w"),
    ("rollout/success_mean", "success"),
    ("rollout/errors_per_trajectory", "errors"),
    ("time/tokens_per_s", "tok/s"),
)


class Display:
    """Progress of a run on stderr."""

    def __init__(self, console: Console | None = None, *, is_quiet: bool = False) -> None:
        """Make a display.

        Args:
            console: Where to write; None for stderr.
            is_quiet: Write warnings only.
        """
        self.console = console or Console(stderr=True)
        self._is_quiet = is_quiet
        self._progress: Progress | None = None
        self._rounds: TaskID | None = None
        self._part: TaskID | None = None
        self._started = time.perf_counter()
        self._first_round = 0
        self._num_rounds = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def begin(self, first_round: int, num_rounds: int) -> None:
        """Start the bars.

        Args:
            first_round: Rounds finished already.
            num_rounds: Rounds of the run.
        """
        self._first_round, self._num_rounds = first_round, num_rounds
        self._started = time.perf_counter()
        if self._is_quiet or not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            Remaining(),
            TextColumn("{task.fields[numbers]}"),
            console=self.console,
        )
        self._rounds = self._progress.add_task("rounds", total=num_rounds, completed=first_round, numbers="")
        self._part = self._progress.add_task("", total=None, numbers="")
        self._progress.start()

    def part(self, name: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """Show how far one part of a round is: rollout, scoring, updates, evaluation."""
        if self._progress is not None and self._part is not None:
            self._progress.update(
                self._part, description=name, completed=done, total=total, numbers=_numbers(metrics or {})
            )

    def end_round(self, finished: int, metrics: Mapping[str, float]) -> None:
        """Show the numbers of a round that is finished."""
        numbers = _numbers(metrics)
        if self._progress is not None and self._rounds is not None:
            self._progress.update(self._rounds, completed=finished, numbers=numbers)
        if not self._is_quiet:
            per_round = (time.perf_counter() - self._started) / max(1, finished - self._first_round)
            left = _duration(per_round * (self._num_rounds - finished))
            self.line(f"round {finished}/{self._num_rounds}  {numbers}  eta {left}")

    def line(self, text: str) -> None:
        """Write one line."""
        if not self._is_quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Write a warning, also when quiet."""
        self.console.print(f"warning: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def _numbers(metrics: Mapping[str, float]) -> str:
    parts = [f"{short} {metrics[key]:.4g}" for key, short in SHOWN if key in metrics]
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
