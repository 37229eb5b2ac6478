"""The text game of the experiment: settings, table, and the smallest size on a stand-in for the game."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.evidence.command_line import main
from benchmarks.evidence.jobs import RESULT
from benchmarks.evidence.pausing import PausingDisplay
from benchmarks.evidence.textworld import TextPlan, sizes
from sod.envs import textworld_env
from sod.envs.text_game import Observation


class Kitchen:
    """Two right actions win; it stands in for games that take seconds each to compile."""

    def __init__(self, path):
        self._done = 0

    def begin(self):
        self._done = 0
        return self._seen()

    def act(self, action):
        is_right = action == self.expert_action()
        self._done += is_right
        return self._seen(is_understood=is_right)

    def expert_action(self):
        return ("prepare meal", "eat meal", "")[self._done]

    def close(self):
        pass

    def _seen(self, *, is_understood=True):
        return Observation(
            text=f"Step {self._done}.",
            score=self._done / 2,
            is_done=self._done == 2,
            is_success=self._done == 2,
            is_understood=is_understood,
        )


def test_every_job_of_every_size_comes_after_what_it_needs(tmp_path):
    for size in sizes():
        plan = TextPlan(size, tmp_path, PausingDisplay(None))
        names = [job.name for job in plan.jobs()]
        assert len(names) == len(set(names)) == 1 + len(plan.size.seeds) * (2 + len(plan.size.methods))
        for job in plan.jobs():
            assert all(names.index(need) < names.index(job.name) for need in job.needs)
            json.dumps(job.settings)


def test_the_table_has_means_over_the_seeds_that_are_done(tmp_path):
    plan = TextPlan("full", tmp_path, PausingDisplay(None))
    assert plan.report().count("\n") == 2
    for seed, (cold, opd, atod) in enumerate([(0.1, 0.2, 0.3), (0.3, 0.3, 0.4)]):
        for name, success in (("cold", cold), ("cells/opd", opd), ("cells/atod", atod)):
            path = tmp_path / f"seed_{seed}" / name / RESULT
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"success": success, "score": 0.5, "turns": 4.0, "errors": 0.5}))
    lines = plan.report().splitlines()
    rest = "4.0 ± 0.0 | 0.5 ± 0.0 | 2 |"
    assert lines[2:] == [
        f"| cold | 20.0 ± 10.0 | 50.0 ± 0.0 |  |  | {rest}",
        f"| OPD | 25.0 ± 5.0 | 50.0 ± 0.0 | +5.0 ± 5.0 |  | {rest}",
        f"| ATOD | 35.0 ± 5.0 | 50.0 ± 0.0 | +15.0 ± 5.0 | +10.0 ± 0.0 | {rest}",
    ]


@pytest.mark.slow
@pytest.mark.no_cover
def test_the_smallest_size_runs_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(textworld_env, "TextWorldGame", Kitchen)
    monkeypatch.setattr(textworld_env, "_file", lambda section, task: Path())
    run = ["textworld", "--size", "tiny", "--output", str(tmp_path)]
    assert main(run) == 0
    assert "| ATOD | " in capsys.readouterr().out
    results = {
        path.parent.relative_to(tmp_path): json.loads(path.read_text()) for path in tmp_path.rglob(RESULT)
    }
    assert results[Path("data")]["expert_turns"] == 2.0
    cell = results[Path("seed_0/cells/atod")]
    assert [number for number, _ in cell["curve"]] == [0, 1]
    # An untrained student writes no action at all: every turn of it is invalid, and no score is lost by that.
    assert cell["errors"] > 0
    assert cell["score"] == pytest.approx(0.0, abs=1e-9)
    (tmp_path / "seed_0/cells/atod" / RESULT).unlink()
    assert main(run) == 0
    said = capsys.readouterr().out
    assert "seed_0/cells/atod: done" in said
    assert "seed_0/cells/grpo:" not in said
