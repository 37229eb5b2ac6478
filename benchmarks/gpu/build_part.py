"""csrc/cuda for the card at hand, and what its assembler says; Triton's kernels go the way ahead of time."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.job import ROOT, Job, environment, module_command
from benchmarks.outcomes import SkippedError

AHEAD_OF_TIME = ("80", "90", "100", "120")
"""Architectures of NVIDIA that `sod_kernels.triton.aot` compiles for."""

_MODULE_CHECK = (
    "from sod_kernels.native import loader; reason = loader.unavailable_reason({kind!r}); "
    "raise SystemExit(reason and 'cannot be used: ' + reason)"
)


def run(job: Job) -> None:
    """Compile, load, and compile one Triton kernel ahead of time for the card."""
    with job.row(f"nvcc, sm_{job.architecture}") as row:
        row["detail"] = nvcc_version()
    with job.row("native modules") as row:
        if job.is_dry:
            # A build takes longer than a dry run should; the one that is there has to load all the same.
            row["detail"] = "not built in a dry run"
        else:
            row["detail"] = build_modules(job)
    for kind in ("cpu", "cuda"):
        with job.row(f"load native {kind}") as row:
            if kind == "cuda" and job.is_dry:
                raise SkippedError("A dry run has no GPU.")
            _call([sys.executable, "-c", _MODULE_CHECK.format(kind=kind)], environment())
            row["detail"] = "loads"
    with job.row(f"Triton ahead of time, sm_{job.architecture}") as row:
        row["detail"] = compile_ahead(job)


def nvcc_version() -> str:
    """Ask nvcc for its version."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise SkippedError("nvcc was not found on PATH, in CUDA_HOME or in /usr/local/cuda/bin.")
    return _call([nvcc, "--version"], environment()).strip().splitlines()[-1]


def find_nvcc() -> str | None:
    """Find the CUDA compiler."""
    folders = [os.environ.get("CUDA_HOME", "") + "/bin", "/usr/local/cuda/bin"]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(folders))


def build_modules(job: Job) -> str:
    """Build both native modules in place, the CUDA one for this card alone."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise SkippedError("Without nvcc there is no CUDA module.")
    path = os.pathsep.join([str(Path(nvcc).parent), os.environ.get("PATH", "")])
    variables = environment(
        PATH=path,
        CUDACXX=nvcc,
        CUDAARCHS=f"{job.architecture}-real",
        SOD_BUILD_NATIVE="1",
        SOD_BUILD_CUDA="ON",
    )
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    _call(command, variables)
    return f"sm_{job.architecture}"


def compile_ahead(job: Job) -> str:
    """Compile one small kernel as `make aot` does them all; other parts compile theirs when they launch."""
    if importlib.util.find_spec("triton") is None:
        raise SkippedError("Triton is not installed.")
    if job.architecture not in AHEAD_OF_TIME:
        raise SkippedError(
            f"make aot knows no sm_{job.architecture}; its kernels are compiled when launched."
        )
    target = ["--target", f"sm_{job.architecture}"]
    variables = environment()
    variables.pop("TRITON_INTERPRET", None)
    more = ["--dtype", "bfloat16", "--kernel", "step_sums", "--jobs", "1"]
    return _call(module_command("sod_kernels.triton.aot", *target, *more), variables).strip().splitlines()[-1]


def _call(command: list[str], variables: dict[str, str]) -> str:
    """Run a command and give its output; what it complains about is the reason of the row."""
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["nothing"]
        shown = " / ".join(line for line in said if "error" in line.lower()) or said[-1]
        raise RuntimeError(f"{Path(command[0]).name} {command[1]} ended with {done.returncode}: {shown}")
    return done.stdout
