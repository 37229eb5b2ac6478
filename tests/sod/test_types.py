"""What turns and trajectories must be, checked when they are made."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sod.types import Trajectory, Turn


def turn(context, sampled, **changes):
    return Turn(context_ids=context, sampled_ids=sampled, **changes)


GOOD = Trajectory(task_id="t7", turns=(turn((1,), (2,)), turn((3,), (4,))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampled_ids": ()}, "sampled_ids is empty; every turn needs at least its stop token"),
        ({"sampled_ids": (3, -1)}, "-1 is no token id"),
        ({"context_ids": (-7,)}, "-7 is no token id"),
        ({"sampled_log_probs": (-1.0,)}, "1 sampled_log_probs for 2 sampled_ids"),
        ({"sampled_log_probs": (-1.0, float("-inf"))}, "log-probability is not finite"),
        ({"sampled_log_probs": (float("nan"), -1.0)}, "log-probability is not finite"),
    ],
)
def test_a_turn_that_could_not_have_been_sampled_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(turn((1,), (2, 3), sampled_log_probs=(-0.5, -0.5)), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turns": ()}, "task 't7' has no turns"),
        ({"segments": (1,)}, r"rising turn indices .* below 2, got \(1,\)"),
        ({"segments": (0, 0)}, r"got \(0, 0\)"),
        ({"segments": (0, 2)}, r"got \(0, 2\)"),
        ({"segments": ()}, r"got \(\)"),
        ({"turns": (turn((), (2,)),)}, "turn 0 of 't7' begins a segment without context_ids"),
        (
            {"turns": (turn((1,), (2,)), turn((), (2,))), "segments": (0, 1)},
            "turn 1 of 't7' begins a segment without context_ids",
        ),
    ],
)
def test_a_trajectory_that_cannot_be_laid_out_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(GOOD, **changes)
