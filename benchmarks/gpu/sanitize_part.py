"""compute-sanitizer over the functions on small awkward batches: memcheck and racecheck."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

from benchmarks.gpu.job import ROOT, Job, environment, module_command
from benchmarks.outcomes import SkippedError

OPS = ("step_kl", "topk_step_kl", "unit_kl", "linear_step_kl", "step_kl_single_sweep")
"""They reach every kernel: the other two functions launch those of the second and the fourth."""

BACKENDS = ("native", "triton")
TOOLS = ("memcheck", "racecheck")
_CALL_S = 60.0
# What torch asks the driver for in vain is no access out of bounds, and torch looks at every answer itself.
_OPTIONS = ("--report-api-errors", "no", "--target-processes", "all")
_MOST_LINES = 40
_SUMMARY = re.compile(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")
# Allocations of their own, so that an access beyond a tensor is one beyond an allocation.
_VARIABLES = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "CUDA_LAUNCH_BLOCKING": "1"}


def run(job: Job) -> None:
    """Check tool after tool while there is time."""
    planned = list(_planned(job))
    for number, (tool, op, backend) in enumerate(planned):
        item = f"{tool}, {op} {backend}"
        if job.sheet.has({"item": item}):
            continue
        if job.seconds_left() < _CALL_S / 2:
            rest = [f"{each[0]}, {each[1]} {each[2]}" for each in planned[number:]]
            job.skip(rest, f"Not begun: {job.seconds_left():.0f} s were left.")
            return
        with job.row(item) as row:
            row["tool"] = tool
            code, output = call(job, tool, op, backend)
            # Whoever reads the file has no second look at the device.
            row["report"] = [line for line in output.splitlines() if line.startswith("===")][:_MOST_LINES]
            row["errors"] = read_summary(tool, code, output)
            if row["errors"]:
                raise RuntimeError(f"{tool} found {row['errors']} errors.")


def _planned(job: Job) -> Iterator[tuple[str, str, str]]:
    if job.is_dry:
        yield "none", "step_kl", "native"
        return
    for tool in TOOLS:
        for backend in BACKENDS:
            for op in OPS:
                if (op, backend) != ("unit_kl", "native"):
                    yield tool, op, backend


def call(job: Job, tool: str, op: str, backend: str) -> tuple[int, str]:
    """Run one function under one tool.

    Args:
        job: The part.
        tool: "memcheck" or "racecheck"; "none" runs the function by itself, for a dry run.
        op: Name of the function.
        backend: Name of the backend.

    Returns:
        Exit status, and both streams.

    Raises:
        SkippedError: If the tool is missing or takes too long.
    """
    command = module_command("benchmarks.gpu.workload", "small", op, backend, "float32", job.device)
    if tool != "none":
        command = [sanitizer(), "--tool", tool, *_OPTIONS, *command]
    limit_s = min(_CALL_S, max(1.0, job.seconds_left() - 5))
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(**_VARIABLES),
            capture_output=True,
            text=True,
            check=False,
            timeout=limit_s,
        )
    except subprocess.TimeoutExpired as error:
        raise SkippedError(f"It took more than {limit_s:.0f} s.") from error
    return done.returncode, done.stdout + done.stderr


def sanitizer() -> str:
    """Find compute-sanitizer."""
    path = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if path is None:
        raise SkippedError("compute-sanitizer was not found.")
    return path


def read_summary(tool: str, code: int, output: str) -> int:
    """Read what a tool found.

    Args:
        tool: See `call`.
        code: Exit status.
        output: Both streams.

    Returns:
        Errors or hazards.

    Raises:
        SkippedError: If the tool refuses the device.
        RuntimeError: If there is no summary to read, or the function itself broke.
    """
    if "Device not supported" in output:
        raise SkippedError("compute-sanitizer does not support this device.")
    found = _SUMMARY.findall(output)
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "nothing")
    if "loss " not in output or (tool != "none" and not found):
        raise RuntimeError(f"It ended with {code} and said: {last}")
    return sum(int(first or second) for first, second in found)
