"""What `linear_step_kl` is held to, in one run: `python -m benchmarks.bench_linear_step_kl`.

Time: beside its matrix products alone, the way through logits, TRL and Liger, in turns on the same tensors,
each checked against float64 first. Memory: at few and at many rows, against the way through logits. At many
rows every call is made once, so that the run takes minutes, not hours.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contestant import PEER, Contestant
from benchmarks.device import CpuDevice, head_products
from benchmarks.inputs import HiddenInputs, make_inputs
from benchmarks.limits import work
from benchmarks.measure import Entrant, bind, enter
from benchmarks.ours import LOGITS_PATH, our_contestants
from benchmarks.outcomes import OK
from benchmarks.peers import add_to_path, peer_contestants, versions
from benchmarks.record import ROOT, make_row, provenance
from benchmarks.shapes import DTYPES, PAIRS, Case
from benchmarks.table import render_memory
from benchmarks.timing import time_in_turns
from benchmarks.truth import TruthOf

OP = "linear_step_kl"
OURS = f"{OP} native"
PRODUCTS = "matrix products alone"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench_linear_step_kl",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pair", choices=PAIRS, default="qwen3-0.6b-from-4b", help="models")
    parser.add_argument("--rows", type=int, default=256, help="tokens of the timed calls")
    parser.add_argument("--many-rows", type=int, default=4096, help="tokens of the calls for memory")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--budget", type=float, default=1.0, help="seconds of timing; at least 3 rounds")
    parser.add_argument("--peers", type=Path, default=ROOT / ".peers", help="where the peers are installed")
    parser.add_argument("--output", type=Path, default=None, help="takes the record as JSON")
    options = parser.parse_args(arguments)
    if min(options.rows, options.many_rows) < 1:
        parser.error("--rows and --many-rows take counts of at least 1.")
    if options.budget <= 0:
        parser.error(f"--budget takes seconds above 0, got {options.budget}.")
    return options


def contestants_in(dtype: str) -> list[Contestant]:
    """List who is timed; others in float32 only, as they multiply 16-bit numbers as such, as few CPUs can."""
    names = (OURS, f"{OURS} + SOD weights", LOGITS_PATH)
    ours = [each for each in our_contestants(OP) if each.name in names[: 3 if dtype == "float32" else 2]]
    return ours + (peer_contestants(OP) if dtype == "float32" else [])


def make_products(inputs: HiddenInputs) -> Callable[[], object]:
    """Bind the products that the op cannot do without, in float32 as the op makes them on a CPU."""
    student, head, teacher, teacher_head = (
        each.detach().float()
        for each in (inputs.student, inputs.student_head, inputs.teacher, inputs.teacher_head)
    )
    products = head_products((student, head), (teacher, teacher_head))
    return lambda: [product() for product in products]


def measure(
    case: Case, contestants: list[Contestant], *, budget_s: float | None, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Check everybody, note their memory, and time them in turns.

    Args:
        case: What to measure.
        contestants: Who.
        budget_s: Seconds of timing; None for memory alone.
        say: Takes lines of progress.

    Returns:
        Columns by name; `PRODUCTS` among them where time was measured.
    """
    device = CpuDevice()
    inputs = make_inputs(case, "cpu")
    if not isinstance(inputs, HiddenInputs):
        raise TypeError(f"benchmarks: {case.op} does not start from hidden states.")
    _warm_up(contestants, case.dtype)
    truth = TruthOf(inputs)
    found: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], object]] = {}
    for contestant in contestants:
        outcome = enter(contestant, inputs, truth, device, has_backward=True)
        if not isinstance(outcome, Entrant):
            say(f"  {contestant.name}: {outcome['status']}: {outcome['reason']}")
            continue
        row = make_row(
            case, "forward+backward", contestant, status=OK, peak_extra_bytes=outcome.peak_extra_bytes
        )
        found[contestant.name] = {"row": row, "gradient_error": outcome.errors.gradient}
        calls[contestant.name] = outcome.run
    if budget_s is not None:
        calls[PRODUCTS] = make_products(inputs)
        found[PRODUCTS] = {}
        for name, timing in time_in_turns(calls, device, budget_s=budget_s).items():
            found[name]["timing"] = timing
    return found


def _warm_up(contestants: list[Contestant], dtype: str) -> None:
    """Run once on a few rows, so that no contestant is charged for code and buffers of the libraries."""
    inputs = make_inputs(Case(op=OP, pair=PAIRS["small"], rows=64, dtype=dtype), "cpu")
    for contestant in contestants:
        if contestant.kind != PEER:
            bind(contestant.prepare(inputs), inputs.leaves, has_backward=True)()


def _time_lines(case: Case, found: dict[str, dict[str, Any]]) -> list[str]:
    """A table of the timed, fastest first."""
    products_s = found[PRODUCTS]["timing"].median_s
    rate = work(case, has_backward=True).matmul_flops / products_s
    lines = [
        f"### {case}: products {rate / 1e9:.0f} GFLOP/s",
        "| | median s | 20 - 80 % | x products | peak extra MiB | gradient off by |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, columns in sorted(found.items(), key=lambda item: item[1]["timing"].median_s):
        timing, row = columns["timing"], columns.get("row")
        peak = "" if row is None or row.peak_extra_bytes is None else f"{row.peak_extra_bytes / 2**20:.0f}"
        error = "" if row is None else f"{columns['gradient_error']:.0e}"
        lines.append(
            f"| {name} | {timing.median_s:.3f} | {timing.p20_s:.3f} - {timing.p80_s:.3f} "
            f"| {timing.median_s / products_s:.3f} | {peak} | {error} |"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if ours did not run or was wrong."""
    options = parse_arguments(arguments)
    add_to_path(options.peers)

    def say(line: str) -> None:
        print(line, flush=True)

    pair, records, is_good = PAIRS[options.pair], [], True
    for dtype in options.dtypes:
        case = Case(op=OP, pair=pair, rows=options.rows, dtype=dtype)
        found = measure(case, contestants_in(dtype), budget_s=options.budget, say=say)
        say("\n".join(_time_lines(case, found)) + "\n")
        is_good = is_good and OURS in found
        records.append(found)
    many = Case(op=OP, pair=pair, rows=options.many_rows, dtype="float32")
    contestants = [each for each in our_contestants(OP) if each.name in (OURS, LOGITS_PATH)]
    found = measure(many, contestants, budget_s=None, say=say)
    records.append(found)
    is_good = is_good and OURS in found
    for record in records:
        say(render_memory([columns["row"] for columns in record.values() if "row" in columns]))
    if options.output is not None:
        origin = provenance(CpuDevice().name(), "cpu", versions())
        options.output.write_text(json.dumps({**origin, "cases": records}, indent=1, default=vars) + "\n")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
