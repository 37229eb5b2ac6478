"""Bounded reading of one output stream."""

from __future__ import annotations

import os

_READ_BYTES = 1 << 16
_FLOOD_BYTES = 16 << 20


class BoundedText:
    """Keeps the beginning and the end of a stream of bytes and drops the middle.

    The end matters as much as the beginning: a traceback comes last.

    Args:
        max_bytes: Most bytes kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._head = bytearray()
        self._tail = bytearray()

    @property
    def is_truncated(self) -> bool:
        """Whether anything was dropped."""
        return self.num_bytes > self._max_bytes

    def add(self, data: bytes) -> None:
        """Add to the head until that is half full, then to the tail, which forgets its oldest.

        Args:
            data: What comes next.
        """
        self.num_bytes += len(data)
        num_head = max(0, self._max_bytes // 2 - len(self._head))
        self._head += data[:num_head]
        self._tail += data[num_head:]
        num_tail = self._max_bytes - self._max_bytes // 2
        if len(self._tail) > num_tail:
            del self._tail[: len(self._tail) - num_tail]

    def text(self) -> str:
        """Return what was kept as text, with a line that says how many bytes are missing, if any."""
        num_dropped = self.num_bytes - len(self._head) - len(self._tail)
        if not num_dropped:
            return bytes(self._head + self._tail).decode(errors="replace")
        marker = f"\n... [{num_dropped} bytes dropped] ...\n"
        return self._head.decode(errors="replace") + marker + self._tail.decode(errors="replace")


class Capture(BoundedText):
    """Reads one output stream of the code.

    A stream that delivers more than 16 MiB is closed, so that its writer gets a BrokenPipeError instead of
    keeping both sides busy to the deadline.

    Args:
        fd: Read end of a pipe; owned from here on and made non-blocking.
        max_bytes: Most bytes kept.
    """

    def __init__(self, fd: int, max_bytes: int) -> None:
        super().__init__(max_bytes)
        os.set_blocking(fd, False)
        self.fd = fd
        self.is_open = True

    @property
    def is_flooded(self) -> bool:
        """Whether the stream delivered more than anybody will read."""
        return self.num_bytes > _FLOOD_BYTES

    def read_available(self) -> None:
        """Read until the pipe is empty or closed."""
        while self.is_open:
            try:
                data = os.read(self.fd, _READ_BYTES)
            except BlockingIOError:
                return
            if data:
                self.add(data)
            if not data or self.is_flooded:
                self.close()
            elif len(data) < _READ_BYTES:
                return

    def close(self) -> None:
        """Close the pipe; harmless when it is closed."""
        if self.is_open:
            self.is_open = False
            os.close(self.fd)
