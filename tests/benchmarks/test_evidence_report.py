"""Tables from made results: means and errors over seeds, differences seed by seed, partial grids."""

from __future__ import annotations

import json

import pytest

from benchmarks.evidence.command_line import main
from benchmarks.evidence.grid import GRID_FILE
from benchmarks.evidence.report import write_report
from benchmarks.evidence.summary import Estimate, difference, estimate, success
from sod.errors import DataError

COLD = {0: 0.40, 1: 0.50, 2: 0.60}
OPD = {0: 0.30, 1: 0.30, 2: 0.30}
STM = {0: 0.50, 1: 0.56}


def reading(rate, retries=3):
    return {"success": rate, "retries": retries, "faults": 4, "errors": 0.1}


def steps(weight):
    clean, fault = ({"count": 10, "divergence": d, "weight": w} for d, w in ((0.1, 1.0), (1.5, weight)))
    groups = {"clean": clean, "right after a fault": fault, "a fault behind": fault}
    turns = {"clean": {"0": clean, "1": clean}, "fault": {"1": fault}}
    return {"by_round": [groups, groups], "by_turn": {"first": turns, "last": turns}}


def put(root, name, result):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"settings": {}, **result}))


@pytest.fixture
def grid(tmp_path):
    root = tmp_path / "runs"
    for seed, rate in COLD.items():
        put(root, f"seed_{seed}/cold", {"faulty": reading(rate), "honest": reading(0.6)})
        teacher = {"faulty": reading(0.3, 0), "honest": reading(1.0)}
        put(root, f"seed_{seed}/teacher_naive", teacher | {f"check_{key}": teacher[key] for key in teacher})
    put(
        root,
        "seed_0/rescue_naive",
        {"rescue": {"clean": {"teacher": [9, 10], "student": [6, 10]}, "own error": {"teacher": [0, 2]}}},
    )
    guide = [{"steps": 4, "after_fault": 1, "sum": 3.0, "squares": 4.0}] * 2
    guide += [{"steps": 0, "after_fault": 0, "sum": 0.0, "squares": 0.0}] * 3
    for seed in (0, 1):
        put(root, f"seed_{seed}/guide_cascade", {"guide": guide})
    for method, rates, weight in (("opd", OPD, 1.0), ("stm", STM, 0.1)):
        for seed, rate in rates.items():
            result = {
                "faulty": reading(rate),
                "honest": reading(0.9),
                "curve": [{"round": 0, "success": COLD[seed]}, {"round": 2, "success": rate}],
                "steps": steps(weight),
                "settings": {"regime": {"teacher": "naive", "has_faults": True}},
            }
            put(root, f"seed_{seed}/cells/cascade.small.{method}", result)
    return root


def test_tables_say_what_was_measured(grid, tmp_path):
    written = write_report(grid, tmp_path / "report", GRID_FILE)
    names = {path.name for path in written}
    assert names == {
        "results.md",
        "results.json",
        "curves_cascade_small.png",
        # OPD weighs every step with 1, so there is nothing to draw.
        "steps_cascade_small_stm.png",
    }
    assert all(path.stat().st_size > 0 for path in written)
    text = (tmp_path / "report" / "results.md").read_text()
    table = {
        line.split(" | ")[0].strip("| "): [cell.strip(" |") for cell in line.split(" | ")]
        for line in text.split("## cascade, small")[1].splitlines()[2:8]
    }
    # Two seeds: 6 over the root of 8.
    assert "| below 0.25 | 8 | 25% | +2.1 |" in text
    assert "| 1 and more | 0 |  |  |" in text
    assert table["teacher"][1:5] == ["30.0", "30.0", "30.0", "30.0 ± 0.0"]
    assert table["cold start"][1:5] == ["40.0", "50.0", "60.0", "50.0 ± 5.8"]
    # OPD loses 10, 20 and 30 points: -20 ± 5.8; STM has two seeds, +8 ± 2 over the cold start.
    assert table["OPD"][5:8] == ["-20.0 ± 5.8", "", "3"]
    assert table["STM (ours)"][3:8] == ["", "53.0 ± 3.0", "+8.0 ± 2.0", "+23.0 ± 3.0", "2"]
    assert table["STM (ours)"][8:] == ["90.0 ± 0.0", "75.0 ± 0.0"]
    assert "0.10 → 0.10 | 1.50 → 1.50" in text
    assert "| clean | 9/10 | 6/10 |" in text
    numbers = json.loads((tmp_path / "report" / "results.json").read_text())
    (setting,) = numbers["settings"]
    assert setting["methods"]["stm"]["minus_cold"]["values"] == pytest.approx([10.0, 6.0])


def test_nothing_to_report_is_an_error(tmp_path, capsys):
    with pytest.raises(DataError, match="has no finished cell; run one first"):
        write_report(tmp_path, tmp_path / "report", GRID_FILE)
    assert main(["report", "--output", str(tmp_path), "--to", str(tmp_path / "report")]) == 2
    assert capsys.readouterr().out.startswith("error: evidence: ")


def test_differences_are_taken_seed_by_seed():
    first = {0: {"faulty": {"success": 0.5}}, 2: {"faulty": {"success": 0.9}}}
    second = {
        0: {"faulty": {"success": 0.4}},
        1: {"faulty": {"success": 0.1}},
        2: {"faulty": {"success": 0.6}},
    }
    gap = difference(first, second, success("faulty"))
    assert gap.values == pytest.approx((10.0, 30.0))
    assert gap.mean == pytest.approx(20.0)
    assert gap.error == pytest.approx(10.0)
    assert difference(first, {5: second[0]}, success("faulty")) is None
    assert estimate({}, success("faulty")) is None
    assert Estimate(values=(1.0,)).to_json() == {"mean": 1.0, "error": None, "num_seeds": 1, "values": [1.0]}
