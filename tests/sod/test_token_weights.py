"""Token weights against numbers worked out by hand, and at their edges."""

from __future__ import annotations

import pytest
import torch

from sod.algorithms.token_weights import PrefixReliability, SoftOrSelection, TokenContext


def context(gap, trajectory=None, trained=None, entropy=None):
    size = len(gap)
    return TokenContext(
        gap=torch.tensor(gap),
        entropy=torch.tensor(entropy or [1.0] * size),
        trajectory=torch.tensor(trajectory or [0] * size),
        is_trained=torch.tensor(trained or [True] * size),
    )


def test_a_prefix_takes_weight_from_what_follows():
    assert PrefixReliability(gamma=0.5)(context([0.2, 0.3, 0.5])).tolist() == pytest.approx([1.5, 1.4, 1.25])


def test_prefixes_are_those_of_the_own_trajectory_wherever_its_rows_stand():
    given = context([9.0, 0.2, 0.3, 1.0, 0.5], trajectory=[7, 3, 3, 7, 3])
    assert PrefixReliability(gamma=0.5)(given).tolist() == pytest.approx([1.5, 1.5, 1.4, 1.05, 1.25])


def test_tokens_that_are_not_trained_and_trajectories_without_a_gap():
    given = context([0.2, 5.0, 0.3, 0.5], trained=[True, False, True, True])
    assert PrefixReliability(gamma=0.5)(given).tolist() == pytest.approx([1.5, 1.4, 1.4, 1.25])
    assert PrefixReliability(gamma=0.5)(context([0.0, 0.0])).tolist() == [1.5, 1.5]


def test_a_token_counts_by_its_gap_or_its_entropy():
    given = context([0.0, 1.0, 0.5, 0.0], entropy=[0.0, 0.0, 1.0, 2.0])
    score = SoftOrSelection()(given)
    cut = float(torch.tensor([0.0, 0.0, 1.0, 2.0]).quantile(0.98))
    h = 1.0 / cut
    assert score.tolist() == pytest.approx([0.0, 1.0, 1 - 0.5 * (1 - h), 1.0])
    assert SoftOrSelection(keep=0.5)(given).tolist() == [0.0, 1.0, 0.0, 1.0]


def test_selection_looks_at_trained_tokens_only():
    given = context([0.0, 100.0, 1.0], trained=[True, False, True])
    assert SoftOrSelection()(given).tolist() == pytest.approx([0.0, 0.0, 1.0])
    assert SoftOrSelection()(context([1.0], trained=[False])).tolist() == [0.0]
