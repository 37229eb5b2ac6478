"""The tests that take whatever device there is: every function, backend and dtype against float64.

On a GPU they cover odd vocabularies, infinities, rows that lie apart, steps across chunks, bitwise repeats,
CUDA graphs, compiled code, waiting for the device, and more than 2^31 entries.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from benchmarks.gpu.job import ROOT, Job, environment, module_command, say
from benchmarks.outcomes import FAILED, OK, SKIPPED

TESTS = (
    "tests/kernels/test_family_device.py",
    "tests/kernels/test_native_cuda.py",
    "tests/kernels/test_triton_backend.py",
    "tests/kernels/test_triton_config.py",
    "tests/kernels/test_triton_scaling.py",
    "tests/kernels/test_unit_kl_backends.py",
)
"""In the order in which they run; all take the GPU where there is one."""

_DRY = ("tests/kernels/test_family_device.py", "tests/kernels/test_native_cuda.py")
_ODD = "odd_vocabulary and ((reference and float32) or (triton and bfloat16))"
_DRY_NAMES = f"({_ODD}) or replays or beyond"
# Each worker holds a CUDA context, compiles on a core of its own and shares the card.
_MOST_WORKERS = 12
_STOP_BEFORE_S = 8.0
_SAY_EVERY = 50
# Every worker would start as many threads, and as many compilers, as there are cores.
_VARIABLES = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


def run(job: Job) -> None:
    """Run the tests; note each as it ends, and sum up per file."""
    folder = job.sheet.path.parent
    lines, passed = folder / "correctness.jsonl", folder / "correctness.passed"
    lines.unlink(missing_ok=True)
    kept = [row for row in job.sheet.content.get("tests", []) if row["status"] == OK]
    passed.write_text("\n".join(row["item"] for row in kept), encoding="utf-8")
    variables = environment(**_VARIABLES)
    if not job.is_dry:
        variables.pop("TRITON_INTERPRET", None)
    command = _command(job, lines, passed)
    process = subprocess.Popen(command, cwd=ROOT, env=variables)
    try:
        while process.poll() is None and job.seconds_left() > _STOP_BEFORE_S:
            time.sleep(0.5)
            _note(job, kept, lines)
        is_late = process.poll() is None
    finally:
        process.kill()
        code = process.wait()
    _note(job, kept, lines)
    for path in (lines, passed):
        path.unlink(missing_ok=True)
    if is_late:
        raise TimeoutError(
            f"The tests were stopped at their limit; {len(job.sheet.content['tests'])} had ended."
        )
    # 0: all passed, 1: some failed; anything else means that they did not run.
    if code not in (0, 1):
        raise RuntimeError(f"pytest ended with {code}: {' '.join(command)}")


def _command(job: Job, lines: Path, passed: Path) -> list[str]:
    plugin = ["-p", "benchmarks.gpu.pytest_rows", "--rows", str(lines), "--passed", str(passed)]
    # A warning of another version of torch is no fault of a kernel; coverage is not what is asked here.
    quiet = ["-q", "--no-header", "-p", "no:cacheprovider", "-o", "filterwarnings=default", "--tb=line"]
    if job.is_dry:
        return module_command("pytest", *plugin, *quiet, "-k", _DRY_NAMES, *_DRY)
    workers = min(_MOST_WORKERS, os.cpu_count() or 1)
    side_by_side = ["-n", str(workers), "--dist", "worksteal"] if importlib.util.find_spec("xdist") else []
    return module_command("pytest", *plugin, *quiet, *side_by_side, *TESTS)


def _note(job: Job, kept: list[dict[str, Any]], lines: Path) -> None:
    """Put the tests that have ended, and a row per file, into the sheet."""
    text = lines.read_text(encoding="utf-8") if lines.exists() else ""
    # The last line may be half written.
    fresh = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    tests = kept + fresh
    before = len(job.sheet.content.get("tests", []))
    if len(tests) != before or not fresh:
        job.sheet.content |= {"tests": tests, "rows": summary(tests)}
        job.sheet.write()
    if len(tests) // _SAY_EVERY != before // _SAY_EVERY:
        say(f"  {len(tests)} tests have ended")


def summary(tests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count the tests of each test function, with the reasons of those that failed or were skipped.

    Args:
        tests: Lines of `benchmarks.gpu.pytest_rows`.

    Returns:
        Rows of a sheet.
    """
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for test in tests:
        groups[test["item"].rpartition("/")[2].partition("[")[0]].append(test)
    rows = []
    for name, members in groups.items():
        counts = Counter(test["status"] for test in members)
        status = FAILED if counts[FAILED] else OK if counts[OK] else SKIPPED
        reasons = sorted({str(test["reason"]) for test in members if test["status"] == status != OK})
        rows.append(
            {
                "item": name,
                "status": status,
                "reason": "; ".join(reasons[:3]) or None,
                "passed": counts[OK],
                "skipped": counts[SKIPPED],
                "failed": counts[FAILED],
                "seconds": round(sum(test["seconds"] for test in members), 2),
            }
        )
    return rows
