"""Which weightings can be applied while the walk goes on."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sod_kernels import SodWeighting, StepStatistics, TurnWeighting
from sod_kernels.linear.weights import is_causal


def test_who_is_causal():
    assert is_causal(None)
    assert is_causal(torch.ones(3))
    assert is_causal(SodWeighting())
    assert not is_causal(TurnWeighting())
    assert not is_causal(lambda statistics: statistics.divergence)


@settings(deadline=None, max_examples=60)
@given(
    steps=st.lists(
        st.tuples(st.floats(0.0, 9.0), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=12
    ),
    data=st.data(),
)
def test_sod_weights_keep_that_promise(steps, data):
    divergence, tokens, trajectory = (torch.tensor(column) for column in zip(*steps, strict=True))
    complete = data.draw(st.integers(1, len(steps)))
    is_complete = torch.arange(len(steps)) < complete

    def weigh(divergence, tokens):
        return SodWeighting()(
            StepStatistics(
                divergence=divergence,
                uncertainty=divergence,
                entropy=divergence,
                tokens=tokens,
                trajectory=trajectory,
            )
        )

    whole = weigh(divergence, tokens)
    so_far = weigh(torch.where(is_complete, divergence, 0.0), torch.where(is_complete, tokens, 0))
    assert torch.equal(so_far[:complete], whole[:complete])


@pytest.mark.parametrize("value", [1, "yes", None])
def test_the_attribute_must_be_true_itself(value):
    def weighting(statistics):
        return statistics.divergence

    weighting.is_causal = value
    assert not is_causal(weighting)
