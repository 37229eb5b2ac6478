"""The parts of the loss of `linear_step_kl` and its relative, for whichever mode reduces them."""

from __future__ import annotations

import torch
from torch import Tensor

from sod_kernels._reduction import reference_weights
from sod_kernels.types import TokenStats


def loss_terms(
    stats: TokenStats,
    weights: Tensor,
    *,
    has_reference: bool,
    policy_term: Tensor | None,
    kl_coefficient: float,
    entropy_coefficient: float,
) -> list[tuple[Tensor, Tensor]]:
    """Pair values per token with their step weights, which apply to the divergences only.

    Args:
        stats: Token outputs, any leading shape.
        weights: (S,) step weights.
        has_reference: Whether there is a second target.
        policy_term: Policy-gradient term per token, or None.
        kl_coefficient: Factor of both divergences.
        entropy_coefficient: Factor of the entropy that the loss rewards.

    Returns:
        Pairs for `reduce_loss`.
    """
    terms = [(stats.token_kl, kl_coefficient * weights)]
    if has_reference:
        terms.append((stats.token_reference_kl, kl_coefficient * reference_weights(weights)))
    ones = torch.ones_like(weights)
    if policy_term is not None:
        terms.append((policy_term, ones))
    if entropy_coefficient != 0.0:
        terms.append((stats.student_entropy, -entropy_coefficient * ones))
    return terms
