"""Run the experiment and report on it.

    python -m benchmarks.evidence run --grid cascade easy --output runs/evidence --workers 2 --nice 19
    python -m benchmarks.evidence report --output runs/evidence --to docs/evidence
    python -m benchmarks.evidence textworld --size full --output runs/textworld

`run` may be killed and started again at will, and started twice: what is done is not done again, a cell that
was cut short goes on from its last round. `report` works on whatever is there. `textworld` runs the text
game in the same way and prints its table.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from benchmarks.evidence.grid import GRID_FILE, load_grid
from benchmarks.evidence.jobs import work_off
from benchmarks.evidence.pausing import PausingDisplay
from benchmarks.evidence.phases import Plan
from benchmarks.evidence.report import write_report
from benchmarks.evidence.textworld import TextPlan, sizes
from sod.errors import SodError
from sod.loop.signals import StopRequested


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="do what is left of named parts of the grid")
    run.add_argument("--grid", nargs="+", required=True, help="parts of the grid, in order")
    run.add_argument("--seeds", nargs="+", type=int, default=[], help="these in place of the parts' own")
    run.add_argument("--workers", type=int, default=1, help="processes, each with one thread")
    game = commands.add_parser("textworld", help="do what is left of the text game, and print its table")
    game.add_argument("--size", choices=sizes(), default="full", help="a table of textworld.toml")
    game.add_argument("--output", type=Path, default=Path("runs/textworld"), help="folder of the runs")
    for each in (run, game):
        each.add_argument("--nice", type=int, default=0, help="niceness that is added")
        each.add_argument("--pause-file", type=Path, help="wait while this file exists")
    report = commands.add_parser("report", help="write tables and plots of what is done")
    report.add_argument("--to", type=Path, default=Path("docs/evidence"), help="folder that is written")
    for each in (run, report):
        each.add_argument("--output", type=Path, default=Path("runs/evidence"), help="folder of the runs")
        each.add_argument("--file", type=Path, default=GRID_FILE, help="the grid file")
    options = parser.parse_args(arguments)
    if options.command == "run" and options.workers < 1:
        parser.error(f"--workers takes a count of at least 1, got {options.workers}.")
    return options


def work(options: argparse.Namespace) -> int:
    """Do everything that is left, in this process; 130 after a signal, 2 after an error."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    display = PausingDisplay(options.pause_file)
    try:
        if options.command == "textworld":
            game = TextPlan(options.size, options.output, display)
            failed = work_off(options.output, game.jobs(), _say)
            _say(game.report())
        else:
            grid = load_grid(tuple(options.grid), options.file)
            plan = Plan(grid, options.output, display)
            jobs = plan.jobs(grid.cells(tuple(options.grid), tuple(options.seeds)))
            failed = work_off(options.output, jobs, _say)
    except StopRequested as stop:
        _say(f"{stop}; the same command goes on")
        return 130
    except SodError as error:
        _say(f"error: {error}")
        return 2
    return 2 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or report."""
    options = parse_arguments(arguments)
    if options.command == "report":
        try:
            written = write_report(options.output, options.to, options.file)
        except SodError as error:
            _say(f"error: {error}")
            return 2
        for path in written:
            _say(f"written: {path}")
        return 0
    if options.nice:
        os.nice(options.nice)
    if options.command == "textworld" or options.workers == 1:
        return work(options)
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_exit_with, args=(options,)) for _ in range(options.workers)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return max(abs(worker.exitcode or 0) for worker in workers)


def _exit_with(options: argparse.Namespace) -> None:
    sys.exit(work(options))


def _say(line: str) -> None:
    print(line, flush=True)
