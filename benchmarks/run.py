"""Measure our functions beside their peers: `python -m benchmarks.run`, or `make bench`.

Every contestant runs on the same tensors in one process. Its loss and gradients are held against float64
first; then its peak memory is measured, then all are timed in turns. The machine's bandwidth and its rate of
matrix products are measured in the same run, and every time is set against the limit they give. The table,
the JSON and two plots go to benchmarks/results/<device>/<time>-<commit>.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import torch

from benchmarks import record
from benchmarks.contestant import OURS, Contestant
from benchmarks.device import make_device, measure_bandwidth
from benchmarks.measure import measure_case
from benchmarks.ours import our_contestants
from benchmarks.outcomes import FAILED, WRONG
from benchmarks.peers import add_to_path, peer_contestants, versions
from benchmarks.plain import plain_contestants
from benchmarks.plots import draw_growth, draw_roofline
from benchmarks.record import RESULTS, ROOT, Document, Row
from benchmarks.shapes import DTYPES, OPS, PAIRS, planned_cases
from benchmarks.table import render, render_cases, render_memory, render_verdicts

_BUDGET_S = {("cpu", "full"): 6.0, ("cpu", "quick"): 2.0, ("cuda", "full"): 1.0, ("cuda", "quick"): 1.0}


def contestants_of(op: str, pattern: str) -> list[Contestant]:
    """List everybody who computes an op and whose name matches a regular expression."""
    everybody = [*our_contestants(op), *plain_contestants(op), *peer_contestants(op)]
    return [each for each in everybody if re.search(pattern, each.name)]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--profile", choices=["full", "quick"], default="full", help="how much is measured")
    parser.add_argument("--ops", nargs="+", choices=OPS, default=[], help="only these functions")
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=[], help="only these models")
    parser.add_argument("--rows", nargs="+", type=int, default=[], help="these N in place of the profile's")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=[], help="these dtypes likewise")
    parser.add_argument("--contestants", default="", help="only names that this regular expression finds")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: as torch is set)")
    parser.add_argument("--budget", type=float, default=None, help="seconds of timing per case and pass")
    parser.add_argument("--peers", type=Path, default=ROOT / ".peers", help="where the peers are installed")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    options = parser.parse_args(arguments)
    _check(parser, options)
    try:
        options.cases = planned_cases(
            options.device,
            options.profile,
            ops=tuple(options.ops),
            pairs=tuple(options.pairs),
            rows=tuple(options.rows),
            dtypes=tuple(options.dtypes),
        )
    except ValueError as error:
        parser.error(str(error))
    return options


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if any(count < 1 for count in options.rows):
        parser.error(f"--rows takes counts of at least 1, got {options.rows}.")
    if options.threads is not None and options.threads < 1:
        parser.error(f"--threads takes a count of at least 1, got {options.threads}.")
    if options.budget is not None and options.budget <= 0:
        parser.error(f"--budget takes seconds above 0, got {options.budget}.")
    try:
        re.compile(options.contestants)
    except re.error as error:
        parser.error(f"--contestants takes a regular expression, got {options.contestants!r}: {error}.")


def measure(options: argparse.Namespace) -> Iterator[Document]:
    """Run all cases of the command line.

    Args:
        options: From `parse_arguments`, with the cases in `cases`.

    Yields:
        The run so far, after every case.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    add_to_path(options.peers)
    device = make_device(options.device)
    origin = record.provenance(device.name(), device.kind, {"triton": _version("triton"), **versions()})
    bandwidth = measure_bandwidth(device)
    _say(f"read {bandwidth.read / 1e9:.1f} GB/s, copy {bandwidth.copy / 1e9:.1f} GB/s")
    budget_s = options.budget or _BUDGET_S[options.device, options.profile]
    rows: list[Row] = []
    matmul_rates: list[float] = []
    for case in options.cases:
        contestants = contestants_of(case.op, options.contestants)
        result = measure_case(case, contestants, device, bandwidth, budget_s=budget_s, say=_say)
        rows += result.rows
        matmul_rates += [rate for rate in (result.matmul_flops_per_s,) if rate is not None]
        _say("\n\n".join(["", render_cases(result.rows), render_memory(result.rows), ""]))
        yield Document(
            origin=origin,
            bandwidth=bandwidth,
            matmul_flops_per_s=max(matmul_rates, default=None),
            rows=list(rows),
        )


def _say(line: str) -> None:
    print(line, flush=True)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the files; 1 if anything of ours is wrong or broke."""
    options = parse_arguments(arguments)
    for document in measure(options):
        path = record.path_of(document.origin, options.output)
        # After every case, so that a run that is cut short leaves what it had.
        record.write(document, path.with_suffix(".json"))
        path.with_suffix(".md").write_text(render(document))
    draw_roofline(document, path.with_name(path.name + "-roofline.png"))
    draw_growth(document, path.with_name(path.name + "-growth.png"))
    _say(f"{render_verdicts(document.rows)}\n\nwritten: {os.path.relpath(path)}.json, .md and two plots")
    bad = [row for row in document.rows if row.kind == OURS and row.status in (WRONG, FAILED)]
    for row in bad:
        _say(f"{row.status}: {row.contestant}, {row.op} {row.sweeps}, {row.pair}, N={row.rows}: {row.reason}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
