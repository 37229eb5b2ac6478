"""One command on a GPU: build, check, measure, train. `python -m benchmarks.gpu`, or `make gpu`.

Each part is a process of its own that is killed at its limit; each prints a short table and writes
<output>/<part>.json as it goes. A part that cannot run here says why, and the rest goes on. docs/gpu.md says
what each part proves.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.job import ROOT, environment, module_command, probe, say
from benchmarks.gpu.model import expected_seconds
from benchmarks.gpu.plan import PARTS, Part
from benchmarks.gpu.sheet import KILLED, RUNNING, Sheet, read_sheet, render
from benchmarks.outcomes import FAILED, OK, SKIPPED

_GRACE_S = 5.0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="only these")
    parser.add_argument("--output", type=Path, default=None, help="folder of the files")
    parser.add_argument("--resume", action="store_true", help="keep what --output has finished")
    parser.add_argument("--dry", action="store_true", help="every path without a GPU, on tiny sizes")
    parser.add_argument("--commit", default=None, help="what runs, where the files come without their git")
    parser.add_argument("--limit", type=float, default=None, help="seconds per part, in place of the plan's")
    parser.add_argument("--peers", type=Path, default=ROOT / ".peers", help="where the peers are installed")
    options = parser.parse_args(arguments)
    if options.limit is not None and options.limit <= 0:
        parser.error(f"--limit takes seconds above 0, got {options.limit}.")
    if options.resume and options.output is None:
        parser.error("--resume goes on in a folder; name it with --output.")
    options.parts = [name for name in PARTS if name in options.parts]
    return options


def run_part(part: Part, folder: Path, options: argparse.Namespace) -> Sheet:
    """Run one part in a process of its own.

    Args:
        part: Of the plan.
        folder: Of the run.
        options: Of the command line.

    Returns:
        What it wrote, with how it ended.
    """
    finished = _finished(folder / f"{part.name}.json") if options.resume else None
    if finished is not None:
        return finished
    limit_s = options.limit or (part.dry_limit_s if options.dry else part.limit_s)
    settings = {
        "folder": str(folder),
        "peers": str(options.peers.resolve()),
        "is_dry": options.dry,
        "resume": options.resume,
        "limit_s": limit_s,
    }
    command = module_command("benchmarks.gpu.worker", part.name, json.dumps(settings))
    started = time.monotonic()
    # A group of its own, so that everything it starts ends with it; the session stays, for whoever ends that.
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), process_group=0)
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        was_killed = _end(process)
    return _ended(folder, part.name, started, limit_s, process.returncode, was_killed=was_killed)


def _finished(path: Path) -> Sheet | None:
    sheet = read_sheet(path) if path.exists() else None
    return sheet if sheet is not None and sheet.status == OK else None


def _end(process: subprocess.Popen[bytes]) -> bool:
    """End a process and everything it has started; whether it was still running."""
    was_running = process.poll() is None
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
    return was_running


def _ended(folder: Path, part: str, started: float, limit_s: float, code: int, *, was_killed: bool) -> Sheet:
    seconds = time.monotonic() - started
    path = folder / f"{part}.json"
    origin = json.loads((folder / "origin.json").read_text(encoding="utf-8"))
    sheet = read_sheet(path) if path.exists() else Sheet.begin(folder, part, origin, resume=False)
    if was_killed:
        sheet.finish(KILLED, f"It ran past its limit of {limit_s:.0f} s; what it had is kept.", seconds)
    elif sheet.status == RUNNING:
        sheet.finish(FAILED, f"Its process ended with {code}; what it had is kept.", seconds)
    return sheet


def default_folder(origin: dict[str, Any], *, is_dry: bool) -> Path:
    """Where the files go that nobody named a folder for."""
    from benchmarks.record import RESULTS, path_of

    if is_dry:
        return ROOT / "runs" / "gpu-dry"
    path = path_of(origin, RESULTS)
    return path.with_name(f"{path.name}-gpu")


def show_plan(parts: Sequence[Part]) -> str:
    """Show limits beside the model of the wall clock."""
    lines = ["| part | expected s | limit s | what it shows |", "|---|---:|---:|---|"]
    lines += [
        f"| {each.name} | {expected_seconds(each.name):.0f} | {each.limit_s} | {each.what} |"
        for each in parts
    ]
    expected = sum(expected_seconds(part.name) for part in parts)
    return "\n".join([*lines, f"| all | {expected:.0f} | {sum(part.limit_s for part in parts)} | |"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts one after the other; 1 if one of them failed or was killed."""
    options = parse_arguments(arguments)
    parts = [PARTS[name] for name in options.parts]
    say(show_plan(parts))
    origin = {**probe(options.peers), "is_dry": options.dry}
    if options.commit is not None:
        origin |= {"git_sha": options.commit, "git_is_clean": True}
    folder = (options.output or default_folder(origin, is_dry=options.dry)).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "origin.json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
    sheets = []
    for part in parts:
        say(f"\n# {part.name}: {part.what}")
        sheets.append(run_part(part, folder, options))
        say("\n" + render(sheets[-1], part.columns))
    (folder / "origin.json").unlink()
    say("\n| part | status | s | limit s |\n|---|---|---:|---:|")
    for part, sheet in zip(parts, sheets, strict=True):
        say(f"| {part.name} | {sheet.status} | {sheet.content['seconds']:.0f} | {part.limit_s} |")
    say(f"\nwritten: {os.path.relpath(folder)}/*.json")
    return 0 if {sheet.status for sheet in sheets} <= {OK, SKIPPED} else 1


if __name__ == "__main__":
    sys.exit(main())
