"""Masks and step ids: properties over all trajectories, one example by hand, every refusal."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given

from sod.tokenization import tokenize_trajectory
from sod.types import Trajectory, Turn
from tests.sod.strategies import trajectories


@given(trajectories())
def test_properties(trajectory):
    sequences = tokenize_trajectory(trajectory)
    bounds = [*trajectory.segments, len(trajectory.turns)]
    assert len(sequences) == len(trajectory.segments)
    for sequence, start, end in zip(sequences, bounds, bounds[1:], strict=False):
        turns = trajectory.turns[start:end]
        ids = [token for turn in turns for token in turn.context_ids + turn.sampled_ids]
        assert sequence.input_ids.tolist() == ids
        # Every token is either context or the student's, and the student's are all there, in order.
        assert torch.equal(sequence.response_mask, sequence.step_ids >= 0)
        assert sequence.input_ids[sequence.response_mask].tolist() == [
            t for u in turns for t in u.sampled_ids
        ]
        assert sequence.input_ids[~sequence.response_mask].tolist() == [
            t for u in turns for t in u.context_ids
        ]
        assert not (sequence.loss_mask & ~sequence.response_mask).any()
        for index in range(start, end):
            turn, at_step = trajectory.turns[index], sequence.step_ids == index
            assert sequence.input_ids[at_step].tolist() == list(turn.sampled_ids)
            assert sequence.loss_mask[at_step].all() == turn.is_trained == sequence.loss_mask[at_step].any()
            expected = list(turn.sampled_log_probs) or [0.0] * len(turn.sampled_ids)
            assert sequence.log_probs[at_step].tolist() == expected
        assert (sequence.log_probs[~sequence.response_mask] == 0).all()
        assert set(sequence.step_ids.tolist()) - {-1} == set(range(start, end))
        # The first token of a sequence has nothing before it that could predict it.
        assert sequence.step_ids[0] == -1
    assert trajectory.num_sampled_tokens == sum(int(s.response_mask.sum()) for s in sequences)


def turn(context, sampled, **changes):
    return Turn(context_ids=context, sampled_ids=sampled, **changes)


def test_adjacent_turns_stay_two_steps():
    trajectory = Trajectory(
        task_id="t",
        turns=(
            turn((1, 2), (3, 4), sampled_log_probs=(-0.5, -1.0)),
            turn((), (5,), is_trained=False),
            turn((6,), (7, 8)),
        ),
    )
    (sequence,) = tokenize_trajectory(trajectory)
    assert sequence.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sequence.step_ids.tolist() == [-1, -1, 0, 0, 1, -1, 2, 2]
    assert sequence.response_mask.tolist() == [False, False, True, True, True, False, True, True]
    assert sequence.loss_mask.tolist() == [False, False, True, True, False, False, True, True]
    assert sequence.log_probs.tolist() == [0.0, 0.0, -0.5, -1.0, 0.0, 0.0, 0.0, 0.0]


def test_steps_count_over_segments():
    trajectory = Trajectory(task_id="t", turns=(turn((1,), (2,)), turn((1, 2), (3,))), segments=(0, 1))
    assert [s.step_ids.tolist() for s in tokenize_trajectory(trajectory)] == [[-1, 0], [-1, -1, 1]]


GOOD = Trajectory(task_id="t7", turns=(turn((1,), (2,)), turn((3,), (4,))))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (replace(GOOD, turns=()), "task 't7' has no turns"),
        (replace(GOOD, segments=(1,)), r"rising turn indices .* below 2, got \(1,\)"),
        (replace(GOOD, segments=(0, 0)), r"got \(0, 0\)"),
        (replace(GOOD, segments=(0, 2)), r"got \(0, 2\)"),
        (replace(GOOD, segments=()), r"got \(\)"),
        (replace(GOOD, turns=(turn((1,), ()),)), "turn 0 of task 't7' has no sampled_ids"),
        (
            replace(GOOD, turns=(turn((1,), (2, 3), sampled_log_probs=(-1.0,)),)),
            "1 sampled_log_probs for 2 sampled_ids",
        ),
        (
            replace(GOOD, turns=(turn((1,), (2,), sampled_log_probs=(float("-inf"),)),)),
            "log-probability that is not finite",
        ),
        (replace(GOOD, turns=(turn((), (2,)),)), "begins a segment without context_ids"),
    ],
)
def test_what_cannot_be_laid_out_is_named(broken, message):
    with pytest.raises(ValueError, match=message):
        tokenize_trajectory(broken)
