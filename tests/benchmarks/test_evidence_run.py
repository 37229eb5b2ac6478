"""The smallest part of the grid as a user runs it: every phase, every file, nothing done twice."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.evidence.command_line import main
from sod.rollout.store import read_trajectories
from sod.sandbox import sandbox_problem

pytestmark = [
    pytest.mark.slow,
    pytest.mark.sandbox,
    pytest.mark.skipif(sandbox_problem() is not None, reason=f"no sandbox here: {sandbox_problem()}"),
]


def test_a_grid_is_run_gone_on_with_and_reported(tmp_path):
    run = ["run", "--grid", "smoke", "--output", str(tmp_path / "runs")]
    assert main(run) == 0
    results = {
        str(path.parent.relative_to(tmp_path / "runs")): json.loads(path.read_text())
        for path in (tmp_path / "runs").rglob("result.json")
    }
    cells = ["seed_0/cells/cascade.big.stm", "seed_0/cells/cascade.big.sft"]
    models = ["seed_0/cold", "seed_0/teacher_naive"]
    shared = ["data", "seed_0/tasks", "seed_0/rescue_naive", "seed_0/guide_cascade"]
    shared += ["seed_0/rollouts_cascade"]
    assert sorted(results) == sorted([*cells, *models, *shared])
    for name in (*cells, *models):
        assert len(results[name]["faulty"]["is_solved"]) == len(results[name]["honest"]["is_solved"]) == 4
    assert [point["round"] for point in results[cells[0]]["curve"]] == [0, 1, 2]
    counted = [
        sum(one["count"] for one in turns.values()) for turns in results[cells[0]]["steps"]["by_round"]
    ]
    stored = tmp_path / "runs" / cells[0] / "run" / "trajectories"
    # Every step of every rollout is in exactly one group.
    assert counted == [
        sum(len(one.turns) for one in read_trajectories(path)) for path in sorted(stored.glob("*"))
    ]
    # The control learns from as many attempts as the student makes.
    rollouts = read_trajectories(tmp_path / "runs/seed_0/rollouts_cascade/traces.jsonl.gz")
    assert len(rollouts) == 2 * 4 * 2
    guide = results["seed_0/guide_cascade"]["guide"]
    # Models that learnt next to nothing are near each other everywhere.
    assert [one["steps"] for one in guide] == [0] * 5
    rescued = results["seed_0/rescue_naive"]["rescue"]
    assert sum(counts["teacher"][1] for counts in rescued.values()) == 6

    (tmp_path / "runs" / cells[0] / "result.json").unlink()
    command = [sys.executable, "-m", "benchmarks.evidence", *run, "--workers", "2"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout
    assert cells[0] in said
    assert cells[1] not in said
    again = json.loads((tmp_path / "runs" / cells[0] / "result.json").read_text())
    assert again["faulty"] == results[cells[0]]["faulty"]

    assert main(["report", "--output", str(tmp_path / "runs"), "--to", str(tmp_path / "report")]) == 0
    assert "STM (ours)" in (tmp_path / "report" / "results.md").read_text()
