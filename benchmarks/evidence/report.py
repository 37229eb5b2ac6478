"""Tables, numbers and plots of whatever a grid has done so far."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.evidence.guides import EDGES
from benchmarks.evidence.states import AFTER_FAULT, CLEAN, LATER
from benchmarks.evidence.summary import (
    BASELINE,
    Estimate,
    Evidence,
    Setting,
    curve,
    difference,
    estimate,
    pooled_guides,
    pooled_rescues,
    read_evidence,
    retry_rate,
    step_means,
    success,
    turn_means,
)
from sod.errors import DataError
from sod.report.plots import Curve, plot_steps, plot_success

Titles = Mapping[str, str]
_GAP = " | "


def write_report(root: Path, target: Path, grid_file: Path) -> list[Path]:
    """Write `results.md`, `results.json` and plots.

    Args:
        root: Output folder of the runs.
        target: Folder to write.
        grid_file: Has the names of the methods.

    Returns:
        The files written.

    Raises:
        DataError: If no cell is done.
    """
    evidence = read_evidence(root)
    if not evidence.settings:
        raise DataError(f"evidence: {root} has no finished cell; run one first")
    raw = tomllib.loads(grid_file.read_text(encoding="utf-8"))["methods"]
    titles = {name: one["title"] for name, one in raw.items()}
    target.mkdir(parents=True, exist_ok=True)
    text, numbers = target / "results.md", target / "results.json"
    plots = list(_draw(evidence, titles, target))
    text.write_text(render(evidence, titles), encoding="utf-8")
    numbers.write_text(json.dumps(to_json(evidence)) + "\n", encoding="utf-8")
    return [text, numbers, *plots]


def render(evidence: Evidence, titles: Titles) -> str:
    """Write the tables in Markdown."""
    parts = [
        "# Results so far",
        "Written by `python -m benchmarks.evidence report`; [README.md](README.md) says what is asked.\n"
        "Per cent of held-out questions solved, greedily. ± is one standard error over seeds, each with a\n"
        "teacher and a cold start of its own; differences are taken seed by seed. A row with one seed has\n"
        "no error and proves nothing.",
    ]
    for setting in evidence.settings:
        parts += [_heading(setting), _table(evidence, setting, titles)]
        if setting.has_faults:
            parts.append(_step_table(setting, titles))
        parts.append(f"![Learning curves](curves_{setting.regime}_{setting.update}.png)")
    for regime, results in evidence.guides.items():
        if results:
            parts += [
                f"## Does it pay to follow the teacher? {regime}, {len(results)} seeds",
                _guide_table(results),
            ]
    for kind, results in evidence.rescues.items():
        if results:
            parts += [
                f"## Who is a usable guide: teacher {kind!r}, {len(results)} seeds",
                _rescue_table(results),
            ]
    return "\n\n".join(parts) + "\n"


def _heading(setting: Setting) -> str:
    faults = "tool faults" if setting.has_faults else "honest tools"
    return f"## {setting.regime}, {setting.update} updates ({faults}, teacher {setting.teacher!r})"


def _table(evidence: Evidence, setting: Setting, titles: Titles) -> str:
    reading = success(setting.reading)
    other = "honest" if setting.has_faults else "faulty"
    seeds = sorted({seed for results in setting.methods.values() for seed in results})
    cold = {seed: evidence.cold[seed] for seed in seeds if seed in evidence.cold}
    teachers = evidence.teachers[setting.teacher]
    teacher = {seed: teachers[seed] for seed in seeds if seed in teachers}
    rows: dict[str, Mapping[int, Mapping[str, Any]]] = {"teacher": teacher, "cold start": cold}
    rows |= {titles.get(name, name): results for name, results in _ordered(setting, titles)}
    header = ["", *(f"seed {seed}" for seed in seeds), "mean", "− cold start", "− OPD", "seeds"]
    header += ["with faults" if other == "faulty" else "without faults", "retries"]
    lines = [f"| {_GAP.join(header)} |", "|---" * len(header) + "|"]
    opd = setting.methods.get(BASELINE, {})
    for name, results in rows.items():
        cells = [f"{reading(results[seed]):.1f}" if seed in results else "" for seed in seeds]
        is_method = name not in ("teacher", "cold start")
        cells.append(_plain(estimate(results, reading)))
        cells.append(_signed(difference(results, cold, reading)) if is_method else "")
        cells.append(_signed(difference(results, opd, reading)) if is_method and results is not opd else "")
        cells.append(str(len(results)))
        cells += [_plain(estimate(results, success(other))), _plain(estimate(results, retry_rate))]
        lines.append(f"| {_GAP.join([name, *cells])} |")
    return "\n".join(lines)


def _step_table(setting: Setting, titles: Titles) -> str:
    header = ["first → last round"]
    header += [f"{letter}, {group}" for letter in ("d", "w") for group in (CLEAN, AFTER_FAULT, LATER)]
    lines = [f"| {_GAP.join(header)} |", "|---" * len(header) + "|"]
    for name, results in _ordered(setting, titles):
        cells = [
            " → ".join(_number(step_means(results, group, key, place)) for place in (0, -1))
            for key in ("divergence", "weight")
            for group in (CLEAN, AFTER_FAULT, LATER)
        ]
        if any(cell.strip(" →") for cell in cells):
            lines.append(f"| {_GAP.join([titles.get(name, name), *cells])} |")
    return "\n".join(lines)


def _rescue_table(results: Mapping[int, Mapping[str, Any]]) -> str:
    lines = ["| state of the cold student | teacher right | student right |", "|---|---|---|"]
    for state, counts in pooled_rescues(results).items():
        cells = ["/".join(map(str, counts.get(policy, ()))) for policy in ("teacher", "student")]
        lines.append(f"| {state} | {_GAP.join(cells)} |")
    return "\n".join(lines)


def _guide_table(results: Mapping[int, Mapping[str, Any]]) -> str:
    bounds = [
        f"below {EDGES[0]:g}",
        *(f"{low:g} to {high:g}" for low, high in pairwise(EDGES)),
        f"{EDGES[-1]:g} and more",
    ]
    lines = ["| entropy / divergence of a far step | steps | right after a fault | covariance / its error |"]
    lines.append("|---|---|---|---|")
    for bound, (steps, share, z) in zip(bounds, pooled_guides(results), strict=True):
        cells = [bound, str(steps), f"{share:.0%}" if steps else "", f"{z:+.1f}" if math.isfinite(z) else ""]
        lines.append(f"| {_GAP.join(cells)} |")
    return "\n".join(lines)


def to_json(evidence: Evidence) -> dict[str, Any]:
    """Everything that the tables and plots are made from."""
    settings = []
    for setting in evidence.settings:
        reading = success(setting.reading)
        methods = {}
        for name, results in setting.methods.items():
            against = {"cold": evidence.cold, BASELINE: setting.methods.get(BASELINE, {})}
            gaps = {f"minus_{other}": difference(results, base, reading) for other, base in against.items()}
            numbers = {
                "success": estimate(results, reading),
                "retry_rate": estimate(results, retry_rate),
                **gaps,
            }
            methods[name] = {
                "seeds": list(results),
                **{key: None if one is None else one.to_json() for key, one in numbers.items()},
                "results": results,
            }
        settings.append(
            {
                "regime": setting.regime,
                "update": setting.update,
                "teacher": setting.teacher,
                "methods": methods,
            }
        )
    return {
        "cold": evidence.cold,
        "teachers": evidence.teachers,
        "rescues": evidence.rescues,
        "guides": evidence.guides,
        "settings": settings,
    }


def _draw(evidence: Evidence, titles: Titles, target: Path) -> Iterator[Path]:
    for setting in evidence.settings:
        name = f"{setting.regime}_{setting.update}"
        path = target / f"curves_{name}.png"
        plot_success(
            path, _curves(setting, titles), levels=_levels(evidence, setting), title=_heading(setting)[3:]
        )
        yield path
        for method, results in _ordered(setting, titles):
            if all("steps" in one for one in results.values()) and _is_weighed(results):
                path = target / f"steps_{name}_{method}.png"
                divergence, weights = (list(_step_curves(results, key)) for key in ("divergence", "weight"))
                plot_steps(
                    path, divergence, weights, title=f"{titles.get(method, method)}: {_heading(setting)[3:]}"
                )
                yield path


def _curves(setting: Setting, titles: Titles) -> list[Curve]:
    curves = []
    for name, results in _ordered(setting, titles):
        rounds, means = curve(results)
        errors = [one.error for one in means]
        curves.append(
            Curve(
                label=f"{titles.get(name, name)} ({len(results)} seeds)",
                x=rounds,
                y=[one.mean for one in means],
                error=() if any(map(math.isnan, errors)) else errors,
            )
        )
    return curves


def _levels(evidence: Evidence, setting: Setting) -> dict[str, float]:
    """The teacher's level on the questions of the curves; the cold start is where they begin."""
    seeds = {seed for results in setting.methods.values() for seed in results}
    teachers = evidence.teachers[setting.teacher]
    own = {seed: teachers[seed] for seed in seeds if seed in teachers}
    level = estimate(own, lambda result: float(result[f"check_{setting.reading}"]["success"]))
    starts = [one["curve"][0]["success"] for results in setting.methods.values() for one in results.values()]
    levels = {} if level is None else {"teacher": level.mean}
    return levels | {"cold start": sum(starts) / len(starts)}


def _step_curves(results: Mapping[int, Mapping[str, Any]], key: str) -> Iterator[Curve]:
    for side, words in (("clean", "clean"), ("fault", "a fault behind")):
        for when in ("first", "last"):
            turns, means = turn_means(results, when, side, key)
            if turns:
                yield Curve(label=f"{words}, {when} round", x=turns, y=means)


def _is_weighed(results: Mapping[int, Mapping[str, Any]]) -> bool:
    rounds = [one for result in results.values() for one in result["steps"]["by_round"]]
    return any(abs(sums["weight"] - 1.0) > 1e-6 for one in rounds for sums in one.values() if sums["count"])


def _ordered(setting: Setting, titles: Titles) -> list[tuple[str, Mapping[int, Mapping[str, Any]]]]:
    order = list(titles)
    return sorted(
        setting.methods.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)
    )


def _plain(value: Estimate | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:.1f}" if math.isnan(value.error) else f"{value.mean:.1f} ± {value.error:.1f}"


def _signed(value: Estimate | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:+.1f}" if math.isnan(value.error) else f"{value.mean:+.1f} ± {value.error:.1f}"


def _number(value: Estimate | None) -> str:
    return "" if value is None else f"{value.mean:.2f}"
