"""The parts, in the order in which they run, and how long each may take."""

from __future__ import annotations

from dataclasses import dataclass

TOTAL_S = 25 * 60
EARLY_S = 8 * 60
EARLY = ("build", "correctness", "limits", "bench")
"""The parts that have to be through first, within `EARLY_S`."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of the plan.

    Attributes:
        name: What the command line and the files call it; `benchmarks.gpu.<name>_part` runs it.
        limit_s: Seconds after which it is killed.
        dry_limit_s: The same in a dry run, which may share its processor with anybody.
        what: What it shows.
        columns: What its table shows of a row.
    """

    name: str
    limit_s: int
    dry_limit_s: int
    what: str
    columns: tuple[str, ...]


PARTS = {
    part.name: part
    for part in (
        Part(
            name="build",
            limit_s=70,
            dry_limit_s=300,
            what="csrc/cuda compiles for the card and loads",
            columns=("seconds", "detail"),
        ),
        Part(
            name="correctness",
            limit_s=200,
            dry_limit_s=300,
            what="every function, backend and dtype against float64",
            columns=("passed", "skipped", "failed", "seconds"),
        ),
        Part(
            name="limits",
            limit_s=35,
            dry_limit_s=300,
            what="what memory and matrix units give",
            columns=("gb_per_s", "tflop_per_s", "seconds"),
        ),
        Part(
            name="bench",
            limit_s=175,
            dry_limit_s=300,
            what="ours beside the peers",
            columns=("median_s", "limit_s", "peak_extra_bytes", "loss_error", "gradient_error"),
        ),
        Part(
            name="sanitize",
            limit_s=240,
            dry_limit_s=300,
            what="no access out of bounds, no race in shared memory",
            columns=("tool", "errors", "seconds"),
        ),
        Part(
            name="counters",
            limit_s=150,
            dry_limit_s=300,
            what="what limits the main kernels",
            columns=("microseconds", "dram_percent", "sm_percent", "l2_hit_percent", "registers"),
        ),
        Part(
            name="e2e",
            limit_s=560,
            dry_limit_s=600,
            what="OPD, SOD and two targets on the ledger task with faults",
            columns=("success_start", "success_end", "success_clean", "updates", "parameters", "seconds"),
        ),
    )
}
"""By name."""
