"""Runs the demo with several seeds and writes one table over them, for docs/log.md.

    python benchmarks/demo_seeds.py --seeds 0 1 2 --output runs/demo_seeds

The claim that it checks: over the seeds, the mean gain of on-policy distillation over the cold student is
more than eight points. It exits with 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from sod.demo.run import BASELINE, TEACHER, TITLES, run_demo
from sod.demo.settings import FULL, METHODS, QUICK
from sod.demo.summary import Reading

WANTED_GAIN = 8.0


def main() -> int:
    """Runs the seeds, prints and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/demo_seeds"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the small demo; nothing is claimed")
    parser.add_argument("--overwrite", action="store_true")
    arguments = parser.parse_args()
    readings: dict[int, tuple[Reading, ...]] = {}
    seconds: dict[int, float] = {}
    for seed in arguments.seeds:
        result = run_demo(
            QUICK if arguments.quick else FULL,
            output=arguments.output / f"seed_{seed}",
            seed=seed,
            num_threads=arguments.threads,
            overwrite=arguments.overwrite,
        )
        readings[seed], seconds[seed] = result.readings, result.seconds
    text = seed_table(readings, seconds)
    (arguments.output / "seeds.md").write_text(text + "\n", encoding="utf-8")
    gain = mean(_gains(readings, TITLES["opd"]))
    (arguments.output / "seeds.json").write_text(
        json.dumps({"mean_gain_opd": gain, "seconds": seconds}, indent=1) + "\n", encoding="utf-8"
    )
    print(text)
    print(f"\nmean gain of OPD over the {BASELINE}: {gain:+.1f} points (wanted: more than {WANTED_GAIN:.0f})")
    return 0 if gain > WANTED_GAIN or arguments.quick else 1


def seed_table(readings: dict[int, Sequence[Reading]], seconds: dict[int, float]) -> str:
    """Writes one row per model: success per seed, mean, gain with its standard error over the seeds."""
    seeds = list(readings)
    lines = [
        "| model | "
        + " | ".join(f"seed {seed}" for seed in seeds)
        + " | mean | gain | errors / trajectory |",
        "|---" * (len(seeds) + 4) + "|",
    ]
    for name in (TEACHER, BASELINE, *(TITLES[method] for method in METHODS)):
        rows = [_named(readings[seed], name) for seed in seeds]
        gains = _gains(readings, name)
        gain = "" if name in (TEACHER, BASELINE) else f"{mean(gains):+.1f} ± {_error(gains):.1f}"
        cells = [f"{100 * row.success:.1f}" for row in rows]
        cells += [f"{100 * mean(row.success for row in rows):.1f}", gain]
        cells += [f"{mean(row.errors_per_trajectory for row in rows):.2f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append(f"\nSeconds per seed: {', '.join(f'{seconds[seed]:.0f}' for seed in seeds)}.")
    for other in ("sod", "control"):
        gaps = [
            100
            * (_named(readings[seed], TITLES[other]).success - _named(readings[seed], TITLES["opd"]).success)
            for seed in seeds
        ]
        lines.append(
            f"{TITLES[other]} minus OPD: {mean(gaps):+.1f} ± {_error(gaps):.1f} points over the seeds."
        )
    return "\n".join(lines)


def _gains(readings: dict[int, Sequence[Reading]], name: str) -> list[float]:
    return [100 * (_named(rows, name).success - _named(rows, BASELINE).success) for rows in readings.values()]


def _error(values: Sequence[float]) -> float:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _named(rows: Sequence[Reading], name: str) -> Reading:
    return next(row for row in rows if row.name == name)


if __name__ == "__main__":
    sys.exit(main())
