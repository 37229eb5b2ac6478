"""What the kernels are held to on a GPU, and whether the rows of one run meet it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.contestant import OURS
from benchmarks.record import Document, Row
from benchmarks.shapes import QWEN

FORWARD, BOTH = "forward", "forward+backward"
NOT_MEASURED = "not measured"
_ROWS = 8192
_GROWTH = (4096, 16_384)
_GIB = 1 << 30
_TRL = "TRL ChunkedDivergenceFunction"
_LIGER = "Liger LigerFusedLinearJSDLoss (chunked)"

Measured = tuple[str, bool] | None


@dataclass(frozen=True, kw_only=True)
class Target:
    """One promise.

    Attributes:
        what: The promise, in words.
        measure: What a run says of it, and whether that is enough; None where it says nothing.
    """

    what: str
    measure: Callable[[Document], Measured]


def best_of_ours(rows: Iterable[Row]) -> Row | None:
    """Give the fastest timed row of ours that does the peers' work: without step weights."""
    ours = [
        row
        for row in rows
        if row.kind == OURS and row.median_s is not None and "weights" not in row.contestant
    ]
    return min(ours, key=lambda row: row.median_s or 0.0, default=None)


def _case(document: Document, op: str, sweeps: str, rows: int = _ROWS) -> list[Row]:
    key = (op, sweeps, QWEN, rows, "bfloat16")
    return [row for row in document.rows if row.case_key == key]


def _of_limit(op: str, sweeps: str, most: float) -> Callable[[Document], Measured]:
    def measure(document: Document) -> Measured:
        best = best_of_ours(_case(document, op, sweeps))
        if best is None or best.median_s is None or best.limit_s is None:
            return None
        times = best.median_s / best.limit_s
        return f"{times:.2f} × ({best.median_s * 1e3:.2f} ms)", times <= most

    return measure


def _copy_share(document: Document) -> Measured:
    best = best_of_ours(_case(document, "step_kl", FORWARD))
    if best is None or best.bytes_per_s is None:
        return None
    share = best.bytes_per_s / document.bandwidth.copy
    return f"{100 * share:.0f} % of {document.bandwidth.copy / 1e12:.2f} TB/s", share >= 0.9


def _faster_than(name: str, least: float) -> Callable[[Document], Measured]:
    def measure(document: Document) -> Measured:
        rows = _case(document, "linear_step_kl", BOTH)
        best = best_of_ours(rows)
        other = next((row.median_s for row in rows if row.contestant == name), None)
        if best is None or best.median_s is None or other is None:
            return None
        return f"{other / best.median_s:.2f} ×", other / best.median_s >= least

    return measure


def _memory(document: Document) -> Measured:
    best = best_of_ours(_case(document, "linear_step_kl", BOTH))
    if best is None or best.peak_extra_bytes is None:
        return None
    beyond = best.peak_extra_bytes - best.gradient_bytes
    return f"{beyond / _GIB:.2f} GiB", beyond <= 2e9


def _growth(op: str) -> Callable[[Document], Measured]:
    def measure(document: Document) -> Measured:
        per_token = []
        for count in _GROWTH:
            best = best_of_ours(_case(document, op, BOTH, count))
            if best is None or best.median_s is None:
                return None
            per_token.append(best.median_s / count)
        ratio = per_token[1] / per_token[0]
        return f"{ratio:.3f}", ratio <= 1.1

    return measure


TARGETS = (
    Target(what="`step_kl` forward: at least 90 % of the copy bandwidth", measure=_copy_share),
    Target(
        what="`step_kl` forward and backward: at most 1.1 × the limit (3.2 ms on an H200)",
        measure=_of_limit("step_kl", BOTH, 1.1),
    ),
    Target(
        what="`linear_step_kl` forward and backward: at most 1.3 × the limit of its products",
        measure=_of_limit("linear_step_kl", BOTH, 1.3),
    ),
    Target(what="`linear_step_kl`: at least 1.5 × as fast as TRL's kernel", measure=_faster_than(_TRL, 1.5)),
    Target(
        what="`linear_step_kl`: at least 2 × as fast as Liger's chunked loss",
        measure=_faster_than(_LIGER, 2.0),
    ),
    Target(what="`linear_step_kl`: at most 2 GB beyond the gradients", measure=_memory),
    Target(
        what="`topk_step_kl` forward and backward: at most 1.2 × the limit",
        measure=_of_limit("topk_step_kl", BOTH, 1.2),
    ),
    *(
        Target(
            what=f"`{op}`: time per token at N = 16,384 at most 1.1 × that at N = 4,096", measure=_growth(op)
        )
        for op in ("step_kl", "linear_step_kl", "topk_step_kl")
    ),
)
"""At Qwen's size (V = 151,936, d 1024 from 2560), N = 8192, bfloat16, ratios within one run."""


def judge(document: Document | None) -> list[tuple[str, str, str]]:
    """Set the targets against a run.

    Args:
        document: On a GPU; None where there is none.

    Returns:
        Promise, what was measured, and "met", "**missed**" or "".
    """
    lines = []
    for target in TARGETS:
        measured = None if document is None else target.measure(document)
        if measured is None:
            lines.append((target.what, NOT_MEASURED, ""))
        else:
            lines.append((target.what, measured[0], "met" if measured[1] else "**missed**"))
    return lines
