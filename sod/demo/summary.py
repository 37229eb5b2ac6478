"""What the demo says at the end: computed from what was measured, never written beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sod.report.plots import binomial_error
from sod.types import Trajectory

CLEAR_ERRORS = 2.0
"""A difference counts as clear from this many standard errors on."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One model on the held-out questions, answered greedily.

    Attributes:
        name: What the model is called in the table.
        is_solved: For each question, whether the final answer was exact.
        errors: For each question, error observations on the way.
        sampled_success: Share of the last round's training rollouts that were solved; None without rounds.
        num_updates: Optimiser updates behind the model.
        seconds: Wall-clock time that making the model took.
    """

    name: str
    is_solved: tuple[bool, ...]
    errors: tuple[int, ...]
    sampled_success: float | None = None
    num_updates: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if not self.is_solved or len(self.is_solved) != len(self.errors):
            raise ValueError(
                f"Reading {self.name!r}: is_solved and errors have {len(self.is_solved)} and"
                f" {len(self.errors)} values; give one of each for every question, at least one question."
            )

    @property
    def success(self) -> float:
        """Share of questions solved."""
        return sum(self.is_solved) / len(self.is_solved)

    @property
    def success_error(self) -> float:
        """Standard error of `success`."""
        return binomial_error(self.success, len(self.is_solved))

    @property
    def errors_per_trajectory(self) -> float:
        """Mean number of error observations."""
        return sum(self.errors) / len(self.errors)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as `summary.json` keeps them."""
        return {
            "name": self.name,
            "success": self.success,
            "success_error": self.success_error,
            "num_questions": len(self.is_solved),
            "errors_per_trajectory": self.errors_per_trajectory,
            "sampled_success": self.sampled_success,
            "num_updates": self.num_updates,
            "seconds": self.seconds,
            "is_solved": list(self.is_solved),
        }


