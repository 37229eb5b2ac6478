"""The tables of RESULTS.md: a line per shape, a column per contestant; growth with N; who wins and loses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from benchmarks.contestant import OURS
from benchmarks.outcomes import OK
from benchmarks.record import Row
from benchmarks.targets import NOT_MEASURED, best_of_ours

CaseRows = Sequence[Row]


def time_table(cases: Sequence[CaseRows]) -> str:
    """Set our fastest backend against the limit and everybody else.

    Args:
        cases: Of one function and pass; the rows of a case come from one run.

    Returns:
        Markdown: milliseconds, and behind those of others how many times as long they take as ours.
    """
    others = _others(cases)
    heads = ["shape", "ours ms", "backend", "limit ms", "% of limit", *others]
    lines = [_line(heads), "|---|---:|---|" + "---:|" * (2 + len(others))]
    for rows in cases:
        best = best_of_ours(rows)
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
        lines.append(_line([_shape(rows[0]), *ours, *(_other(rows, name, best) for name in others)]))
    return "\n".join(lines)


def memory_table(cases: Sequence[CaseRows]) -> str:
    """Set peak memory beside each other, gradients included.

    Args:
        cases: As in `time_table`.

    Returns:
        Markdown, MiB above what is held before the call.
    """
    others = _others(cases)
    lines = [_line(["shape", "ours", *others]), "|---|---:|" + "---:|" * len(others)]
    for rows in cases:
        best = best_of_ours(rows)
        cells = [_mebibytes(best), *(_mebibytes(_of(rows, name)) for name in others)]
        lines.append(_line([_shape(rows[0]), *cells]))
    return "\n".join(lines)


def growth_table(cases: Sequence[CaseRows]) -> str:
    """Show time per token over N.

    Args:
        cases: As in `time_table`.

    Returns:
        Markdown, microseconds per token of ours and of the fastest other; empty without two N of one shape.
    """
    by_shape: dict[tuple[str, str], list[CaseRows]] = defaultdict(list)
    for rows in cases:
        if best_of_ours(rows) is not None:
            by_shape[rows[0].pair, rows[0].dtype].append(rows)
    lines = []
    for (pair, dtype), group in sorted(by_shape.items()):
        ordered = sorted(group, key=lambda rows: rows[0].rows)
        if len(ordered) < 2:
            continue
        cells = [f"{_per_token(rows):.2f}" for rows in ordered]
        ratio = _per_token(ordered[-1]) / _per_token(ordered[0])
        counts = ", ".join(f"{rows[0].rows:,}" for rows in ordered)
        lines.append(
            f"- {pair}, {dtype}, N = {counts}: {', '.join(cells)} µs per token, {ratio:.2f} × over all"
        )
    return "\n".join(lines)


def losses(cases: Sequence[CaseRows]) -> list[str]:
    """List where somebody else is faster or takes less memory.

    Args:
        cases: Of any function and pass.

    Returns:
        A line each.
    """
    lines = []
    for rows in cases:
        best = best_of_ours(rows)
        for other in rows:
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
            if peaks[0] is not None and peaks[1] is not None and peaks[1] < peaks[0]:
                lines.append(
                    f"- {where}: {other.contestant} takes {_mebibytes(other)} MiB at the peak, ours "
                    f"{_mebibytes(best)} MiB"
                )
    return lines


def absences(cases: Sequence[CaseRows]) -> list[str]:
    """Say who did not run anywhere, and why."""
    reasons: dict[str, set[str]] = defaultdict(set)
    ran = {row.contestant for rows in cases for row in rows if row.status == OK}
    for rows in cases:
        for row in rows:
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


def _others(cases: Sequence[CaseRows]) -> list[str]:
    """Everybody else who was timed, in the order of first appearance."""
    return list(
        dict.fromkeys(
            row.contestant for rows in cases for row in rows if row.kind != OURS and row.median_s is not None
        )
    )


def _of(rows: CaseRows, name: str) -> Row | None:
    return next((row for row in rows if row.contestant == name), None)


def _other(rows: CaseRows, name: str, best: Row | None) -> str:
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


def _per_token(rows: CaseRows) -> float:
    best = best_of_ours(rows)
    return 0.0 if best is None else 1e6 * (best.median_s or 0.0) / best.rows


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.4g}"


def _mebibytes(row: Row | None) -> str:
    if row is None or row.peak_extra_bytes is None:
        return "–"
    return f"{row.peak_extra_bytes / 2**20:.0f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
