"""Ctrl-C and SIGTERM as a request that the trainer answers at a safe place."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class StopRequested(Exception):  # noqa: N818 - it is a request, not an error
    """Raised at a safe place after a signal; `signal_number` says which."""

    def __init__(self, signal_number: int) -> None:
        """Remember the signal."""
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is only noted; a second one acts as it always does."""

    def __init__(self) -> None:
        """Start with nothing noted."""
        self._received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._put_back()

    def check(self) -> None:
        """Raise if a signal has come.

        Raises:
            StopRequested: If so.
        """
        if self._received is not None:
            raise StopRequested(self._received)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._received = number
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