def reading_of(name: str, trajectories: Sequence[Trajectory], **rest: Any) -> Reading:
    """Makes a reading from one greedy trajectory per question.

    Args:
        name: What the model is called.
        trajectories: In the order of the questions.
        **rest: Further fields of `Reading`.

    Returns:
        The reading.
    """
    return Reading(
        name=name,
        is_solved=tuple(trajectory.is_success for trajectory in trajectories),
        errors=tuple(trajectory.num_errors for trajectory in trajectories),
        **rest,
    )


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much better one model is than another on the same questions, in points (percent of questions).

    Attributes:
        points: 100 times the mean over questions of (first solved it) - (second solved it).
        error: Standard error of `points` over questions, the pairing kept. It knows nothing of what another
            seed would give.
    """

    points: float
    error: float

    @property
    def is_clear(self) -> bool:
        """Whether the difference is at least two standard errors away from none."""
        return abs(self.points) >= CLEAR_ERRORS * self.error and self.points != 0.0

    def __str__(self) -> str:
        return f"{self.points:+.1f} ± {self.error:.1f} points"


def difference(first: Reading, second: Reading) -> Difference:
    """Compares two models question by question.

    Args:
        first: One model.
        second: Another, on the same questions in the same order.

    Returns:
        First minus second.

    Raises:
        ValueError: If the number of questions differs.
    """
    if len(first.is_solved) != len(second.is_solved):
        raise ValueError(
            f"difference: {first.name!r} answered {len(first.is_solved)} questions and {second.name!r}"
            f" {len(second.is_solved)}; compare readings of the same questions."
        )
    pairs = zip(first.is_solved, second.is_solved, strict=True)
    gaps = [int(left) - int(right) for left, right in pairs]
    mean = sum(gaps) / len(gaps)
    spread = sum((gap - mean) ** 2 for gap in gaps) / max(len(gaps) - 1, 1)
    return Difference(points=100.0 * mean, error=100.0 * math.sqrt(spread / len(gaps)))


TABLE_HEADER = (
    "| model | solved, greedy | gain over cold student | errors / trajectory | sampled | updates | time |"
)


def summary_table(readings: Sequence[Reading], *, baseline: str) -> str:
    """Writes the table before and after, in Markdown.

    Args:
        readings: One row each, in order.
        baseline: Name of the reading that gains are counted from.

    Returns:
        The table, without a trailing newline.
    """
    base = _named(readings, baseline)
    lines = [TABLE_HEADER, "|---|---|---|---|---|---|---|"]
    for reading in readings:
        gain = "" if reading.name == baseline else str(difference(reading, base))
        sampled = "" if reading.sampled_success is None else f"{100.0 * reading.sampled_success:.1f}%"
        lines.append(
            f"| {reading.name} | {100.0 * reading.success:.1f} ± {100.0 * reading.success_error:.1f}%"
            f" | {gain} | {reading.errors_per_trajectory:.2f} | {sampled} | {reading.num_updates}"
            f" | {reading.seconds:.0f} s |"
        )
    return "\n".join(lines)


def step_table(title: str, first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """Writes how divergence and weight run along a trajectory, in Markdown.

    Args:
        title: Name of the method.
        first: Row of the first round in `metrics.jsonl`.
        last: Row of the last round.

    Returns:
        The table, without a trailing newline: d_k in nats per token, means over the steps of a round.
    """
    lines = [
        f"| {title}: step k | d_k, round {first['round'] + 1} | w_k | steps"
        f" | d_k, round {last['round'] + 1} | w_k | steps |",
        "|---|---|---|---|---|---|---|",
    ]
    columns = [_by_turn(first), _by_turn(last)]
    for turn in sorted(set(columns[0]) | set(columns[1])):
        cells = " | ".join(column.get(turn, " |  | ") for column in columns)
        lines.append(f"| {int(turn) + 1} | {cells} |")
    return "\n".join(lines)


def _by_turn(row: Mapping[str, Any]) -> dict[float, str]:
    numbers = zip(
        row["step/turns"],
        row["step/divergence_by_turn"],
        row["step/weight_by_turn"],
        row["step/count_by_turn"],
        strict=True,
    )
    return {
        turn: f"{divergence:.3f} | {weight:.2f} | {count:.0f}" for turn, divergence, weight, count in numbers
    }


def verdict(readings: Sequence[Reading], *, baseline: str, methods: Sequence[str]) -> list[str]:
    """Says which method won, as far as the numbers carry.

    Args:
        readings: Everything measured.
        baseline: Name of the common starting point.
        methods: Names of the methods to compare, at least one.

    Returns:
        Sentences.
    """
    base = _named(readings, baseline)
    ranked = sorted((_named(readings, name) for name in methods), key=lambda one: one.success, reverse=True)
    best = ranked[0]
    gain = difference(best, base)
    sentences = [
        f"Best after training: {best.name}, {100.0 * best.success:.1f}% of {len(best.is_solved)} held-out"
        f" questions; {gain} over the {baseline}{'' if gain.is_clear else ', which is not a clear gain'}."
    ]
    for other in ranked[1:]:
        gap = difference(best, other)
        word = "ahead" if gap.is_clear else "no clear difference"
        sentences.append(f"{best.name} against {other.name}: {gap} ({word}).")
    sentences.append(
        "The error is that of one run on these questions, the same for every model; another seed moves all of"
        " it more than that."
    )
    return sentences


def to_json(readings: Sequence[Reading], *, baseline: str, methods: Sequence[str]) -> Mapping[str, Any]:
    """Everything that the table and the sentences were made from.

    Args:
        readings: Everything measured.
        baseline: Name of the common starting point.
        methods: Names of the methods compared.

    Returns:
        Plain values for `summary.json`.
    """
    base = _named(readings, baseline)
    gains = {name: difference(_named(readings, name), base) for name in methods}
    return {
        "baseline": baseline,
        "readings": [reading.to_json() for reading in readings],
        "gains": {name: {"points": gain.points, "error": gain.error} for name, gain in gains.items()},
        "verdict": verdict(readings, baseline=baseline, methods=methods),
    }


def _named(readings: Sequence[Reading], name: str) -> Reading:
    for reading in readings:
        if reading.name == name:
            return reading
    raise ValueError(
        f"summary: there is no reading named {name!r}; there are {', '.join(one.name for one in readings)}."
    )
