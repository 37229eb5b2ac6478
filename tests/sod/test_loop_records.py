"""Rows of steps and rounds, and the warning about a collapsed anchor."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from sod.evaluate import rollout_metrics, summarise
from sod.loop.records import (
    add_steps,
    anchor_warning,
    mean_metrics,
    running_quantile,
    step_rows,
    step_table,
)
from sod.loop.update import StepStats
from sod.types import EndReason, ToolOutcome, ToolResult, Trajectory, Turn


def turn(*outcomes):
    results = tuple(ToolResult(name="f", outcome=outcome, text="t") for outcome in outcomes)
    return Turn(context_ids=(1,), sampled_ids=(2, 3), results=results)


def trajectory(task, *turns, success=False, group=0, end=EndReason.DONE):
    return Trajectory(
        task_id=task,
        turns=turns,
        is_success=success,
        group_id=group,
        end_reason=end,
        reward=float(success),
    )


OK, BAD, LATE = ToolOutcome.OK, ToolOutcome.TOOL_ERROR, ToolOutcome.TIMEOUT


def stats(index, number, divergence=0.5, weight=1.0):
    return StepStats(trajectory=index, turn=number, tokens=2, divergence=divergence, weight=weight)


def test_step_rows_say_what_came_before():
    one = trajectory("a", turn(OK), turn(BAD, OK), turn(OK), turn(), success=True)
    rows = step_rows([stats(0, k) for k in (3, 0, 2, 1)], [one], round_index=4, update=9)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["is_after_error"] for row in rows] == [False, False, True, False]
    assert [row["num_errors_before"] for row in rows] == [0, 0, 1, 1]
    assert rows[1]["outcomes"] == ["tool_error", "ok"]
    assert rows[3] == {
        "round": 4,
        "update": 9,
        "task_id": "a",
        "trajectory": 0,
        "step": 3,
        "tokens": 2,
        "divergence": 0.5,
        "weight": 1.0,
        "outcomes": [],
        "is_after_error": False,
        "num_errors_before": 1,
        "is_success": True,
    }


def test_step_table_orders_turns_as_numbers():
    sums = add_steps({}, [stats(0, 10, 1.0, 0.2), stats(0, 2, 0.5, 0.4), stats(1, 2, 1.5, 0.6)])
    table = step_table(sums)
    assert table["step/turns"] == [2.0, 10.0]
    assert table["step/count_by_turn"] == [2.0, 1.0]
    assert table["step/divergence_by_turn"] == [1.0, 1.0]
    assert table["step/weight_by_turn"] == [0.5, 0.2]


def test_anchor_collapse_is_told_with_a_remedy_that_silences_it():
    sums = add_steps({}, [stats(0, 0, 0.02, 1.0), stats(0, 1, 0.4, 0.05), stats(0, 2, 0.8, 0.025)])
    text = anchor_warning(sums, 1e-6)
    assert text is not None
    assert "first step's mean divergence (0.0200 nats)" in text
    assert "later steps (0.6000)" in text
    assert "try about 0.3" in text
    assert anchor_warning(sums, 0.3) is None


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [(0, 0.01)],
        [(1, 0.4)],
        [(0, 0.2), (1, 0.4)],
    ],
)
def test_no_warning_without_a_cause(steps):
    assert anchor_warning(add_steps({}, [stats(0, k, d) for k, d in steps]), 1e-6) is None


def test_rollout_metrics_count_errors_and_endings():
    one = trajectory("a", turn(OK), turn(BAD, OK), success=True)
    two = trajectory("b", turn(LATE), end=EndReason.MAX_TURNS)
    metrics = rollout_metrics([one, two])
    assert metrics["rollout/success_mean"] == 0.5
    assert metrics["rollout/errors_per_trajectory"] == 1.0
    assert metrics["rollout/turns_mean"] == 1.5
    assert metrics["rollout/tokens_mean"] == 3.0
    assert metrics["rollout/end_done"] == metrics["rollout/end_max_turns"] == 0.5
    assert metrics["tool/ok"] == 0.5
    assert metrics["tool/timeout"] == 0.25


def test_tokens_from_a_cut_vocabulary_are_counted_as_a_share_of_all():
    cut = replace(turn(), sampled_ids=(7, 8, 9, 9, 9, 9), is_truncated=True)
    assert rollout_metrics([trajectory("a", turn(), cut)])["rollout/truncated_share"] == 0.75
    assert rollout_metrics([trajectory("a", turn())])["rollout/truncated_share"] == 0.0
    assert rollout_metrics([])["rollout/truncated_share"] == 0.0
    assert summarise([trajectory("a", cut)]).metrics["eval/truncated_share"] == 1.0


def test_means_skip_what_is_not_finite_and_add_times():
    rows = [{"loss/total": 1.0, "time/update_s": 2.0}, {"loss/total": math.nan, "time/update_s": 3.0}]
    assert mean_metrics(rows) == {"loss/total": 1.0, "time/update_s": 5.0}
    assert math.isnan(mean_metrics([{"loss/total": math.nan}])["loss/total"])
    assert mean_metrics([]) == {}


def test_evaluation_has_its_error_over_tasks_and_not_attempts():
    attempts = [
        trajectory("a", turn(), success=True, group=0),
        trajectory("a", turn(), success=True, group=0),
        trajectory("b", turn(), success=False, group=1),
        trajectory("b", turn(), success=False, group=1),
    ]
    result = summarise(attempts)
    assert result.success_mean == 0.5
    assert result.success_stderr == pytest.approx(0.5)
    assert result.metrics["eval/tasks"] == 2.0
    assert math.isnan(summarise(attempts[:1]).success_stderr)


def test_a_quantile_follows_the_updates_a_tenth_of_the_way():
    def steps(*divergences):
        return [
            StepStats(trajectory=0, turn=k, tokens=1, divergence=value, weight=1.0)
            for k, value in enumerate(divergences)
        ]

    first = running_quantile(None, steps(0.1, 9.0, 0.4))
    assert first == 0.4
    assert running_quantile(first, steps(1.4, 1.4)) == pytest.approx(0.5)
    assert running_quantile(0.5, steps(math.nan, math.inf)) == 0.5
    assert running_quantile(None, []) is None
    assert running_quantile(1.0, steps(0.0, 2.0, 4.0), 0.75) == pytest.approx(1.2)
