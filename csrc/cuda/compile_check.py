"""Compiles the CUDA kernels for every architecture that we ship and shows what each one uses.

Needs nvcc and no GPU: `python csrc/cuda/compile_check.py`. Ends with 1 if a kernel spills registers.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
_BUILD_LOG = _ROOT / "sod_kernels" / "native" / "build_log.txt"
_ENTRY = re.compile(r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)\w?'")
_SPILLS = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes"
)
_USED = re.compile(r"Used (?P<registers>\d+) registers.*?(?:(?P<shared>\d+) bytes smem|$)")


@dataclass(frozen=True, kw_only=True)
class KernelUsage:
    """What one kernel needs on one architecture, as the assembler reports it.

    Attributes:
        kernel: Demangled name with its template arguments.
        arch: Such as "90".
        registers: Per thread.
        shared_bytes: Static shared memory per block.
        spill_bytes: Spilled stores, loads and stack frame together; 0 is wanted.
    """

    kernel: str
    arch: str
    registers: int
    shared_bytes: int
    spill_bytes: int


def find_nvcc() -> str | None:
    """Find the CUDA compiler.

    Returns:
        Its path, or None.
    """
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def _demangle(names: Sequence[str]) -> list[str]:
    tool = shutil.which("c++filt")
    if tool is None:
        return list(names)
    text = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    # The parameter list says nothing that the template arguments do not.
    noise = re.compile(r"\(anonymous namespace\)::|sod::cuda::|\(sod::(?:Problem|LogProbProblem|Rows).*$")
    return [noise.sub("", line).strip() for line in text.splitlines()]


def parse_usage(report: str) -> list[KernelUsage]:
    """Read the assembler's verbose report.

    Args:
        report: What a build with `nvcc -Xptxas -v` said.

    Returns:
        One entry per kernel and architecture, in the order of the report.

    Raises:
        RuntimeError: The report holds a warning.
    """
    if "warning" in report:
        raise RuntimeError(f"The compiler warned:\n{report}")
    found: list[dict[str, str]] = []
    for line in report.splitlines():
        if match := _ENTRY.search(line):
            found.append(match.groupdict())
        elif found and ((match := _SPILLS.search(line)) or (match := _USED.search(line))):
            found[-1].update({key: value for key, value in match.groupdict().items() if value is not None})
    names = _demangle([entry["name"] for entry in found])
    return [
        KernelUsage(
            kernel=name,
            arch=entry["arch"],
            registers=int(entry["registers"]),
            shared_bytes=int(entry.get("shared", "0")),
            spill_bytes=sum(int(entry[key]) for key in ("stack", "stores", "loads")),
        )
        for name, entry in zip(names, found, strict=True)
    ]


def compile_kernels() -> str:
    """Compile every CUDA source for every architecture, as the CUDA module is built.

    Returns:
        What the compiler said.

    Raises:
        RuntimeError: The compiler failed; the message holds its words.
    """
    with tempfile.TemporaryDirectory() as folder:
        configure = ["cmake", "-S", str(_ROOT), "-B", folder, "-G", "Ninja", "-DSOD_BUILD_TESTS=OFF"]
        for command in (
            [*configure, "-DSOD_BUILD_CUDA=ON"],
            ["cmake", "--build", folder, "--target", "sod_cuda"],
        ):
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode != 0:
                raise RuntimeError(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


def read_build_log(log: Path = _BUILD_LOG) -> str | None:
    """Read what the compiler said when the installed modules were built.

    Args:
        log: Where setup.py kept it.

    Returns:
        Its words, or None if there are none on CUDA sources, or a source has changed since.
    """
    sources = [*_ROOT.glob("csrc/**/*.cu"), *_ROOT.glob("csrc/**/*.cuh"), *_ROOT.glob("csrc/**/*.h")]
    if not log.exists() or log.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        return None
    report = log.read_text()
    return report if "ptxas info" in report else None


def main() -> int:
    """Print the table.

    Returns:
        The exit status: 0, 1 if a kernel spills, 2 without nvcc.
    """
    if find_nvcc() is None:
        print("nvcc was not found on PATH or in /usr/local/cuda/bin.", file=sys.stderr)
        return 2
    usage = parse_usage(compile_kernels())
    print(f"{'arch':>6} {'registers':>9} {'shared':>7} {'spilled':>8}  kernel")
    for entry in usage:
        figures = f"{entry.registers:>9} {entry.shared_bytes:>7} {entry.spill_bytes:>8}"
        print(f"{'sm_' + entry.arch:>6} {figures}  {entry.kernel}")
    return int(any(entry.spill_bytes > 0 for entry in usage))


if __name__ == "__main__":
    raise SystemExit(main())
