"""Masks and step ids: properties over all trajectories, examples by hand, every refusal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from sod.tokenization import TokenSequence, tokenize_trajectory
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


def sequence(**changes):
    values = {
        "input_ids": torch.tensor([5, 6, 7]),
        "response_mask": torch.tensor([False, True, True]),
        "loss_mask": torch.tensor([False, False, True]),
        "step_ids": torch.tensor([-1, 0, 1]),
        "log_probs": torch.tensor([0.0, -1.0, -2.0]),
        "errors_before": (0, 0),
    }
    return TokenSequence(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"input_ids": torch.tensor([5, 6])},
            r"wanted tensors of one shape \(T,\), got .*'input_ids': \(2,\)",
        ),
        ({"step_ids": torch.tensor([-1, -1, 0])}, "response_mask must be step_ids >= 0"),
        ({"loss_mask": torch.tensor([True, False, True])}, "loss_mask has tokens that response_mask has not"),
        (
            {"response_mask": torch.tensor([True] * 3), "step_ids": torch.tensor([0, 0, 1])},
            "the first token is the student's, so nothing predicts it",
        ),
        ({"step_ids": torch.tensor([-1, 1, 0])}, "step_ids fall"),
        ({"log_probs": torch.tensor([-0.5, -1.0, -2.0])}, "0 wherever response_mask is False"),
        ({"log_probs": torch.tensor([0.0, -1.0, float("nan")])}, "log_probs must be finite"),
    ],
)
def test_a_sequence_that_contradicts_itself_is_refused(changes, message):
    sequence()
    with pytest.raises(ValueError, match=message):
        sequence(**changes)
