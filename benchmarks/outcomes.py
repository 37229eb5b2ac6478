"""How a row can end. Imports nothing, so that a process that only watches others starts at once."""

from __future__ import annotations

OK, SKIPPED, WRONG, FAILED = "ok", "skipped", "wrong", "failed"


class SkippedError(Exception):
    """Why something does not run here; the table shows it."""
