"""pass@k against enumeration, and the bootstrap against the formula that it stands for."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import fmean, pstdev

import pytest

from sod.estimators import bootstrap_error, majority_at_k, pass_at_k
from sod.evaluate import summarise
from sod.types import Trajectory, Turn


def test_pass_at_k_is_the_share_of_subsets_with_a_success():
    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                attempts = [i < c for i in range(n)]
                wanted = fmean(any(chosen) for chosen in combinations(attempts, k))
                assert pass_at_k(n, c, k) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 0), (4, 1, 5), (4, 5, 1), (4, -1, 1)])
def test_numbers_that_do_not_fit_are_refused(n, c, k):
    with pytest.raises(ValueError, match=f"pass_at_k: k={k}, num_solved={c}, num_attempts={n}; wanted"):
        pass_at_k(n, c, k)


def test_the_bootstrap_agrees_with_the_standard_error_of_a_mean():
    values = [float(i % 7 == 0) + 0.1 * (i % 3) for i in range(200)]
    error = bootstrap_error(values)
    assert error == pytest.approx(pstdev(values) / math.sqrt(200), rel=0.1)
    assert error == bootstrap_error(values)
    assert bootstrap_error([0.5] * 9) == 0.0
    assert math.isnan(bootstrap_error([1.0]))


def test_a_majority_is_counted_over_all_subsets():
    # Of the three pairs, one agrees on the right answer and two are split between right and wrong.
    assert majority_at_k(["4", "4", "5"], [True, True, False], 2) == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert majority_at_k(["4", "4", "5"], [True, True, False], 3) == 1.0
    assert majority_at_k(["4", "4", "5"], [True, True, False], 1) == pytest.approx(2 / 3)
    # The wrong answer wins where the right ones do not agree.
    assert majority_at_k(["5", "5", "a", "b"], [False, False, True, True], 4) == 0.0
    # Who has no answer does not vote; nobody's vote is no success.
    assert majority_at_k([None, None, "4"], [False, False, True], 3) == 1.0
    assert majority_at_k([None, None], [False, False], 2) == 0.0


def test_many_subsets_are_drawn_and_the_draws_repeat():
    answers = [str(index % 3) for index in range(24)]
    is_right = [answer == "0" for answer in answers]
    value = majority_at_k(answers, is_right, 5)
    assert value == majority_at_k(answers, is_right, 5)
    # By symmetry between the three answers.
    assert value == pytest.approx(1 / 3, abs=0.1)


@pytest.mark.parametrize(("answers", "k"), [(["a"], 2), (["a"], 0), (["a", "b"], 1)])
def test_votes_that_do_not_fit_are_refused(answers, k):
    with pytest.raises(ValueError, match=f"majority_at_k: k={k}, {len(answers)} answers, 1 is_right; wanted"):
        majority_at_k(answers, [True], k)


def attempts(*solved):
    turn = Turn(context_ids=(1,), sampled_ids=(2,))
    return [
        Trajectory(task_id=str(task), turns=(turn,), group_id=task, is_success=bool(one))
        for task, row in enumerate(solved)
        for one in row
    ]


def test_an_evaluation_reports_it():
    result = summarise(attempts([1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 1]))
    assert result.metrics["eval/pass@2"] == pytest.approx((0.5 + 0 + 1) / 3)
    assert result.metrics["eval/pass@4"] == pytest.approx(2 / 3)
    assert result.metrics["eval/pass@4_stderr"] > 0
    assert result.describe().endswith(f"pass@4 0.667 ± {result.metrics['eval/pass@4_stderr']:.3f}")


def test_answers_give_a_majority_beside_the_average():
    made = attempts([1, 0, 0, 0], [1, 1, 0, 1])
    plain = summarise(made)
    assert plain.metrics["eval/average@4"] == pytest.approx(0.5)
    assert plain.metrics["eval/average@4_stderr"] > 0
    assert not any("maj@" in key for key in plain.metrics)
    voted = summarise(made, ["7", "8", "8", None, "7", "7", "8", "7"])
    assert voted.metrics["eval/maj@4"] == pytest.approx((0 + 1) / 2)
    assert voted.metrics["eval/maj@4_stderr"] > 0
    # 16 attempts and more have keys of their own, which a line about pass@k must not trip over.
    many = summarise(attempts([1] * 16), ["7"] * 16)
    assert many.metrics["eval/maj@16"] == 1.0
    assert "pass@16 1.000" in many.describe()


def test_one_attempt_per_task_has_none():
    result = summarise(attempts([1], [0]))
    assert not any("pass@" in key for key in result.metrics)
    assert "pass@" not in result.describe()


def test_three_attempts_report_two_and_three():
    metrics = summarise(attempts([1, 0, 0], [0, 1, 1])).metrics
    assert {key for key in metrics if key.startswith("eval/pass@") and key[10:].isdigit()} == {
        "eval/pass@2",
        "eval/pass@3",
    }
