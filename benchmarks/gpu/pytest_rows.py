"""A pytest plugin that notes every test as it ends: `-p benchmarks.gpu.pytest_rows --rows FILE`.

One line of JSON per test, so that a run that is killed leaves what it had. With pytest-xdist the process that
collects the reports writes them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

_MOST_CHARACTERS = 3000
_OUTCOMES = {"passed": "ok", "failed": "failed", "skipped": "skipped"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("rows")
    group.addoption("--rows", type=Path, default=None, help="file that takes a line per test")
    group.addoption("--passed", type=Path, default=None, help="file of names that need not run again")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has passed before."""
    path = config.getoption("--passed")
    passed = set() if path is None else set(path.read_text(encoding="utf-8").splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
    items[:] = [item for item in items if item.nodeid not in passed]


class _Rows:
    def __init__(self, path: Path) -> None:
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write a test's line when its call has ended, or when it never came to that."""
        if report.when == "call" or not report.passed:
            row = {
                "item": report.nodeid,
                "status": _OUTCOMES[report.outcome],
                "reason": _reason(report),
                "seconds": round(report.duration, 3),
            }
            if report.failed:
                # Whoever reads the file has no second look at the device.
                row["report"] = str(report.longrepr)[-_MOST_CHARACTERS:]
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def _reason(report: pytest.TestReport) -> str | None:
    found: Any = report.longrepr
    if report.passed or found is None:
        return None
    if isinstance(found, tuple):
        return str(found[2]).removeprefix("Skipped: ")
    crash = getattr(found, "reprcrash", None)
    return (str(found) if crash is None else str(crash.message)).strip().splitlines()[0][:300]


def pytest_configure(config: pytest.Config) -> None:
    """Begin to take notes, in the process that sees all reports."""
    path = config.getoption("--rows")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Rows(path), "benchmarks-rows")
