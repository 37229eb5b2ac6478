"""One token per row: the distribution, the top_p cut and the streams."""

from __future__ import annotations

import pytest
import torch

from sod.engines.base import SamplingParams
from sod.engines.sampling import RowRandom, mix_seed, sample


def test_frequencies_follow_the_softmax_at_the_temperature():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, -torch.inf])
    uniforms = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    tokens, log_probs = sample(logits.expand(20_000, -1), uniforms, temperature=0.7, top_p=1.0)
    expected = (logits / 0.7).softmax(-1)
    assert torch.allclose(tokens.bincount(minlength=5) / 20_000, expected, atol=2e-4)
    assert torch.allclose(log_probs.exp(), expected[tokens], atol=1e-6)


def test_top_p_keeps_the_smallest_set_and_leaves_log_probs_alone():
    probs = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    uniforms = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    tokens, log_probs = sample(probs.log().expand(10_000, -1), uniforms, temperature=1.0, top_p=0.65)
    kept = torch.tensor([0.0, 0.4, 0.0, 0.3, 0.0]) / 0.7
    assert torch.allclose(tokens.bincount(minlength=5) / 10_000, kept, atol=2e-4)
    assert torch.allclose(log_probs.exp(), probs[tokens], atol=1e-6)


def test_a_tiny_top_p_still_leaves_the_most_likely_token():
    tokens, _ = sample(torch.randn(64, 9), torch.rand(64, dtype=torch.float64), temperature=1.0, top_p=1e-6)
    logits = torch.randn(64, 9)
    tokens, _ = sample(logits, torch.rand(64, dtype=torch.float64), temperature=1.0, top_p=1e-6)
    assert torch.equal(tokens, logits.argmax(-1))


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-53])
def test_the_ends_of_the_unit_interval_never_pick_an_impossible_token(uniform):
    logits = torch.tensor([[-torch.inf, 0.3, 0.1, -torch.inf]])
    token, log_prob = sample(logits, torch.tensor([uniform], dtype=torch.float64), temperature=1.0, top_p=1.0)
    assert token.item() == (1 if uniform == 0.0 else 2)
    assert torch.isfinite(log_prob).all()


def test_greedy_reports_the_plain_softmax():
    logits = torch.tensor([[0.5, 2.0, 1.0]], dtype=torch.bfloat16)
    token, log_prob = sample(logits, None, temperature=0.0, top_p=1.0)
    assert token.item() == 1
    assert log_prob.item() == pytest.approx(logits.float().log_softmax(-1)[0, 1].item())


def test_sampling_without_uniforms_is_an_error():
    with pytest.raises(ValueError, match="uniforms are needed"):
        sample(torch.zeros(1, 3), None, temperature=1.0, top_p=1.0)


def test_streams_depend_on_seed_and_row_only():
    one, two = RowRandom(4), RowRandom(4)
    alone = [one.draw(3) for _ in range(600)]
    mixed = [(two.draw(0), two.draw(3), two.draw(1))[1] for _ in range(600)]
    assert alone == mixed
    assert alone[:5] != [RowRandom(5).draw(3) for _ in range(5)]
    assert len({mix_seed(seed, row) for seed in range(50) for row in range(50)}) == 2500
    assert 0.45 < sum(alone) / 600 < 0.55


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 or more, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be 0 or more, got nan"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"max_turn_tokens": 0}, "max_turn_tokens must be 1 or more, got 0"),
        ({"stop_ids": ()}, "stop_ids is empty"),
        ({"max_total_tokens": 1}, "max_total_tokens must be 2 or more, got 1"),
    ],
)
def test_bad_sampling_params_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        SamplingParams(**{"max_turn_tokens": 4, "stop_ids": (1,), **changes})
