"""The table of a run in Markdown, and who won against whom."""

from __future__ import annotations

from itertools import groupby

from benchmarks.contestant import OURS
from benchmarks.ours import LOGITS_PATH
from benchmarks.outcomes import OK
from benchmarks.record import Document, Row

_HEAD = (
    "| contestant | median ms | p20 – p80 | GB/s | GFLOP/s | % of limit | peak extra MiB | loss off by "
    "| gradient off by |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def render(document: Document) -> str:
    """Render a whole run.

    Args:
        document: The run.

    Returns:
        Markdown: where it ran, one table per case and pass, memory, wins and losses.
    """
    rows = document.rows
    parts = [_origin(document), render_cases(rows), render_memory(rows), render_verdicts(rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def render_cases(rows: list[Row]) -> str:
    """Render one table per case and pass.

    Args:
        rows: Those of a case and pass next to each other.

    Returns:
        Markdown.
    """
    return "\n\n".join(_case(list(group)) for _, group in groupby(rows, key=lambda row: row.case_key))


def render_verdicts(rows: list[Row]) -> str:
    """Set our fastest backend without weights, which does the peers' work, against every other contestant.

    Args:
        rows: Those of a case and pass next to each other.

    Returns:
        Markdown, a line per comparison.
    """
    lines = []
    for _, group in groupby(rows, key=lambda row: row.case_key):
        timed = [row for row in group if row.median_s is not None]
        ours = [row for row in timed if row.kind == OURS and "weights" not in row.contestant]
        if ours:
            best = min(ours, key=lambda row: row.median_s or 0.0)
            lines += [_verdict(best, other) for other in timed if other.kind != OURS]
    return "## Wins and losses\n\n" + ("\n".join(lines) if lines else "Nothing of ours was timed.")


def render_memory(rows: list[Row]) -> str:
    """Set the memory of the op from hidden states against that of the way through logits.

    Args:
        rows: Those of a case and pass next to each other.

    Returns:
        Markdown, a line per contestant of ours; empty where nobody went through logits.
    """
    lines = []
    for _, group in groupby(rows, key=lambda row: row.case_key):
        known = [row for row in group if row.peak_extra_bytes is not None]
        through_logits = next((row for row in known if row.contestant == LOGITS_PATH), None)
        if through_logits is not None:
            lines += [_memory(row, through_logits) for row in known if row.kind == OURS]
    return "## Memory from hidden states\n\n" + "\n".join(lines) if lines else ""


def _memory(ours: Row, other: Row) -> str:
    """One comparison, with the gradients that both return and without them."""
    peaks = (ours.peak_extra_bytes or 0, other.peak_extra_bytes or 0)
    beyond = [max(1, peak - ours.gradient_bytes) for peak in peaks]
    return (
        f"- {ours.pair}, N={ours.rows}, {ours.dtype}: {ours.contestant} {peaks[0] / 2**20:.0f} MiB at the "
        f"peak, {other.contestant} {peaks[1] / 2**20:.0f} MiB, {peaks[1] / max(1, peaks[0]):.1f} times as "
        f"much; beyond the {ours.gradient_bytes / 2**20:.0f} MiB of gradients that both return "
        f"{beyond[0] / 2**20:.0f} and {beyond[1] / 2**20:.0f} MiB, {beyond[1] / beyond[0]:.1f} times as much"
    )


def _origin(document: Document) -> str:
    origin, bandwidth = document.origin, document.bandwidth
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    threads = f", {origin['threads']} threads" if origin["threads"] else ""
    state = "" if origin["git_is_clean"] else " with changes not committed"
    matmul = document.matmul_flops_per_s
    products = "" if matmul is None else f", matrix products {matmul / 1e9:.0f} GFLOP/s"
    return (
        f"# Benchmarks on {origin['device']}{threads}\n\n"
        f"Commit {str(origin['git_sha'])[:9]}{state}, {origin['time']}; {versions}.\n"
        f"Measured in this run: read {bandwidth.read / 1e9:.1f} GB/s, copy {bandwidth.copy / 1e9:.1f} GB/s"
        f"{products}."
    )


def _title(row: Row) -> str:
    widths = f", d {row.student_width} from {row.teacher_width}" if row.op == "linear_step_kl" else ""
    limit = "" if row.limit_s is None else f": limit {row.limit_s * 1e3:.1f} ms"
    return f"{row.op} {row.sweeps}, {row.pair}, N={row.rows}, V={row.vocab}{widths}, {row.dtype}{limit}"


def _case(rows: list[Row]) -> str:
    """One table, fastest first, then who was not timed and why."""
    timed = sorted((row for row in rows if row.status == OK), key=lambda row: row.median_s or 0.0)
    parts = [f"### {_title((timed or rows)[0])}"]
    if timed:
        parts.append("\n".join([_HEAD, *(_line(row) for row in timed)]))
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.status != OK:
            reasons.setdefault(f"{row.status}: {_reason(row)}", []).append(row.contestant)
    if reasons:
        parts.append("\n".join(f"- {', '.join(names)}: {reason}" for reason, names in reasons.items()))
    return "\n\n".join(parts)


def _reason(row: Row) -> str:
    if row.loss_error is None:
        return str(row.reason)
    gradient = _number(row.gradient_error, ".0e")
    return f"{row.reason} Loss off by {_number(row.loss_error, '.0e')}, gradient by {gradient}."


def _line(row: Row) -> str:
    off = f"{_number(row.loss_error, '.0e')} | {_number(row.gradient_error, '.0e')}"
    if row.median_s is None or row.limit_s is None:
        raise ValueError(f"The row of {row.contestant} has status ok and no time.")
    rates = f"{_number(row.bytes_per_s, '.1f', 1e9)} | {_number(row.flops_per_s, '.1f', 1e9)}"
    return (
        f"| {row.contestant} | {row.median_s * 1e3:.1f} | {_number(row.p20_s, '.1f', 1e-3)} – "
        f"{_number(row.p80_s, '.1f', 1e-3)} | {rates} | {100 * row.limit_s / row.median_s:.1f} "
        f"| {_number(row.peak_extra_bytes, '.0f', 2**20)} | {off} |"
    )


def _number(value: float | None, form: str, unit: float = 1.0) -> str:
    return "–" if value is None else format(value / unit, form)


def _verdict(ours: Row, other: Row) -> str:
    ratio = (other.median_s or 0.0) / (ours.median_s or 1.0)
    word = "win" if ratio > 1.0 else "**LOSS**"
    times = (
        f"{(ours.median_s or 0.0) * 1e3:.1f} ms, {other.contestant} {(other.median_s or 0.0) * 1e3:.1f} ms"
    )
    memory = ""
    if ours.peak_extra_bytes is not None and other.peak_extra_bytes is not None:
        memory = (
            f", memory {ours.peak_extra_bytes / 2**20:.0f} against {other.peak_extra_bytes / 2**20:.0f} MiB"
        )
    case = f"{ours.op} {ours.sweeps}, {ours.pair}, N={ours.rows}, {ours.dtype}"
    return f"- {word} {ratio:.2f}x, {case}: {ours.contestant} {times}{memory}"
