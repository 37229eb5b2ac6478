"""One row per contestant and case, one JSON document per run, with what ran where."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.contestant import Contestant
from benchmarks.limits import Bandwidth, Work
from benchmarks.shapes import DTYPES, Case
from benchmarks.timing import Timing
from benchmarks.truth import Errors

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is known of one contestant on one case; what was not measured is None.

    Attributes:
        op: Name of the function.
        sweeps: "forward" or "forward+backward".
        pair: Name of the models.
        contestant: Name.
        kind: "ours", "torch" or "peer".
        rows: Tokens N.
        vocab: Vocabulary size V.
        student_width: Hidden size d_s.
        teacher_width: Hidden size d_t.
        dtype: Of the inputs.
        status: "ok", "skipped", "wrong" or "failed".
        reason: Why it was not timed.
        loss_error: Relative error of the loss.
        gradient_error: Norm of the gradient's error over its norm.
        median_s: Median seconds.
        p20_s: 20th percentile.
        p80_s: 80th percentile.
        rounds: Timed calls.
        limit_s: Seconds that nothing can beat at the rates of this run.
        bytes_per_s: Least traffic over the median.
        flops_per_s: Least arithmetic over the median.
        intensity: Least arithmetic over least traffic, operations per byte.
        peak_extra_bytes: Memory above the inputs at the peak, returned gradients included.
    """

    op: str
    sweeps: str
    pair: str
    contestant: str
    kind: str
    rows: int
    vocab: int
    student_width: int
    teacher_width: int
    dtype: str
    status: str
    reason: str | None = None
    loss_error: float | None = None
    gradient_error: float | None = None
    median_s: float | None = None
    p20_s: float | None = None
    p80_s: float | None = None
    rounds: int | None = None
    limit_s: float | None = None
    bytes_per_s: float | None = None
    flops_per_s: float | None = None
    intensity: float | None = None
    peak_extra_bytes: int | None = None

    @property
    def gradient_bytes(self) -> int:
        """What the returned gradients of a hidden-state op take: those of the student's states and head."""
        return (self.rows + self.vocab) * self.student_width * DTYPES[self.dtype].itemsize

    @property
    def case_key(self) -> tuple[str, str, str, int, str]:
        """What contestants must share to be compared."""
        return self.op, self.sweeps, self.pair, self.rows, self.dtype

    @property
    def key(self) -> tuple[str, str, str, int, str, str]:
        """What two runs share where they measured the same."""
        return (*self.case_key, self.contestant)


@dataclass(frozen=True, kw_only=True)
class Document:
    """One run: where it ran, what the machine gave, what was measured."""

    origin: dict[str, Any]
    bandwidth: Bandwidth
    matmul_flops_per_s: float | None
    rows: list[Row]


def make_row(case: Case, sweeps: str, contestant: Contestant, *, status: str, **more: Any) -> Row:
    """Name the contestant and the case; `more` is what was measured."""
    return Row(
        op=case.op,
        sweeps=sweeps,
        pair=case.pair.name,
        contestant=contestant.name,
        kind=contestant.kind,
        rows=case.rows,
        vocab=case.pair.vocab,
        student_width=case.pair.student_width,
        teacher_width=case.pair.teacher_width,
        dtype=case.dtype,
        status=status,
        **more,
    )


def measured(timing: Timing, errors: Errors, needed: Work, limit: float) -> dict[str, Any]:
    """Put a timing into the columns of a row."""
    return {
        **asdict(timing),
        "loss_error": errors.loss,
        "gradient_error": errors.gradient,
        "limit_s": limit,
        "bytes_per_s": needed.bytes / timing.median_s,
        "flops_per_s": needed.flops / timing.median_s,
        "intensity": needed.flops / needed.bytes,
    }


def provenance(device_name: str, device_kind: str, versions: dict[str, str]) -> dict[str, Any]:
    """Say what ran where: device, versions, commit, time."""
    return {
        "device": device_name,
        "kind": device_kind,
        "threads": torch.get_num_threads() if device_kind == "cpu" else None,
        "git_sha": _git("rev-parse", "HEAD"),
        "git_is_clean": _git("status", "--porcelain") == "",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, **versions},
        "system": platform.platform(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def path_of(origin: dict[str, Any], folder: Path) -> Path:
    """Give the path without suffix of a run's files: device, date and time, commit."""
    slug = re.sub(r"[^a-z0-9]+", "-", str(origin["device"]).lower()).strip("-")
    stamp = str(origin["time"]).replace(":", "").replace("-", "")
    return folder / slug / f"{stamp}-{str(origin['git_sha'])[:9]}"


def write(document: Document, path: Path) -> None:
    """Write a run as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        **document.origin,
        "bandwidth": asdict(document.bandwidth),
        "matmul_flops_per_s": document.matmul_flops_per_s,
        "rows": [asdict(row) for row in document.rows],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def read(path: Path) -> Document:
    """Read a run.

    Args:
        path: What `write` wrote.

    Returns:
        The document.

    Raises:
        ValueError: If the file is no such document.
    """
    content = json.loads(path.read_text())
    known = {field.name for field in fields(Row)}
    try:
        rows = [Row(**row) for row in content.pop("rows")]
        bandwidth = Bandwidth(**content.pop("bandwidth"))
        matmul = content.pop("matmul_flops_per_s")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is no result of benchmarks.run: {error}. Rows have the columns {sorted(known)}."
        ) from error
    return Document(origin=content, bandwidth=bandwidth, matmul_flops_per_s=matmul, rows=rows)


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        # A machine that files are brought to need not have git.
        return "unknown"
    return result.stdout.strip() if result.returncode == 0 else "unknown"
