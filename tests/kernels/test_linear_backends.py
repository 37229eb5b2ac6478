"""`linear_step_kl` on the backends that take float32: the definition's numbers, for every buffer in use."""

import pytest
import torch
from linear_inputs import (
    NUM_COLUMNS,
    PACKED_IDS,
    PACKED_TRAJECTORY,
    learned,
    make_heads,
    norm_error,
)

from sod_kernels import PolicyGradient, SodWeighting, linear_step_kl

DRAW = torch.Generator().manual_seed(5)
SAMPLED = torch.randint(NUM_COLUMNS, PACKED_IDS.shape, generator=DRAW)
POLICY = PolicyGradient(
    advantages=torch.randn(PACKED_IDS.shape, generator=DRAW),
    old_log_probs=-2.0 + 0.2 * torch.randn(PACKED_IDS.shape, generator=DRAW),
)
# A step that waits for its weight is differentiated twice, so its logits are kept apart from its gradient; a
# softcap keeps them too. Both need memory beside the logits.
CASES = {
    "softcap": {"student_softcap": 1.5, "teacher_softcap": 4.0},
    "waiting": {"policy_gradient": POLICY, "entropy_coefficient": 0.1},
    "softcap, waiting": {"student_softcap": 1.5, "policy_gradient": POLICY},
    "softcap, two sweeps": {"student_softcap": 1.5, "single_sweep": False},
}


@pytest.mark.parametrize("has_reference", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ["native", "triton"])
def test_float32_is_the_definition(backend, case, has_reference):
    shared = {
        "step_ids": PACKED_IDS,
        "step_trajectory": PACKED_TRAJECTORY,
        "weighting": SodWeighting(delta=0.3),
        "sampled_ids": SAMPLED,
        **CASES[case],
    }
    exact = make_heads(PACKED_IDS.shape, has_bias=True, has_reference=has_reference)
    wanted = linear_step_kl(**exact, **shared, backend="reference")
    gradients = torch.autograd.grad(wanted.loss, learned(exact))
    heads = {name: each.detach().float().requires_grad_(each.requires_grad) for name, each in exact.items()}
    for chunk_size in (5, None):
        out = linear_step_kl(**heads, **shared, chunk_size=chunk_size, backend=backend)
        torch.testing.assert_close(out.loss.double(), wanted.loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(out.step_weights.double(), wanted.step_weights, rtol=1e-4, atol=1e-6)
        for ours, right in zip(torch.autograd.grad(out.loss, learned(heads)), gradients, strict=True):
            assert norm_error(ours, right) < 1e-5
