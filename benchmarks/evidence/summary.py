"""What the results of a grid say, over seeds; works on whatever is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.evidence.grid import TEACHERS
from benchmarks.evidence.jobs import RESULT, read_result
from benchmarks.evidence.states import STATES

BASELINE = "opd"
Results = Mapping[int, Mapping[str, Any]]
"""Result of a job by seed."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        values: One per seed.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return mean(self.values)

    @property
    def error(self) -> float:
        """Standard error over the seeds; NaN for one seed."""
        return stdev(self.values) / math.sqrt(len(self.values)) if len(self.values) > 1 else math.nan

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        error = None if math.isnan(self.error) else self.error
        return {"mean": self.mean, "error": error, "num_seeds": len(self.values), "values": list(self.values)}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The cells of one regime and one update size.

    Attributes:
        regime: Name.
        update: Name.
        teacher: Kind of teacher.
        has_faults: Whether the tools fail.
        methods: Results by method and seed.
    """

    regime: str
    update: str
    teacher: str
    has_faults: bool
    methods: Mapping[str, Results]

    @property
    def reading(self) -> str:
        """The reading that the regime is about."""
        return "faulty" if self.has_faults else "honest"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that is done.

    Attributes:
        cold: Results of the cold starts by seed.
        teachers: Results of the teachers by kind and seed.
        rescues: Rescue rates by kind of teacher and seed.
        guides: Whether following the teacher pays, by regime and seed.
        settings: Cells.
    """

    cold: Results
    teachers: Mapping[str, Results]
    rescues: Mapping[str, Results]
    guides: Mapping[str, Results]
    settings: Sequence[Setting] = field(default_factory=tuple)


def read_evidence(root: Path) -> Evidence:
    """Read the results below a folder."""
    seeds = sorted(int(path.name.removeprefix("seed_")) for path in root.glob("seed_*"))

    def by_seed(name: str) -> dict[int, dict[str, Any]]:
        found = {seed: read_result(root, f"seed_{seed}/{name}") for seed in seeds}
        return {seed: result for seed, result in found.items() if result is not None}

    cells: dict[tuple[str, str], dict[str, dict[int, dict[str, Any]]]] = {}
    for seed in seeds:
        for path in sorted((root / f"seed_{seed}" / "cells").glob(f"*/{RESULT}")):
            regime, update, method = path.parent.name.split(".")
            result = read_result(root, str(path.parent.relative_to(root)))
            cells.setdefault((regime, update), {}).setdefault(method, {})[seed] = result or {}
    return Evidence(
        cold=by_seed("cold"),
        teachers={kind: by_seed(f"teacher_{kind}") for kind in TEACHERS},
        rescues={kind: by_seed(f"rescue_{kind}") for kind in TEACHERS},
        guides={regime: by_seed(f"guide_{regime}") for regime in sorted({regime for regime, _ in cells})},
        settings=[_setting(*key, methods) for key, methods in sorted(cells.items())],
    )


def _setting(regime: str, update: str, methods: Mapping[str, Results]) -> Setting:
    some = next(result for by_seed in methods.values() for result in by_seed.values())
    settings = some["settings"]["regime"]
    return Setting(
        regime=regime,
        update=update,
        teacher=settings["teacher"],
        has_faults=settings["has_faults"],
        methods=methods,
    )


def estimate(results: Results, value: Callable[[Mapping[str, Any]], float]) -> Estimate | None:
    """Take a number of every seed's result; None without seeds."""
    values = tuple(value(result) for result in results.values())
    return Estimate(values=values) if values else None


def difference(
    first: Results, second: Results, value: Callable[[Mapping[str, Any]], float]
) -> Estimate | None:
    """Subtract seed by seed, over the seeds that both have; None where there are none."""
    common = [seed for seed in first if seed in second]
    values = tuple(value(first[seed]) - value(second[seed]) for seed in common)
    return Estimate(values=values) if values else None


def success(reading: str) -> Callable[[Mapping[str, Any]], float]:
    """Read the share of held-out questions solved, in per cent."""
    return lambda result: 100.0 * result[reading]["success"]


def retry_rate(result: Mapping[str, Any]) -> float:
    """Read how often a faulted call was repeated at once, in per cent; held-out questions with faults."""
    reading = result["faulty"]
    return 100.0 * float(reading["retries"]) / max(1, int(reading["faults"]))


def curve(results: Results) -> tuple[list[int], list[Estimate]]:
    """Average the learning curves of the seeds, at the rounds that all have."""
    by_seed = [{point["round"]: point["success"] for point in one["curve"]} for one in results.values()]
    rounds = sorted(set.intersection(*(set(points) for points in by_seed)))
    return rounds, [Estimate(values=tuple(points[at] for points in by_seed)) for at in rounds]


def step_means(results: Results, group: str, key: str, place: int) -> Estimate | None:
    """Average d_k or w_k of a group of steps over the seeds.

    Args:
        results: Of a method.
        group: One of `benchmarks.evidence.states.GROUPS`.
        key: "divergence" or "weight".
        place: Round, 0 for the first and -1 for the last.
    """
    found = [one["steps"]["by_round"][place][group] for one in results.values() if "steps" in one]
    values = tuple(sums[key] for sums in found if sums["count"])
    return Estimate(values=values) if values else None


def turn_means(results: Results, when: str, side: str, key: str) -> tuple[list[int], list[float]]:
    """Average d_k or w_k at every turn, steps of all seeds alike; turns with few steps are left out.

    Args:
        results: Of a method.
        when: "first" or "last" round.
        side: "clean" or "fault".
        key: "divergence" or "weight".

    Returns:
        Turns from 1, and means.
    """
    totals: dict[int, list[float]] = {}
    for one in results.values():
        for turn, sums in one["steps"]["by_turn"].get(when, {}).get(side, {}).items():
            total = totals.setdefault(int(turn), [0.0, 0.0])
            total[0] += sums["count"]
            total[1] += sums["count"] * sums[key]
    few = 0.02 * max((count for count, _ in totals.values()), default=0.0)
    kept = [turn for turn in sorted(totals) if totals[turn][0] > few]
    return [turn + 1 for turn in kept], [totals[turn][1] / totals[turn][0] for turn in kept]


def pooled_rescues(results: Results) -> dict[str, dict[str, tuple[int, int]]]:
    """Add the rescue counts of the seeds: state, policy, right answers and attempts."""
    pooled: dict[str, dict[str, tuple[int, int]]] = {}
    for state in STATES:
        for policy in ("teacher", "student"):
            counts = [one["rescue"].get(state, {}).get(policy, [0, 0]) for one in results.values()]
            total = (sum(right for right, _ in counts), sum(number for _, number in counts))
            if total[1]:
                pooled.setdefault(state, {})[policy] = total
    return pooled


def pooled_guides(results: Results) -> list[tuple[int, float, float]]:
    """Add the seeds' sums: steps, share right after a fault, covariance over its own error; by class."""
    pooled = []
    for classes in zip(*(one["guide"] for one in results.values()), strict=True):
        steps, after, total, squares = (
            sum(one[key] for one in classes) for key in ("steps", "after_fault", "sum", "squares")
        )
        if steps:
            z = total / math.sqrt(squares) if squares else math.nan
            pooled.append((int(steps), after / steps, z))
        else:
            pooled.append((0, math.nan, math.nan))
    return pooled
