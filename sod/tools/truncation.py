"""Cuts long text in the middle."""

from __future__ import annotations

MIN_CHARS = 64
"""Room for the marker and a little text."""


def truncate_middle(text: str, max_chars: int) -> str:
    """Return the text, its middle replaced by a marker that says how many characters were dropped.

    Beginning and end stay: a result comes first, an error comes last.

    Args:
        text: Any text.
        max_chars: Most characters returned, marker included; at least 64.

    Returns:
        At most `max_chars` characters; the text itself if it fits.

    Raises:
        ValueError: `max_chars` is too small.
    """
    if max_chars < MIN_CHARS:
        raise ValueError(f"truncate_middle: max_chars is {max_chars}, wanted at least {MIN_CHARS}.")
    if len(text) <= max_chars:
        return text
    # The marker for the whole length is the longest there can be, so what is kept always fits.
    num_kept = max_chars - len(_marker(len(text)))
    num_head = (num_kept + 1) // 2
    num_tail = num_kept - num_head
    return text[:num_head] + _marker(len(text) - num_kept) + text[len(text) - num_tail :]


def _marker(num_dropped: int) -> str:
    """Return the line that stands for what was dropped."""
    return f"\n... [{num_dropped} characters dropped] ...\n"
