"""The committed records: every row with the run that it comes from, whoever wrote the file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.bench_linear_step_kl import PRODUCTS
from benchmarks.limits import Bandwidth, work
from benchmarks.record import Document, Row
from benchmarks.shapes import PAIRS, Case

PART = "part"
"""Key that only the files of `benchmarks.gpu` have."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One file.

    Attributes:
        path: Where it lies.
        content: As it was read.
        rows: Of the contestants; empty for a file of another kind.
    """

    path: Path
    content: Mapping[str, Any]
    rows: tuple[Row, ...]

    @property
    def device(self) -> str:
        """What it was measured on."""
        return str(self.content["device"])

    @property
    def run(self) -> str:
        """Name the run: the file's path below the device's folder."""
        folder = self.path.parent
        return f"{folder.name}/{self.path.stem}" if PART in self.content else self.path.stem

    @property
    def document(self) -> Document | None:
        """The run as `benchmarks.run` writes it, if the file has all of that."""
        bandwidth = self.content.get("bandwidth")
        if not self.rows or bandwidth is None:
            return None
        return Document(
            origin=dict(self.content),
            bandwidth=Bandwidth(**bandwidth),
            matmul_flops_per_s=self.content.get("matmul_flops_per_s"),
            rows=list(self.rows),
        )


def read_all(folder: Path) -> list[Stored]:
    """Read every record.

    Args:
        folder: With a folder per device.

    Returns:
        The files, oldest first; those of a dry run are left out, as they measured nothing.
    """
    found = []
    for path in sorted(folder.rglob("*.json")):
        content = {"device": path.parent.name, "time": ""} | json.loads(path.read_text(encoding="utf-8"))
        if not content.get("is_dry", False):
            found.append(Stored(path=path, content=content, rows=tuple(_rows(content))))
    return sorted(found, key=lambda each: (str(each.content["time"]), str(each.path)))


def _rows(content: Mapping[str, Any]) -> Iterable[Row]:
    rows = content.get("rows", [])
    if rows and "contestant" in rows[0]:
        return [Row(**row) for row in rows]
    cases = [case for case in content.get("cases", []) if isinstance(case, dict)]
    return [row for case in cases for row in _case_rows(case)]


def _case_rows(case: Mapping[str, Any]) -> list[Row]:
    """Rows of `benchmarks.bench_linear_step_kl`; their limit is the products that took turns with them."""
    rows = []
    for columns in case.values():
        if "row" not in columns:
            continue
        row = replace(Row(**columns["row"]), gradient_error=columns["gradient_error"])
        if "timing" in columns and PRODUCTS in case:
            shape = Case(op=row.op, pair=PAIRS[row.pair], rows=row.rows, dtype=row.dtype)
            needed = work(shape, has_backward=True)
            median = columns["timing"]["median_s"]
            row = replace(
                row,
                **columns["timing"],
                limit_s=case[PRODUCTS]["timing"]["median_s"],
                bytes_per_s=needed.bytes / median,
                flops_per_s=needed.flops / median,
                intensity=needed.flops / needed.bytes,
            )
        rows.append(row)
    return rows
