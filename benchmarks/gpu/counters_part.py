"""Hardware counters of the main kernels, by ncu: how near each is to what memory and the processors give."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.job import ROOT, Job, environment, module_command
from benchmarks.outcomes import OK, SkippedError

METRICS = {
    "gpu__time_duration.sum": "microseconds",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram_percent",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm_percent",
    "lts__t_sector_hit_rate.pct": "l2_hit_percent",
    "launch__registers_per_thread": "registers",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy_percent",
    "dram__bytes_read.sum": "read_bytes",
    "dram__bytes_write.sum": "written_bytes",
}
"""Counter to column."""

WORKLOADS = (
    ("step_kl", "triton"),
    ("step_kl", "native"),
    ("step_kl", "native, single sweep"),
    ("topk_step_kl", "triton"),
    ("linear_step_kl", "triton"),
)
ROWS = 2048
# Kernels of ours, of either backend; the products are the library's and have a row in "limits".
_OURS = "regex:(sweep_kernel|backward_kernel|forward_kernel|step_sums|finish_)"
_CALL_S = 45.0
_MOST_KERNELS = 12
_TO_MICROSECONDS = {"nsecond": 1e-3, "ns": 1e-3, "usecond": 1.0, "us": 1.0, "msecond": 1e3, "ms": 1e3}
_TO_BYTES = {"byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}


def run(job: Job) -> None:
    """Profile function after function while there is time."""
    if job.is_dry:
        with job.row("step_kl reference without ncu"):
            _call(job, [], "step_kl", "reference", 16)
        return
    for op, backend in WORKLOADS:
        if job.seconds_left() < _CALL_S / 2:
            job.skip([f"{op} {backend}"], f"Not begun: {job.seconds_left():.0f} s were left.")
            continue
        with job.row(f"{op} {backend}") as row:
            kernels = profile(job, op, backend)
            row["kernels"] = len(kernels)
            job.sheet.replace(
                {"item": f"{op} {backend}: {name}", "status": OK, "reason": None, **columns}
                for name, columns in kernels.items()
            )


def profile(job: Job, op: str, backend: str) -> dict[str, dict[str, Any]]:
    """Run one function under ncu.

    Args:
        job: The part.
        op: Name of the function.
        backend: Name of the backend.

    Returns:
        Columns by kernel.

    Raises:
        SkippedError: If ncu is missing, takes too long or may not read the counters.
    """
    path = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
    if path is None:
        raise SkippedError("ncu was not found.")
    # The clocks are left as they are: the machine is not ours alone.
    options = ["--clock-control", "none", "--csv", "--page", "raw", "--target-processes", "all"]
    options += ["--metrics", ",".join(METRICS), "--kernel-name", _OURS, "--launch-count", str(_MOST_KERNELS)]
    kernels = read_csv(_call(job, [path, *options], op, backend, ROWS))
    if not kernels:
        raise SkippedError("ncu saw no kernel, or may not read the counters here.")
    return kernels


def _call(job: Job, tool: Sequence[str], op: str, backend: str, rows: int) -> str:
    command = [*tool, *module_command("benchmarks.gpu.workload", "full", op, backend, str(rows), job.device)]
    limit_s = min(_CALL_S, max(1.0, job.seconds_left() - 5))
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=limit_s
        )
    except subprocess.TimeoutExpired as error:
        raise SkippedError(f"It took more than {limit_s:.0f} s.") from error
    said = [line for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    refused = [line for line in said if "ERR_NVGPUCTRPERM" in line or "Failed to" in line]
    if tool and refused:
        raise SkippedError(f"ncu: {refused[0].strip()}")
    if done.returncode:
        raise RuntimeError(f"It ended with {done.returncode} and said: {said[-1] if said else 'nothing'}")
    return done.stdout


def read_csv(text: str) -> dict[str, dict[str, Any]]:
    """Read ncu's raw page.

    Args:
        text: Output, the table somewhere in it: a line of names, one of units, then one per launch.

    Returns:
        Columns by kernel; of several launches of one kernel the last, which is warm.
    """
    lines = text.splitlines()
    begin = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), None)
    if begin is None:
        return {}
    # The profiled process may have the last word.
    table = list(csv.DictReader(line for line in lines[begin:] if line.startswith('"')))
    units = table[0] if table else {}
    found: dict[str, dict[str, Any]] = {}
    for launch in table[1:]:
        columns = {
            column: _number(launch.get(metric), units.get(metric)) for metric, column in METRICS.items()
        }
        found[str(launch.get("Kernel Name")).partition("(")[0]] = columns
    return found


def _number(value: str | None, unit: str | None) -> float | None:
    if value in (None, "", "n/a"):
        return None
    scale = _TO_MICROSECONDS.get(unit or "", _TO_BYTES.get(unit or "", 1.0))
    return float(str(value).replace(",", "")) * scale
