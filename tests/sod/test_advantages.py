"""Advantages relative to a group, and schedules of coefficients."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from sod.advantages import group_advantages, turn_advantages
from sod.config import RolloutSection, RunConfig, RunSection, TrainerSection
from sod.config_algorithms import ATODSection
from sod.envs.text_game import TextSection
from sod.loop.minibatches import plan_round
from sod.schedules import LinearSchedule, constant
from sod.types import ToolOutcome, ToolResult, Trajectory, Turn

TURN = Turn(context_ids=(1,), sampled_ids=(2,))


def attempts(*pairs):
    return [
        Trajectory(task_id=str(n), turns=(TURN,), group_id=group, reward=reward)
        for n, (group, reward) in enumerate(pairs)
    ]


def test_rewards_are_standardised_within_their_group_wherever_it_stands():
    made = group_advantages(attempts((7, 1.0), (3, 2.0), (7, 0.0), (3, 2.5), (7, 0.0), (3, -1.0)))
    for group in ([0, 2, 4], [1, 3, 5]):
        rewards = torch.tensor([[1.0, 0.0, 0.0], [2.0, 2.5, -1.0]][group[0]], dtype=torch.float64)
        wanted = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
        assert [made[i] for i in group] == pytest.approx(wanted.tolist(), abs=1e-12)


def test_equal_rewards_and_lone_attempts_have_exactly_no_advantage():
    assert group_advantages(attempts((0, 0.1), (0, 0.1), (0, 0.1), (1, 5.0))) == [0.0] * 4


def test_a_turn_pays_for_its_own_invalid_action_alone():
    error = ToolResult(name="action", outcome=ToolOutcome.INVALID_JSON, text="error")
    bad, good = replace(TURN, results=(error,)), TURN
    # Solved with one invalid turn of two, not solved with none of three; a group of its own besides.
    first, second, alone = attempts((4, 0.9), (4, 0.0), (5, 0.7))
    rounds = [
        replace(first, turns=(bad, good)),
        replace(second, turns=(good, good, good)),
        replace(alone, turns=(good,)),
    ]
    scores = torch.tensor([0.9, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    wanted = ((scores - scores.mean()) / (scores.std() + 1e-6)).tolist()
    made = turn_advantages(rounds, penalty=0.1)
    assert made == [pytest.approx(wanted[:2]), pytest.approx(wanted[2:]), [0.0]]
    # The other form: every turn of the attempt has the same advantage, and it is lower.
    assert group_advantages(rounds)[0] == pytest.approx(0.45 / (0.9 / math.sqrt(2) + 1e-6))


@pytest.mark.parametrize("where", ["trajectory", "turn"])
def test_a_round_is_planned_with_the_advantages_that_the_algorithm_names(tmp_path, where):
    bad = replace(TURN, results=(ToolResult(name="a", outcome=ToolOutcome.TOOL_ERROR, text=""),))
    rounds = [replace(one, turns=(bad, TURN)) for one in attempts((0, 0.9), (0, -0.1))]
    config = RunConfig(
        run=RunSection(output=tmp_path),
        trainer=TrainerSection(rounds=1),
        algorithm=ATODSection(penalty_on=where),
        environment=TextSection(name="mine"),
        rollout=RolloutSection(num_samples=2),
    )
    (minibatch,) = plan_round(rounds, config, round_index=0, pad_id=0)
    (batch,) = minibatch.batches
    by_turn = turn_advantages(rounds, penalty=0.1)
    if where == "trajectory":
        by_turn = [[one] * 2 for one in group_advantages(rounds)]
    wanted = [turn for index in batch.trajectories for turn in by_turn[index]]
    assert batch.row_advantages.tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_is_no_number_is_named(reward):
    with pytest.raises(ValueError, match=r"trajectory 1 \(task '1'\) has reward (nan|inf); wanted a finite"):
        group_advantages(attempts((0, 1.0), (0, reward)))


@pytest.mark.parametrize(
    ("round_number", "kappa", "rho"),
    [(1, 0.98875, 1.0125), (20, 0.775, 1.25), (40, 0.55, 1.5), (79, 0.11125, 1.9875), (80, 0.1, 2.0)],
)
def test_annealing_is_that_of_the_paper(round_number, kappa, rho):
    assert LinearSchedule(start=1.0, end=0.1, length=80).at(round_number) == pytest.approx(kappa, abs=1e-12)
    assert LinearSchedule(start=1.0, end=2.0, length=80).at(round_number) == pytest.approx(rho, abs=1e-12)


def test_schedules_end_and_may_be_switched_off():
    assert LinearSchedule(start=1.0, end=0.1, length=80).at(1000) == pytest.approx(0.1)
    assert LinearSchedule(start=1.0, end=0.1, length=0).at(1000) == 1.0
    assert constant(0.3).at(5) == 0.3
