"""Timing side by side, the machine's own limits, peak memory and results with their provenance.

Contenders are timed in turns inside one process, so that a busy machine slows all of them alike; ratios can
be trusted more than milliseconds.
"""

from __future__ import annotations

import json
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Wall-clock seconds of one contender over all rounds."""

    median_s: float
    p20_s: float
    p80_s: float


@dataclass(frozen=True, kw_only=True)
class Bandwidth:
    """What this machine's memory gave plain reads and copies in this run, in bytes per second."""

    read: float
    copy: float


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _seconds(run: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    result = run()
    _synchronize()
    elapsed = time.perf_counter() - start
    # Freed after the clock has stopped, for everybody.
    del result
    return elapsed


def time_interleaved(contenders: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, Timing]:
    """Time every contender once per round, in turns, after one round that is not counted."""
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(rounds + 1):
        for name, run in contenders.items():
            elapsed = _seconds(run)
            if round_number > 0:
                samples[name].append(elapsed)
    return {name: _summary(values) for name, values in samples.items()}


def _summary(values: list[float]) -> Timing:
    if len(values) < 2:
        return Timing(median_s=values[0], p20_s=values[0], p80_s=values[0])
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return Timing(median_s=statistics.median(values), p20_s=fifths[0], p80_s=fifths[3])


def measure_bandwidth(device: str, *, size_bytes: int = 1 << 28, rounds: int = 9) -> Bandwidth:
    """Measure reading (a sum) and copying (bytes read plus written) with torch's kernels; the best round."""
    source = torch.ones(size_bytes // 4, device=device)
    target = torch.zeros_like(source)
    read = min(_seconds(source.sum) for _ in range(rounds))
    copy = min(_seconds(lambda: target.copy_(source)) for _ in range(rounds))
    return Bandwidth(read=size_bytes / read, copy=2 * size_bytes / copy)


def _status_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    match = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    if match is None:
        raise RuntimeError(f"/proc/self/status has no {field}.")
    return int(match.group(1)) * 1024


def peak_extra_bytes(run: Callable[[], object], device: str) -> int | None:
    """Measure how far memory rises above what is held before `run`; None where the system cannot tell."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run()
        _synchronize()
        peak = torch.cuda.max_memory_allocated()
        del result
        return peak - before
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    # 5 sets the high-water mark back to what is resident now.
    reset.write_text("5")
    before = _status_bytes("VmRSS")
    result = run()
    peak = _status_bytes("VmHWM")
    del result
    return max(0, peak - before)


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else "unknown"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = (
        re.findall(r"^model name\s*: (.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def provenance(device: str) -> dict[str, object]:
    """Say what ran where: device, versions, commit."""
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return {
        "device": name,
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "git_sha": _git("rev-parse", "HEAD"),
        "git_is_clean": _git("status", "--porcelain") == "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write_results(
    name: str, device: str, bandwidth: Bandwidth, rows: list[dict[str, object]], folder: Path | None = None
) -> Path:
    """Write the rows of one benchmark run as JSON under benchmarks/results/<device>/."""
    origin = provenance(device)
    slug = re.sub(r"[^a-z0-9]+", "-", str(origin["device"]).lower()).strip("-")
    target = (folder or ROOT / "benchmarks" / "results") / slug
    target.mkdir(parents=True, exist_ok=True)
    stamp = str(origin["time"]).replace(":", "").replace("-", "")
    path = target / f"{name}-{stamp}.json"
    document = {"benchmark": name, **origin, "bandwidth": asdict(bandwidth), "rows": rows}
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path
