"""Rows for metrics.jsonl and steps.jsonl, and what they say about a round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sod.loop.update import StepStats
from sod.types import Trajectory

ANCHOR_RATIO = 0.25
"""The first step's mean divergence below this share of the later steps' counts as a collapsed anchor."""

QUANTILE_RATE = 0.1
"""Share of a new update in the running quantile of step divergences."""

StepSums = Mapping[str, tuple[float, float, float]]


def step_rows(
    steps: Sequence[StepStats], trajectories: Sequence[Trajectory], *, round_index: int, update: int
) -> list[dict[str, Any]]:
    """Write each step of an update as a row.

    Args:
        steps: Steps of the minibatch.
        trajectories: Trajectories of the round.
        round_index: The round.
        update: The update.

    Returns:
        One row per step, in the order of trajectory and turn.
    """
    rows = []
    for step in sorted(steps, key=lambda one: (one.trajectory, one.turn)):
        trajectory = trajectories[step.trajectory]
        earlier = [result for turn in trajectory.turns[: step.turn] for result in turn.results]
        just_before = trajectory.turns[step.turn - 1].results if step.turn else ()
        rows.append(
            {
                "round": round_index,
                "update": update,
                "task_id": trajectory.task_id,
                "trajectory": step.trajectory,
                "step": step.turn,
                "tokens": step.tokens,
                "divergence": step.divergence,
                "weight": step.weight,
                "outcomes": [str(result.outcome) for result in trajectory.turns[step.turn].results],
                "is_after_error": any(result.is_error for result in just_before),
                "num_errors_before": sum(result.is_error for result in earlier),
                "is_success": trajectory.is_success,
            }
        )
    return rows


def add_steps(sums: StepSums, steps: Sequence[StepStats]) -> dict[str, tuple[float, float, float]]:
    """Add steps to the sums per turn (number, divergence, weight), and give the new sums."""
    result = dict(sums)
    for step in steps:
        count, divergence, weight = result.get(str(step.turn), (0.0, 0.0, 0.0))
        result[str(step.turn)] = (count + 1.0, divergence + step.divergence, weight + step.weight)
    return result


def running_quantile(before: float | None, steps: Sequence[StepStats], quantile: float = 0.5) -> float | None:
    """Follow a quantile of the step divergences over the updates, a tenth of the way at each.

    Args:
        before: Its value so far, nats; None before the first update.
        steps: Steps of an update; a divergence that is not finite is left out.
        quantile: Which, from 0 to 1; between two steps on the line through them.

    Returns:
        The new value; `before` where no step has a finite divergence.
    """
    finite = [step.divergence for step in steps if math.isfinite(step.divergence)]
    if not finite:
        return before
    now = float(torch.tensor(finite, dtype=torch.float64).quantile(quantile))
    return now if before is None else before + QUANTILE_RATE * (now - before)


def step_table(sums: StepSums) -> dict[str, list[float]]:
    """Means by turn: how divergence and weight move along the trajectories of a round."""
    ordered = [sums[key] for key in sorted(sums, key=int)]
    return {
        "step/turns": [float(key) for key in sorted(sums, key=int)],
        "step/count_by_turn": [count for count, _, _ in ordered],
        "step/divergence_by_turn": [divergence / count for count, divergence, _ in ordered],
        "step/weight_by_turn": [weight / count for count, _, weight in ordered],
    }


def anchor_warning(sums: StepSums, epsilon: float) -> str | None:
    """Say so when the first step has become too easy to weigh the others by.

    SOD's weights are d_1 / d_k: where the first step is boilerplate that is learned first, d_1 falls, and
    with it the weight of exactly the later steps that still fail.

    Args:
        sums: Sums per turn of a round.
        epsilon: SOD's epsilon, nats.

    Returns:
        The warning, or None where there is no cause.
    """
    later = [sums[key] for key in sums if key != "0"]
    count = math.fsum(entry[0] for entry in later)
    if "0" not in sums or count == 0:
        return None
    first = sums["0"][1] / sums["0"][0]
    rest = math.fsum(entry[1] for entry in later) / count
    if first + epsilon >= ANCHOR_RATIO * (rest + epsilon):
        return None
    weight = math.fsum(entry[2] for entry in later) / count
    return (
        f"anchor collapse: the first step's mean divergence ({first:.4f} nats) is small against that of the "
        f"later steps ({rest:.4f}), so SOD weighs them with {weight:.3f} on average and hardly trains them. "
        f"[algorithm] epsilon = {epsilon:g} is the remedy: try about {0.5 * rest:.2g}; "
        'or compare with name = "opd".'
    )


def mean_metrics(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Average the metrics of a round's updates; times and counts are added up."""
    added = ("time/", "update/tokens", "update/steps", "update/is_skipped")
    result: dict[str, float] = {}
    for key in rows[-1] if rows else ():
        values = [row[key] for row in rows if key in row and math.isfinite(row[key])]
        total = math.fsum(values)
        result[key] = total if key.startswith(added) else (total / len(values) if values else math.nan)
    return result
