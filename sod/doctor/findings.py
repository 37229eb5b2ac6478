"""What an examination finds, and the list it is written to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum

from sod.errors import SodError


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FATAL = "fatal"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the examination.

    Attributes:
        area: Part of the run, such as "student" or "sandbox".
        subject: What of it was looked at.
        text: What was found, with numbers; for a problem also what to do.
        level: How bad it is; a run with a fatal finding would fail or train on something wrong.
    """

    area: str
    subject: str
    text: str
    level: Level = Level.OK


class Findings(list[Finding]):
    """The findings so far, in the order of the examination."""

    def add(self, area: str, subject: str, text: str, level: Level = Level.OK) -> None:
        """Write one down."""
        self.append(Finding(area=area, subject=subject, text=text, level=level))

    @contextmanager
    def examining(self, area: str, subject: str) -> Iterator[None]:
        """Examine something; an error on the way is a fatal finding, and the examination goes on."""
        try:
            yield
        except SodError as error:
            self.add(area, subject, str(error), Level.FATAL)

    def to_json(self) -> str:
        """Give them as a JSON list of objects with the keys of `Finding`."""
        return json.dumps([asdict(finding) for finding in self], indent=1) + "\n"

    @property
    def is_fatal(self) -> bool:
        """Whether the run must not be started."""
        return any(finding.level is Level.FATAL for finding in self)
