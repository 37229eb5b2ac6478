"""Writes RESULTS.md from the committed records: `python -m benchmarks.results_page`, or `make results`."""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.plan import PARTS
from benchmarks.gpu.sheet import Sheet, render
from benchmarks.plots import draw_roofline
from benchmarks.record import RESULTS, ROOT, Document, Row
from benchmarks.results_tables import (
    MeasuredCase,
    absences,
    curves,
    growth_table,
    losses,
    memory_table,
    time_table,
)
from benchmarks.stored import PART, Stored, read_all
from benchmarks.targets import NOT_MEASURED, best_of_ours, judge

PAGE = ROOT / "RESULTS.md"
_INTRODUCTION = """# Results

Written by `python -m benchmarks.results_page` from the records in `benchmarks/results`; edit those, not this.
[docs/benchmarks.md](docs/benchmarks.md) says what is measured and how, [docs/gpu.md](docs/gpu.md) how the
GPU's part is run.

Ours is the fastest of our backends without step weights, which does the peers' work. Behind a time of another
stands how many times as long it takes as ours; bold is a loss of ours. All times of a line come from one run,
in turns on the same tensors, of the commit that the line names. Peaks of memory that differ by less than 2 %
or a mebibyte count as equal.
"""

_Case = tuple[str, str, str, int, str]


def page(folder: Path) -> str:
    """Write the page.

    Args:
        folder: Of the records.

    Returns:
        Markdown.
    """
    stored = read_all(folder)
    gpu = [each for each in stored if each.content.get("kind") == "cuda"]
    newest = [each.document for each in gpu if each.document is not None]
    parts = [_INTRODUCTION, _targets(newest[-1] if newest else None), _gpu_parts(gpu)]
    devices: dict[str, list[Stored]] = defaultdict(list)
    for each in stored:
        if each.rows:
            devices[each.device].append(each)
    parts += [_device(name, runs) for name, runs in sorted(devices.items())]
    others = [each for each in stored if not each.rows and PART not in each.content]
    if others:
        listed = "\n".join(f"- {each.device}: `{each.path.relative_to(folder)}`" for each in others)
        parts.append(f"## Other records\n\n{listed}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _targets(document: Document | None) -> str:
    where = "No GPU has been measured." if document is None else f"Measured on {document.origin['device']}."
    lines = [f"| {what} | {found} | {verdict} |" for what, found, verdict in judge(document)]
    table = "\n".join(["| target on a GPU | measured | |", "|---|---:|---|", *lines])
    return f"## Targets\n\n{where} V = 151,936, d 1024 from 2560, N = 8,192, bfloat16.\n\n{table}"


def _gpu_parts(stored: Sequence[Stored]) -> str:
    """The newest sheet of every part of the plan but the benchmarks, which have tables of their own."""
    newest = {str(each.content[PART]): each for each in stored if PART in each.content}
    parts = []
    for part in PARTS.values():
        if part.name == "bench":
            continue
        each = newest.get(part.name)
        if each is None:
            parts.append(f"### {part.name}\n\n{part.what[0].upper()}{part.what[1:]}: {NOT_MEASURED}.")
        else:
            text = render(Sheet(each.path, dict(each.content)), part.columns)
            parts += [f"#{text}", curves(each.content["rows"]), f"{each.device}, run {each.run}."]
    return "\n\n".join(["## On a GPU, part by part", *filter(None, parts)])


def _device(name: str, runs: Sequence[Stored]) -> str:
    """Everything that was timed on one machine."""
    cases = _newest_cases(runs)
    parts = [f"## {name}", _runs_line(runs)]
    groups: dict[tuple[str, str], list[MeasuredCase]] = defaultdict(list)
    for (op, sweeps, *_), case in cases.items():
        groups[op, sweeps].append(case)
    for (op, sweeps), group in groups.items():
        parts += [f"### `{op}`, {sweeps}", time_table(group)]
        parts += ["Peak memory beyond the inputs, MiB, returned gradients included:", memory_table(group)]
        growth = growth_table(group)
        parts += (
            ["Time per token:", growth]
            if growth
            else [f"Growth with N: {NOT_MEASURED} at two N of a shape in one run."]
        )
    every = list(cases.values())
    lost = losses(every)
    parts += ["### Losses", "\n".join(lost) if lost else "None among what was timed."]
    absent = absences(every)
    parts += ["### Who did not run", "\n".join(absent)] if absent else []
    parts.append(f"![Roofline]({_picture(runs).relative_to(ROOT).as_posix()})")
    return "\n\n".join(parts)


def _newest_cases(runs: Sequence[Stored]) -> dict[_Case, MeasuredCase]:
    """The rows of every case, from the newest run in which ours was timed and somebody else was."""
    cases: dict[_Case, MeasuredCase] = {}
    for run in runs:
        by_case: dict[_Case, list[Row]] = defaultdict(list)
        for row in run.rows:
            by_case[row.case_key].append(row)
        for key, rows in by_case.items():
            is_better = best_of_ours(rows) is not None and any(
                row.kind != "ours" and row.median_s for row in rows
            )
            if key not in cases or is_better:
                commit = str(run.content["git_sha"])[:9]
                cases[key] = MeasuredCase(rows=tuple(rows), commit=commit, time=str(run.content["time"]))
    return dict(sorted(cases.items()))


def _runs_line(runs: Sequence[Stored]) -> str:
    lines = []
    for run in runs:
        origin = run.content
        state = "" if origin.get("git_is_clean") else " with changes not committed"
        versions = ", ".join(f"{name} {version}" for name, version in sorted(origin["versions"].items()))
        lines.append(f"- {origin['time']}, commit {str(origin['git_sha'])[:9]}{state}; {versions}")
    return "\n".join(lines)


def _picture(runs: Sequence[Stored]) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", runs[0].device.lower()).strip("-")
    return RESULTS / slug / "roofline.png"


def draw(folder: Path) -> None:
    """Draw the roofline of every device, of the newest rows under the newest run's limits."""
    devices: dict[str, list[Stored]] = defaultdict(list)
    for each in read_all(folder):
        if each.rows:
            devices[each.device].append(each)
    for runs in devices.values():
        documents = [run.document for run in runs if run.document is not None]
        if not documents:
            continue
        rows = [row for case in _newest_cases(runs).values() for row in case.rows]
        rates = [each.matmul_flops_per_s for each in documents if each.matmul_flops_per_s]
        document = replace(documents[-1], rows=rows, matmul_flops_per_s=max(rates, default=None))
        draw_roofline(document, _picture(runs))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and its pictures, or say whether the page is what would be written."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results_page", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if the page is out of date")
    options = parser.parse_args(arguments)
    text = page(RESULTS)
    if options.check:
        return 0 if PAGE.read_text(encoding="utf-8") == text else 1
    PAGE.write_text(text, encoding="utf-8")
    draw(RESULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
