"""The policy-gradient term against the formulas, in every region of the clips."""

import math

import pytest
import torch

from sod_kernels.linear.policy import policy_terms


def _plain(log_probs, old, advantages, clip_low, clip_high, dual_clip):
    ratio = (log_probs - old).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    term = -torch.minimum(ratio * advantages, clipped * advantages)
    if dual_clip is None:
        return term
    return torch.where(advantages < 0, torch.minimum(term, -dual_clip * advantages), term)


@pytest.mark.parametrize("dual_clip", [None, 1.4, 3.0])
def test_value_and_slope_equal_autograd(dual_clip):
    ratios = torch.tensor([0.3, 0.79, 0.81, 1.0, 1.27, 1.29, 1.39, 1.41, 2.9, 3.1, 9.0], dtype=torch.float64)
    choices = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], dtype=torch.float64)
    old, advantages = torch.meshgrid(-ratios.log(), choices, indexing="ij")
    log_probs = torch.zeros_like(old).requires_grad_()
    exact = _plain(log_probs, old, advantages, 0.2, 0.28, dual_clip)
    (slope,) = torch.autograd.grad(exact.sum(), log_probs)
    ours = policy_terms(
        log_probs.detach(), old, advantages, clip_low=0.2, clip_high=0.28, dual_clip=dual_clip
    )
    torch.testing.assert_close(ours[0], exact.detach())
    torch.testing.assert_close(ours[1], slope)


def test_far_from_the_old_policy_the_term_is_finite_and_flat():
    log_probs = torch.tensor([0.0, 0.0, -300.0, -300.0])
    old = torch.tensor([-300.0, -300.0, 0.0, 0.0])
    advantages = torch.tensor([-1.0, 0.0, -1.0, 1.0])
    term, slope = policy_terms(log_probs, old, advantages, clip_low=0.2, clip_high=0.28, dual_clip=None)
    torch.testing.assert_close(term, torch.tensor([math.exp(20.0), 0.0, 0.8, -math.exp(-20.0)]))
    assert not slope.any()
