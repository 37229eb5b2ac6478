"""The tables of RESULTS.md: a line per shape, a column per contestant; growth with N; who wins and loses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from benchmarks.contestant import OURS
from benchmarks.outcomes import OK
from benchmarks.record import Row
from benchmarks.targets import NOT_MEASURED, best_of_ours

# A peak that differs by less is the same: what a system counts as resident is not exact.
_LEAST_MEMORY_LOSS = 0.02


@dataclass(frozen=True, kw_only=True)
class MeasuredCase:
    """One function, pass and shape.

    Attributes:
        rows: Of one run.
        commit: What was measured.
        time: When that run began.
    """

    rows: tuple[Row, ...]
    commit: str
    time: str


def time_table(cases: Sequence[MeasuredCase]) -> str:
    """Set our fastest backend against the limit and everybody else.

    Args:
        cases: Of one function and pass.

    Returns:
        Markdown: milliseconds, and behind those of others how many times as long they take as ours.
    """
    others = _others(cases)
    heads = ["shape", "commit", "ours ms", "backend", "limit ms", "% of limit", *others]
    lines = [_line(heads), "|---|---|---:|---|" + "---:|" * (2 + len(others))]
    for case in cases:
        rows, best = case.rows, best_of_ours(case.rows)
        if not any(row.median_s is not None or row.status != OK for row in rows):
            # Run for its memory alone.
            continue
        if best is None or best.median_s is None:
            ours = [NOT_MEASURED, "", "", ""]
        else:
            limit = best.limit_s or 0.0
            ours = [
                _milliseconds(best.median_s),
                best.contestant.removeprefix(f"{best.op} "),
                _milliseconds(limit),
                f"{100 * limit / best.median_s:.0f}",
            ]
        lines.append(
            _line([_shape(rows[0]), case.commit, *ours, *(_other(rows, name, best) for name in others)])
        )
    return "\n".join(lines)


def memory_table(cases: Sequence[MeasuredCase]) -> str:
    """Set peak memory beside each other, gradients included.

    Args:
        cases: As in `time_table`.

    Returns:
        Markdown, MiB above what is held before the call.
    """
    others = _others(cases)
    lines = [_line(["shape", "ours", *others]), "|---|---:|" + "---:|" * len(others)]
    for case in cases:
        rows = case.rows
        cells = [
            _mebibytes(best_of_ours(rows) or _plain_of_ours(rows)),
            *(_mebibytes(_of(rows, name)) for name in others),
        ]
        lines.append(_line([_shape(rows[0]), *cells]))
    return "\n".join(lines)


def growth_table(cases: Sequence[MeasuredCase]) -> str:
    """Show time per token over N.

    Args:
        cases: As in `time_table`.

    Returns:
        Markdown, microseconds per token of ours; empty without two N of one shape in one run.
    """
    by_shape: dict[tuple[str, str, str], dict[int, float]] = defaultdict(dict)
    for case in cases:
        best = best_of_ours(case.rows)
        if best is not None and best.median_s is not None:
            # Of one run, as another may have been another commit on a busier machine.
            by_shape[best.pair, best.dtype, case.time][best.rows] = 1e6 * best.median_s / best.rows
    lines = []
    for (pair, dtype, _), per_token in sorted(by_shape.items()):
        counts = sorted(per_token)
        if len(counts) > 1:
            shown = ", ".join(f"{per_token[count]:.2f}" for count in counts)
            ratio = per_token[counts[-1]] / per_token[counts[0]]
            listed = ", ".join(f"{count:,}" for count in counts)
            lines.append(f"- {pair}, {dtype}, N = {listed}: {shown} µs per token, {ratio:.2f} × over all")
    return "\n".join(lines)


def losses(cases: Sequence[MeasuredCase]) -> list[str]:
    """List where somebody else is faster or takes less memory.

    Args:
        cases: Of any function and pass.

    Returns:
        A line each.
    """
    lines = []
    for case in cases:
        best = best_of_ours(case.rows)
        for other in case.rows:
            if best is None or best.median_s is None or other.kind == OURS or other.median_s is None:
                continue
            where = f"{best.op} {best.sweeps}, {_shape(best)}"
            if other.median_s < best.median_s:
                ratio = best.median_s / other.median_s
                lines.append(
                    f"- {where}: {other.contestant} takes {_milliseconds(other.median_s)} ms, ours "
                    f"{_milliseconds(best.median_s)} ms ({ratio:.2f} ×)"
                )
            peaks = best.peak_extra_bytes, other.peak_extra_bytes
            if peaks[0] is not None and peaks[1] is not None and _is_less(peaks[1], peaks[0]):
                lines.append(
                    f"- {where}: {other.contestant} takes {_mebibytes(other)} MiB at the peak, ours "
                    f"{_mebibytes(best)} MiB"
                )
    return lines


def _is_less(peak: int, ours: int) -> bool:
    return ours - peak >= max(1 << 20, _LEAST_MEMORY_LOSS * ours)


def absences(cases: Sequence[MeasuredCase]) -> list[str]:
    """Say who did not run anywhere, and why."""
    reasons: dict[str, set[str]] = defaultdict(set)
    ran = {row.contestant for case in cases for row in case.rows if row.status == OK}
    for case in cases:
        for row in case.rows:
            if row.contestant not in ran:
                reasons[f"{row.status}: {row.reason}"].add(row.contestant)
    return [f"- {', '.join(sorted(names))}: {reason}" for reason, names in sorted(reasons.items())]


def curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """Show success by round of every model that has a curve, and the mean over the seeds of a method.

    Args:
        rows: Of the part "e2e".

    Returns:
        Markdown; empty without a curve.
    """
    drawn = [row for row in rows if row.get("curve")]
    gains: dict[str, list[float]] = defaultdict(list)
    lines = ["Success on held-out questions with faults, by round:", ""] if drawn else []
    for row in drawn:
        points = ", ".join(f"{point['round']}: {point['success']:.3f}" for point in row["curve"])
        lines.append(f"- {row['item']}: {points}")
        gain = row["curve"][-1]["success"] - row["curve"][0]["success"]
        gains[str(row["item"]).partition(" seed ")[0]].append(100 * gain)
    for method, values in gains.items():
        error = f" ± {stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
        lines.append(
            f"- {method}, {len(values)} seeds: {mean(values):+.1f}{error} points over the cold student"
        )
    return "\n".join(lines)


def _others(cases: Sequence[MeasuredCase]) -> list[str]:
    """Everybody else who was timed, in the order of first appearance."""
    return list(
        dict.fromkeys(
            row.contestant for case in cases for row in case.rows if row.kind != OURS and row.status == OK
        )
    )


def _plain_of_ours(rows: Sequence[Row]) -> Row | None:
    """Ours where nobody was timed."""
    return next((row for row in rows if row.kind == OURS and row.status == OK), None)


def _of(rows: Sequence[Row], name: str) -> Row | None:
    return next((row for row in rows if row.contestant == name), None)


def _other(rows: Sequence[Row], name: str, best: Row | None) -> str:
    row = _of(rows, name)
    if row is None:
        return NOT_MEASURED
    if row.median_s is None:
        return row.status
    if best is None or best.median_s is None:
        return _milliseconds(row.median_s)
    ratio = row.median_s / best.median_s
    shown = f"{_milliseconds(row.median_s)} ({ratio:.2f} ×)"
    return shown if ratio >= 1.0 else f"**{shown}**"


def _shape(row: Row) -> str:
    return f"{row.pair}, N = {row.rows:,}, {row.dtype}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.4g}"


def _mebibytes(row: Row | None) -> str:
    if row is None or row.peak_extra_bytes is None:
        return "–"
    return f"{row.peak_extra_bytes / 2**20:.0f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
