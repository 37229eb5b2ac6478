"""Packing: every response token is predicted by exactly one row, whatever the grouping."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sod.errors import DataError
from sod.packing import num_trained_tokens, pack
from sod.tokenization import TokenSequence, tokenize_trajectory
from sod.types import ToolOutcome, ToolResult, Trajectory, Turn


def trajectory(lengths, *, seed=0, trained=None, segments=(0,)):
    draw = random.Random(seed)
    turns = [
        Turn(
            context_ids=tuple(draw.randrange(1, 99) for _ in range(context)),
            sampled_ids=tuple(draw.randrange(1, 99) for _ in range(sampled)),
            sampled_log_probs=tuple(-draw.random() for _ in range(sampled)),
            is_trained=trained is None or trained[k],
        )
        for k, (context, sampled) in enumerate(lengths)
    ]
    return Trajectory(task_id=str(seed), turns=tuple(turns), segments=segments)


def test_steps_know_the_errors_before_them_and_rows_their_advantage():
    error = ToolResult(name="f", outcome=ToolOutcome.TOOL_ERROR, text="no")
    fine = ToolResult(name="f", outcome=ToolOutcome.OK, text="yes")
    plain = trajectory([(2, 1), (1, 2), (1, 1)])
    results = [(fine, error), (error,), ()]
    turns = tuple(replace(turn, results=given) for turn, given in zip(plain.turns, results, strict=True))
    erring = replace(plain, turns=turns)
    for segments in ((0,), (0, 1, 2)):
        rounds = [tokenize_trajectory(replace(one, segments=segments)) for one in (plain, erring)]
        (batch,) = pack(rounds, [0, 1], max_tokens=99, pad_id=0, advantages=[0.5, -2.0])
        seen = {}
        for step in range(batch.num_steps):
            place = int(batch.step_trajectory[step])
            seen[batch.trajectories[place], int(batch.step_turn[step])] = int(batch.step_errors[step])
        assert seen == {(0, 0): 0, (0, 1): 0, (0, 2): 0, (1, 0): 0, (1, 1): 1, (1, 2): 2}
        owners = [batch.trajectories[int(place)] for place in batch.step_trajectory[batch.row_steps]]
        assert batch.row_advantages.tolist() == [(0.5, -2.0)[owner] for owner in owners]
        by_turn = [[float(10 * one + turn) for turn in range(9)] for one in (1, 2)]
        (batch,) = pack(rounds, [0, 1], max_tokens=99, pad_id=0, advantages=by_turn)
        turns = batch.step_turn[batch.row_steps].tolist()
        assert batch.row_advantages.tolist() == [
            by_turn[batch.trajectories[owner]][turn]
            for owner, turn in zip(batch.step_trajectory[batch.row_steps].tolist(), turns, strict=True)
        ]


def test_rows_have_no_advantage_unless_one_was_given():
    (batch,) = pack([tokenize_trajectory(trajectory([(1, 1)]))], [0], max_tokens=9, pad_id=0)
    with pytest.raises(DataError, match="packed without advantages; pass them to pack"):
        _ = batch.row_advantages


def rows_of(batches, trajectories):
    """Every row as (trajectory, turn, prefix, label, log_prob, is_trained), read back from the batches."""
    found = []
    for batch in batches:
        width = batch.input_ids.shape[1]
        for n in range(batch.num_rows):
            row, column = divmod(int(batch.rows[n]), width)
            step = int(batch.row_steps[n])
            found.append(
                (
                    batch.trajectories[int(batch.step_trajectory[step])],
                    int(batch.step_turn[step]),
                    tuple(batch.input_ids[row, : column + 1].tolist()),
                    int(batch.labels[n]),
                    float(batch.row_log_probs[n]),
                    bool(batch.row_loss_mask[n]),
                )
            )
    return sorted(found)


def rows_wanted(trajectories):
    wanted = []
    for index, one in enumerate(trajectories):
        prefix: list[int] = []
        for k, turn in enumerate(one.turns):
            if k in one.segments:
                prefix = []
            prefix += turn.context_ids
            for token, log_prob in zip(turn.sampled_ids, turn.sampled_log_probs, strict=True):
                rounded = float(torch.tensor(log_prob))
                wanted.append((index, k, tuple(prefix), token, rounded, turn.is_trained))
                prefix.append(token)
    return sorted(wanted)


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(
        st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=4),
        min_size=1,
        max_size=6,
    ),
    max_tokens=st.integers(1, 80),
)
def test_every_response_token_has_one_row_with_its_own_prefix(shapes, max_tokens):
    trajectories = [trajectory(lengths, seed=i) for i, lengths in enumerate(shapes)]
    sequences = [tokenize_trajectory(one) for one in trajectories]
    batches = pack(sequences, range(len(sequences)), max_tokens=max_tokens, pad_id=0)
    assert rows_of(batches, trajectories) == rows_wanted(trajectories)
    for batch in batches:
        assert batch.input_ids.numel() <= max_tokens or len(batch.trajectories) == 1


def test_one_sequence_per_turn_keeps_a_trajectory_together():
    one = trajectory([(3, 2), (2, 4), (5, 1)], segments=(0, 1, 2))
    other = trajectory([(2, 2)], seed=1)
    sequences = [tokenize_trajectory(one), tokenize_trajectory(other)]
    batches = pack(sequences, [0, 1], max_tokens=4, pad_id=0)
    assert rows_of(batches, [one, other]) == rows_wanted([one, other])
    whole = next(batch for batch in batches if 0 in batch.trajectories)
    assert whole.step_trajectory.tolist() == [0, 0, 0]
    assert whole.step_turn.tolist() == [0, 1, 2]


def test_untrained_turns_are_steps_without_a_loss():
    one = trajectory([(3, 2), (2, 4)], trained=[False, True])
    sequences = [tokenize_trajectory(one)]
    (batch,) = pack(sequences, [0], max_tokens=100, pad_id=0)
    assert batch.row_loss_mask.tolist() == [False] * 2 + [True] * 4
    assert batch.row_steps.tolist() == [0] * 2 + [1] * 4
    assert num_trained_tokens(sequences) == 4


def test_padding_follows_the_end_and_is_masked():
    sequences = [tokenize_trajectory(trajectory([(1, 1)])), tokenize_trajectory(trajectory([(4, 3)], seed=1))]
    (batch,) = pack(sequences, [0, 1], max_tokens=100, pad_id=77)
    assert batch.trajectories == (1, 0)
    assert batch.input_ids[1, 2:].tolist() == [77] * 5
    assert batch.attention_mask[1].tolist() == [True] * 2 + [False] * 5
    assert batch.step_ids[1, 2:].tolist() == [-1] * 5


def test_longest_first_and_the_same_every_time():
    sequences = [tokenize_trajectory(trajectory([(n, 2)], seed=n)) for n in (3, 9, 1, 9, 5)]
    batches = pack(sequences, range(5), max_tokens=22, pad_id=0)
    assert [batch.trajectories for batch in batches] == [(1, 3), (4, 0, 2)]
    again = pack(sequences, [4, 2, 0, 3, 1], max_tokens=22, pad_id=0)
    assert [batch.trajectories for batch in again] == [(1, 3), (4, 0, 2)]


def test_a_trajectory_without_a_response_is_left_out():
    empty = TokenSequence(
        input_ids=torch.tensor([5, 6]),
        response_mask=torch.tensor([False, False]),
        loss_mask=torch.tensor([False, False]),
        step_ids=torch.tensor([-1, -1]),
        log_probs=torch.zeros(2),
        errors_before=(0,),
    )
    batches = pack([(empty,), tokenize_trajectory(trajectory([(1, 1)]))], [0, 1], max_tokens=9, pad_id=0)
    assert [batch.trajectories for batch in batches] == [(1,)]
