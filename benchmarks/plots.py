"""Two pictures of a run: how near the roof every contestant is, and how cost grows with the tokens."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from benchmarks.record import Document, Row

_MARKERS = {"step_kl": "o", "linear_step_kl": "s", "topk_step_kl": "^"}


def draw_roofline(document: Document, path: Path) -> None:
    """Draw achieved arithmetic against intensity, under the bandwidth and matrix product rates of the run.

    Args:
        document: The run.
        path: PNG to write.
    """
    timed = [row for row in document.rows if row.median_s is not None and row.sweeps == "forward+backward"]
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    intensities = [row.intensity or 1.0 for row in timed] or [1.0]
    reach = np.geomspace(min(intensities) / 2, max(intensities) * 2, 200)
    roof = document.bandwidth.copy * reach
    if document.matmul_flops_per_s is not None:
        roof = np.minimum(roof, document.matmul_flops_per_s)
    axes.loglog(reach, roof / 1e9, color="black", linewidth=1.5, label="limit measured in this run")
    colors = _colors(timed)
    for row in timed:
        axes.loglog(
            row.intensity,
            (row.flops_per_s or 0.0) / 1e9,
            _MARKERS[row.op],
            color=colors[row.contestant],
            alpha=0.8,
            label=row.contestant,
        )
    axes.set_xlabel("least operations per byte of least traffic")
    axes.set_ylabel("GFLOP/s of the least work")
    axes.set_title(
        f"forward+backward on {document.origin['device']} (circles step_kl, squares linear, triangles top-k)",
        fontsize=10,
    )
    _finish(figure, path)


def draw_growth(document: Document, path: Path) -> None:
    """Draw time per token against N, a panel per op; a flat line is cost linear in N.

    Args:
        document: The run.
        path: PNG to write.
    """
    lines: dict[tuple[str, str, str, str], list[Row]] = defaultdict(list)
    for row in document.rows:
        if row.median_s is not None and row.sweeps == "forward+backward":
            lines[row.op, row.pair, row.dtype, row.contestant].append(row)
    grown = {key: rows for key, rows in lines.items() if len(rows) > 1}
    panels = sorted({key[:3] for key in grown}) or [("nothing", "was measured", "at two N")]
    figure = Figure(figsize=(5.5 * len(panels), 5), layout="constrained")
    colors = _colors([row for rows in grown.values() for row in rows])
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for key, rows in grown.items():
            if key[:3] == panel:
                ordered = sorted(rows, key=lambda row: row.rows)
                per_token = [1e6 * (row.median_s or 0.0) / row.rows for row in ordered]
                axes.loglog(
                    [row.rows for row in ordered], per_token, "o-", color=colors[key[3]], label=key[3]
                )
        axes.set_title(", ".join(panel), fontsize=10)
        axes.set_xlabel("tokens N")
        axes.set_ylabel("microseconds per token, forward+backward")
    _finish(figure, path)


def _colors(rows: list[Row]) -> dict[str, tuple[float, float, float, float]]:
    names = sorted({row.contestant for row in rows})
    palette = mpl.colormaps["tab20"]
    return {name: palette(number % palette.N) for number, name in enumerate(names)}


def _finish(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.grid(visible=True, which="both", alpha=0.2)
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            # One entry per contestant, however many cases it ran on.
            unique = dict(zip(labels, handles, strict=True))
            axes.legend(unique.values(), unique.keys(), fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
