"""Two runs side by side: `python -m benchmarks.compare A.json B.json`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.record import Document, Row, read


def compare(first: Document, second: Document) -> str:
    """Put the medians of two runs side by side.

    Args:
        first: The run compared with.
        second: The run compared.

    Returns:
        Markdown; the ratio is the second time over the first, so below 1 the second is faster. Rows that only
        one run has are listed, those that neither timed are left out, and differing devices are said.
    """
    lines = [f"A: {_name(first)}", f"B: {_name(second)}"]
    if first.origin["device"] != second.origin["device"]:
        lines.append("The devices differ: compare shares of the limit, not times.")
    lines += [
        "",
        "| case | contestant | A ms | B ms | B / A | A % of limit | B % of limit | A MiB | B MiB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    old = {row.key: row for row in first.rows}
    new = {row.key: row for row in second.rows}
    lines += [_line(old[key], new[key]) for key in old if key in new and _was_timed(old[key], new[key])]
    lines.append("")
    lines += [f"only in A: {_title(old[key])}, {old[key].contestant}" for key in old if key not in new]
    lines += [f"only in B: {_title(new[key])}, {new[key].contestant}" for key in new if key not in old]
    return "\n".join(lines) + "\n"


def _was_timed(*rows: Row) -> bool:
    return any(row.median_s is not None for row in rows)


def _name(document: Document) -> str:
    origin = document.origin
    return f"{origin['device']}, commit {str(origin['git_sha'])[:9]}, {origin['time']}"


def _title(row: Row) -> str:
    return f"{row.op} {row.sweeps}, {row.pair}, N={row.rows}, {row.dtype}"


def _line(first: Row, second: Row) -> str:
    ratio = "–"
    if first.median_s is not None and second.median_s is not None:
        ratio = f"{second.median_s / first.median_s:.2f}"
    shares = f"{_share(first)} | {_share(second)}"
    memory = f"{_mebibytes(first)} | {_mebibytes(second)}"
    return (
        f"| {_title(first)} | {first.contestant} | {_time(first)} | {_time(second)} | {ratio} "
        f"| {shares} | {memory} |"
    )


def _time(row: Row) -> str:
    return row.status if row.median_s is None else f"{row.median_s * 1e3:.1f}"


def _share(row: Row) -> str:
    if row.median_s is None or row.limit_s is None:
        return "–"
    return f"{100 * row.limit_s / row.median_s:.1f}"


def _mebibytes(row: Row) -> str:
    return "–" if row.peak_extra_bytes is None else f"{row.peak_extra_bytes / 2**20:.0f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Read two files, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=Path, help="JSON of the run to compare with")
    parser.add_argument("second", type=Path, help="JSON of the run to compare")
    options = parser.parse_args(arguments)
    try:
        documents = [read(path) for path in (options.first, options.second)]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(compare(*documents), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
