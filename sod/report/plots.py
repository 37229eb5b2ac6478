"""The pictures of a run, drawn off screen and written as PNG files.

Each function takes plain numbers and a path, so that a plot can be made again from `metrics.jsonl` and
`steps.jsonl` alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_COLOURS = ("#0b6e99", "#d1495b", "#3a7d44", "#8a5a9e", "#c98a1b", "#555555")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DPI = 130


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a plot.

    Attributes:
        label: Name in the legend.
        x: Positions, increasing.
        y: Values, as many as `x`.
        error: Standard error of each value; empty for a line without error bars.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    error: Sequence[float] = ()

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or (self.error and len(self.error) != len(self.y)):
            raise ValueError(
                f"Curve {self.label!r}: x, y and error have {len(self.x)}, {len(self.y)} and"
                f" {len(self.error)} values; give as many of each (error may be left out)."
            )


def binomial_error(rate: float, num_trials: int) -> float:
    """Standard error of a success rate: sqrt(p (1 - p) / n).

    Args:
        rate: Observed rate in [0, 1].
        num_trials: Number of independent trials, at least 1.

    Returns:
        The standard error, in the unit of the rate.

    Raises:
        ValueError: If an argument is out of range.
    """
    if not 0.0 <= rate <= 1.0 or num_trials < 1:
        raise ValueError(
            f"binomial_error: rate={rate}, num_trials={num_trials}; the rate must lie in [0, 1] and"
            " there must be at least 1 trial."
        )
    return math.sqrt(rate * (1.0 - rate) / num_trials)


def plot_success(
    path: Path, curves: Sequence[Curve], *, levels: Mapping[str, float] | None = None, title: str = ""
) -> None:
    """Draws success against the round, one line per method, with error bars of one standard error.

    Args:
        path: Where the PNG goes; its folder is made.
        curves: x in rounds, y and error as rates in [0, 1].
        levels: Horizontal lines to compare with, such as the teacher's rate.
        title: Above the plot.

    Raises:
        ValueError: If there is no curve.
    """
    _require(curves, "plot_success")
    figure, axes = _figure(1)
    _draw(axes[0], curves, scale=100.0)
    for label, level in (levels or {}).items():
        axes[0].axhline(100.0 * level, color="#777777", linestyle=":", linewidth=1.2)
        axes[0].annotate(
            f"{label} {100.0 * level:.1f}%",
            xy=(0.99, 100.0 * level),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
            color="#555555",
        )
    axes[0].set_xlabel("round")
    axes[0].set_ylabel("questions solved (%)")
    axes[0].set_ylim(0.0, 104.0)
    axes[0].set_title(title)
    axes[0].legend(fontsize=8, frameon=False)
    _save(figure, path)


def plot_steps(path: Path, divergence: Sequence[Curve], weights: Sequence[Curve], *, title: str = "") -> None:
    """Draws the step divergence d_k and the step weight w_k against the step, side by side.

    Args:
        path: Where the PNG goes; its folder is made.
        divergence: x is the step from 1, y the mean d_k in nats per token.
        weights: x is the step from 1, y the mean w_k.
        title: Above both.

    Raises:
        ValueError: If either has no curve.
    """
    _require(divergence, "plot_steps")
    _require(weights, "plot_steps")
    figure, axes = _figure(2)
    labels = ("step divergence $d_k$ (nats per token)", "step weight $w_k$")
    for axis, curves, label in zip(axes, (divergence, weights), labels, strict=True):
        _draw(axis, curves)
        axis.set_xlabel("step $k$ of the trajectory")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0.0)
        axis.legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def _require(curves: Sequence[Curve], function: str) -> None:
    if not curves:
        raise ValueError(f"{function}: no curve to draw; give at least one.")


def _figure(num_panels: int) -> tuple[Figure, list[Axes]]:
    # Without pyplot there is no global state, no display and nothing to close.
    figure = Figure(figsize=(5.2 * num_panels + 1.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, num_panels, index + 1) for index in range(num_panels)]
    for axis in axes:
        axis.grid(visible=True, color="#e6e6e6", linewidth=0.8)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _draw(axis: Axes, curves: Sequence[Curve], *, scale: float = 1.0) -> None:
    for index, curve in enumerate(curves):
        axis.errorbar(
            curve.x,
            [scale * value for value in curve.y],
            yerr=[scale * value for value in curve.error] if curve.error else None,
            label=curve.label,
            color=_COLOURS[index % len(_COLOURS)],
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=4.5,
            linewidth=1.6,
            capsize=2.5,
            elinewidth=0.9,
        )


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
