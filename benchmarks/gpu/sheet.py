"""The JSON of one part, written after every row, so that a run that is cut off leaves what it had.

    {..., "part": "limits", "status": "ok", "reason": null, "seconds": 21.3, "rows": [{...}, ...]}

A row names its `item` and has a `status`: "ok", "skipped", "wrong" or "failed", and a `reason` where it is
not "ok". Rows of the part "bench" are those of `benchmarks.record`, so that `benchmarks.run` and
`benchmarks.compare` read its file like their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.outcomes import FAILED, OK, SKIPPED, WRONG

RUNNING, KILLED = "running", "killed"
# As `benchmarks.contestant` says it, which imports torch.
OURS = "ours"
STATUSES = (OK, SKIPPED, WRONG, FAILED, KILLED, RUNNING)
_CASE = ("op", "sweeps", "pair", "rows", "dtype", "contestant")

Row = dict[str, Any]


def item_of(row: Mapping[str, Any]) -> str:
    """Name what a row is about; two runs share the rows of one name."""
    return str(row["item"]) if "item" in row else " | ".join(str(row[column]) for column in _CASE)


class Sheet:
    """What is known of one part so far."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        """Take a file and what is to stand in it."""
        self.path, self.content = path, content

    @classmethod
    def begin(cls, folder: Path, part: str, origin: Mapping[str, Any], *, resume: bool) -> Sheet:
        """Start a part, or go on with one.

        Args:
            folder: Of the run.
            part: Name.
            origin: What runs where; of an earlier run of the part it is kept, if the device is the same.
            resume: Whether rows that an earlier run has finished are kept.

        Returns:
            The sheet, written.
        """
        path = folder / f"{part}.json"
        kept: dict[str, Any] = {"rows": []}
        if resume and path.exists():
            earlier = read_sheet(path)
            if earlier.content["device"] == origin["device"]:
                kept = {**earlier.content, "rows": [row for row in earlier.rows if row["status"] == OK]}
        content = {**kept, **origin, "part": part, "status": RUNNING, "reason": None, "seconds": 0.0}
        sheet = cls(path, content)
        sheet.write()
        return sheet

    @property
    def rows(self) -> list[Row]:
        """All rows."""
        rows: list[Row] = self.content["rows"]
        return rows

    @property
    def status(self) -> str:
        """One of `STATUSES`."""
        return str(self.content["status"])

    def has(self, row: Mapping[str, Any]) -> bool:
        """Tell whether there is a row on the same item."""
        return any(item_of(each) == item_of(row) for each in self.rows)

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Put rows in the place of earlier ones on the same items, or behind all others, and write."""
        fresh = {item_of(row): dict(row) for row in rows}
        self.content["rows"] = [row for row in self.rows if item_of(row) not in fresh]
        self.add(fresh.values())

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows and write."""
        self.rows.extend(dict(row) for row in rows)
        self.write()

    def finish(self, status: str, reason: str | None, seconds: float) -> None:
        """Say how the part ended, and write."""
        self.content |= {"status": status, "reason": reason, "seconds": round(seconds, 1)}
        self.write()

    def write(self) -> None:
        """Write the file in one step, so that nobody ever finds half of it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".writing")
        draft.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        draft.replace(self.path)


def read_sheet(path: Path) -> Sheet:
    """Read what a part wrote.

    Args:
        path: JSON.

    Returns:
        The sheet.

    Raises:
        ValueError: If the file is no such sheet.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        is_sheet = content["status"] in STATUSES and all(
            row["status"] in STATUSES and item_of(row) for row in content["rows"]
        )
        is_sheet = is_sheet and {"part", "reason", "seconds", "device"} <= set(content)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no sheet of benchmarks.gpu: {type(error).__name__}: {error}.") from error
    if not is_sheet:
        raise ValueError(f"{path} is no sheet of benchmarks.gpu: a status or a column is missing.")
    return Sheet(path, content)


def merge(sheets: Sequence[Sheet], path: Path) -> Sheet:
    """Put several runs of one part together.

    Args:
        sheets: Of one part on one device, oldest first.
        path: Of the result.

    Returns:
        The sheet of the newest, not written, with every item's newest row that is "ok", else its newest.

    Raises:
        ValueError: If there is none, or parts or devices differ.
    """
    kinds = {(sheet.content["part"], sheet.content["device"]) for sheet in sheets}
    if len(kinds) != 1:
        raise ValueError(f"merge: wanted runs of one part on one device, got {sorted(kinds) or 'none'}.")
    rows: dict[str, Row] = {}
    for sheet in sheets:
        for row in sheet.rows:
            kept = rows.get(item_of(row))
            if kept is None or row["status"] == OK or kept["status"] != OK:
                rows[item_of(row)] = row
    seconds = sum(float(sheet.content["seconds"]) for sheet in sheets)
    newest = sheets[-1].content
    return Sheet(path, {**newest, "seconds": round(seconds, 1), "rows": list(rows.values())})


def worst_status(rows: Iterable[Mapping[str, Any]]) -> str:
    """Sum up rows: "failed" if one of ours is wrong or failed, else "ok" if one is, else "skipped".

    What a peer breaks on is in its row, and no fault of the run.
    """
    found = {(str(row["status"]), row.get("kind", OURS) == OURS) for row in rows}
    if found & {(status, True) for status in (FAILED, WRONG, KILLED)}:
        return FAILED
    return OK if not found or any(status == OK for status, _ in found) else SKIPPED


def render(sheet: Sheet, columns: Sequence[str]) -> str:
    """Render a part as a short table.

    Args:
        sheet: The part.
        columns: Columns of its rows to show beside the item; those that a row lacks are left empty.

    Returns:
        Markdown.
    """
    content = sheet.content
    reason = f": {content['reason']}" if content["reason"] else ""
    lines = [f"## {content['part']}: {sheet.status}, {content['seconds']:.0f} s{reason}"]
    done = [row for row in sheet.rows if row["status"] == OK]
    if done:
        lines += ["", f"| item | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
        lines += [
            f"| {item_of(row)} | {' | '.join(_cell(row.get(key)) for key in columns)} |" for row in done
        ]
    reasons: dict[str, list[str]] = {}
    for row in sheet.rows:
        if row["status"] != OK:
            reasons.setdefault(f"{row['status']}: {row.get('reason')}", []).append(item_of(row))
    if reasons:
        lines += ["", *(f"- {_listed(items)}: {why}" for why, items in reasons.items())]
    return "\n".join(lines)


def _listed(items: Sequence[str]) -> str:
    rest = len(items) - 3
    return ", ".join(items[:3]) + (f" and {rest} more" if rest > 0 else "")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
