"""Runs one part in this process: `python -m benchmarks.gpu.worker PART SETTINGS`; the driver starts it."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.job import Job, why_no_gpu, why_not
from benchmarks.gpu.sheet import Sheet, worst_status
from benchmarks.outcomes import SKIPPED


def work(part: str, folder: Path, *, is_dry: bool, resume: bool, limit_s: float, peers: Path) -> str:
    """Run a part from begin to end.

    Args:
        part: Name; `benchmarks.gpu.<part>_part` has its `run`.
        folder: Of the run; holds `origin.json`.
        is_dry: Whether to run without a GPU.
        resume: Whether to keep what an earlier run has finished.
        limit_s: Seconds until the driver kills this process.
        peers: Folder of packages that come last on the path.

    Returns:
        The status of the part.
    """
    started = time.monotonic()
    origin = json.loads((folder / "origin.json").read_text(encoding="utf-8"))
    sheet = Sheet.begin(folder, part, origin, resume=resume)
    reason = None if is_dry else why_no_gpu(origin)
    if reason is not None:
        sheet.finish(SKIPPED, reason, 0.0)
        return sheet.status
    job = Job(sheet=sheet, is_dry=is_dry, deadline=started + limit_s, peers=peers)
    try:
        importlib.import_module(f"benchmarks.gpu.{part}_part").run(job)
    except Exception as error:
        ending = why_not(error)
        sheet.finish(ending["status"], ending["reason"], time.monotonic() - started)
    else:
        sheet.finish(worst_status(sheet.rows), None, time.monotonic() - started)
    return sheet.status


if __name__ == "__main__":
    settings: dict[str, Any] = json.loads(sys.argv[2])
    work(sys.argv[1], Path(settings.pop("folder")), peers=Path(settings.pop("peers")), **settings)
