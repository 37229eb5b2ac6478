"""The demo's plots, made from the run folders alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sod.demo.configs import DemoPaths
from sod.metrics import read_rows
from sod.report.plots import Curve, binomial_error, plot_steps, plot_success

_MIN_STEPS = 10


def draw_figures(paths: DemoPaths, titles: Mapping[str, str], teacher_success: float) -> list[Path]:
    """Draw every plot that the methods that ran have numbers for.

    Args:
        paths: The demo's folder.
        titles: Method to its name in the legend.
        teacher_success: Drawn as a level, in [0, 1].

    Returns:
        The files written.
    """
    rows = {method: read_rows(paths.run(method) / "metrics.jsonl") for method in titles}
    success = paths.plots / "success.png"
    plot_success(
        success,
        [_success_curve(titles[method], rows[method]) for method in titles],
        levels={"teacher": teacher_success},
        title="Held-out questions solved, greedy (± 1 standard error)",
    )
    written = [success]
    for method, title in titles.items():
        rounds = [row for row in rows[method] if row["kind"] == "round"]
        if method == "control":
            continue
        path = paths.plots / f"steps_{method}.png"
        chosen = {"first round": rounds[0], "last round": rounds[-1]}
        plot_steps(
            path,
            [_step_curve(label, row, "step/divergence_by_turn") for label, row in chosen.items()],
            [_step_curve(label, row, "step/weight_by_turn") for label, row in chosen.items()],
            title=f"{title}: divergence and weight along a trajectory",
        )
        written.append(path)
    return written


def _success_curve(label: str, rows: list[dict[str, Any]]) -> Curve:
    evals = [row for row in rows if row["kind"] == "eval"]
    rates = [row["eval/success_mean"] for row in evals]
    return Curve(
        label=label,
        x=[row["round"] for row in evals],
        y=rates,
        error=[binomial_error(rate, int(row["eval/tasks"])) for rate, row in zip(rates, evals, strict=True)],
    )


def _step_curve(label: str, row: Mapping[str, Any], key: str) -> Curve:
    # A mean over a handful of steps says nothing; the longest trajectories are few.
    largest = max(row["step/count_by_turn"])
    few = min(_MIN_STEPS, largest)
    kept = [
        (turn + 1, value)
        for turn, value, count in zip(row["step/turns"], row[key], row["step/count_by_turn"], strict=True)
        if count >= few
    ]
    return Curve(label=label, x=[turn for turn, _ in kept], y=[value for _, value in kept])
