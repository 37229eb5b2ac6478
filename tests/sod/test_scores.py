"""Scores that are no numbers are named by where they stand; numbers and masked vocabularies are not."""

from __future__ import annotations

import math

import pytest
import torch

from sod.errors import TrainingError
from sod.loop.scores import check_scores
from sod.packing import pack
from sod.teacher.cache import Targets
from sod.tokenization import tokenize_trajectory
from sod.types import Trajectory, Turn

VOCAB = 7


@pytest.fixture
def batch():
    turns = (Turn(context_ids=(1, 2), sampled_ids=(3, 4)), Turn(context_ids=(5,), sampled_ids=(6, 1, 2)))
    sequences = [tokenize_trajectory(Trajectory(task_id=name, turns=turns)) for name in "abc"]
    (batch,) = pack(sequences, [2], max_tokens=100, pad_id=0)
    return batch


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(("row", "where"), [(1, "turn 0, token 1"), (4, "turn 1, token 2")])
def test_the_first_row_with_one_is_named(batch, value, row, where):
    logits = torch.zeros(5, VOCAB)
    check_scores(batch, Targets(teacher=logits, reference=logits))
    bad = logits.clone()
    bad[row, 3] = value
    with pytest.raises(TrainingError, match=rf"the teacher scores trajectory 2 of the round, {where} of the"):
        check_scores(batch, Targets(teacher=bad, reference=None))
    with pytest.raises(TrainingError, match=r"the reference policy scores .* \(1 such rows"):
        check_scores(batch, Targets(teacher=logits, reference=bad))


def test_a_masked_vocabulary_is_fine_but_not_a_row_without_any_mass(batch):
    logits = torch.zeros(5, VOCAB)
    logits[:, 2:] = -math.inf
    check_scores(batch, Targets(teacher=logits, reference=None))
    logits[3] = -math.inf
    with pytest.raises(TrainingError, match="turn 1, token 1"):
        check_scores(batch, Targets(teacher=logits, reference=None))
