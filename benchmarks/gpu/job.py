"""What a part gets to work with, and what it may ask of the machine before it starts."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gpu.sheet import Sheet
from benchmarks.outcomes import FAILED, OK, SKIPPED, SkippedError

ROOT = Path(__file__).resolve().parents[2]
OLDEST_CAPABILITY = (8, 0)
"""Oldest compute capability that the kernels are built for."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One part at work.

    Attributes:
        sheet: Takes the rows.
        is_dry: Whether it runs without a GPU, on sizes that say nothing.
        deadline: `time.monotonic()` at which the part is killed.
        peers: Folder of packages that come last on the path.
    """

    sheet: Sheet
    is_dry: bool
    deadline: float
    peers: Path

    @property
    def device(self) -> str:
        """Where tensors go."""
        return "cpu" if self.is_dry else "cuda"

    @property
    def architecture(self) -> str:
        """Architecture to compile for: that of the card, and of an H200 where there is none."""
        major, minor = self.sheet.content.get("capability", (9, 0))
        return f"{major}{minor}"

    def seconds_left(self) -> float:
        """Seconds until the part is killed."""
        return self.deadline - time.monotonic()

    def skip(self, items: Sequence[str], reason: str) -> None:
        """Note items that do not run."""
        self.sheet.add({"item": item, "status": SKIPPED, "reason": reason} for item in items)

    @contextmanager
    def row(self, item: str) -> Iterator[dict[str, Any]]:
        """Make one row: what the block puts into it, or why it broke.

        Args:
            item: Name.

        Yields:
            The row, to be filled in.
        """
        started = time.monotonic()
        row: dict[str, Any] = {"item": item, "status": OK, "reason": None}
        try:
            yield row
        except Exception as error:
            # Whatever breaks is the row's own matter, and the next ones go on.
            row |= why_not(error)
        row.setdefault("seconds", round(time.monotonic() - started, 2))
        say(f"  {item}: {row['status']}" + (f": {row['reason']}" if row["reason"] else ""))
        self.sheet.add([row])


def say(line: str) -> None:
    """Show progress at once."""
    print(line, flush=True)


def why_not(error: Exception) -> dict[str, str]:
    """Put an error into the columns of a row; what cannot run here, or does not fit, is skipped."""
    if isinstance(error, SkippedError):
        return {"status": SKIPPED, "reason": str(error)}
    first = next(iter(str(error).strip().splitlines()), "")
    is_memory = type(error).__name__ == "OutOfMemoryError"
    return {
        "status": SKIPPED if is_memory else FAILED,
        "reason": f"{type(error).__name__}: {first}"[:300],
    }


def why_no_gpu(origin: Mapping[str, Any]) -> str | None:
    """Say why nothing can be measured here.

    Args:
        origin: From `probe`.

    Returns:
        A sentence, or None where a supported GPU was found.
    """
    if origin["kind"] != "cuda":
        return "torch finds no CUDA device."
    found = tuple(origin["capability"])
    if found < OLDEST_CAPABILITY:
        oldest = ".".join(map(str, OLDEST_CAPABILITY))
        return f"{origin['device']} has compute capability {found[0]}.{found[1]}; wanted {oldest} or newer."
    return None


def probe(peers: Path) -> dict[str, Any]:
    """Find out what runs where: the columns that every file begins with.

    Args:
        peers: Folder of packages that come last on the path.

    Returns:
        Columns.
    """
    # Only whoever starts the parts needs them.
    import torch

    from benchmarks.device import CpuDevice
    from benchmarks.peers import add_to_path, versions
    from benchmarks.record import provenance

    add_to_path(peers)
    has_gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if has_gpu else CpuDevice().name()
    origin = provenance(name, "cuda" if has_gpu else "cpu", {"triton": _version("triton"), **versions()})
    if has_gpu:
        properties: Any = torch.cuda.get_device_properties(0)
        origin["capability"] = [properties.major, properties.minor]
        origin["multiprocessors"] = properties.multi_processor_count
        origin["memory_bytes"] = properties.total_memory
    return origin


def module_command(module: str, *arguments: str) -> list[str]:
    """Command line of a module in a process of its own."""
    return [sys.executable, "-m", module, *arguments]


def environment(**more: str) -> dict[str, str]:
    """Environment of such a process: it finds this repository and shows its output at once."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **more}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
