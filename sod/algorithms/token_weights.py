"""Token weights: pure functions of what is known of the tokens, without a gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TokenContext:
    """What a token weight may read; (N,) each, detached, in the order of the rows of a batch.

    Attributes:
        gap: |log p(y) - log q(y)| of the sampled token, student and teacher, nats.
        entropy: Entropy of the student, nats.
        trajectory: Trajectory of the token.
        is_trained: Whether the loss counts the token.
    """

    gap: Tensor
    entropy: Tensor
    trajectory: Tensor
    is_trained: Tensor


TokenWeight = Callable[[TokenContext], Tensor]
"""(N,) weights from a `TokenContext`."""


@dataclass(frozen=True, kw_only=True)
class PrefixReliability:
    """w_t = 1 + gamma (1 - sum of |l| before t / sum of |l|), per trajectory: early tokens count more.

    Attributes:
        gamma: Weight of the first token over that of the last.

    Source: IW-OPD, arXiv 2606.22600.
    """

    gamma: float = 0.5

    def __call__(self, context: TokenContext) -> Tensor:
        """Weigh the tokens; those of a trajectory without any gap weigh 1 + gamma."""
        gap = torch.where(context.is_trained, context.gap, 0.0).double()
        _, group = torch.unique(context.trajectory, return_inverse=True)
        groups = int(group.max()) + 1 if group.numel() else 0
        totals = gap.new_zeros(groups).index_add(0, group, gap)
        # Rows of one trajectory follow each other; sorting makes it so in any batch.
        order = torch.argsort(group, stable=True)
        running = gap[order].cumsum(0) - gap[order]
        starts = torch.searchsorted(group[order], torch.arange(groups, device=group.device))
        before = torch.empty_like(gap)
        before[order] = running - running[starts][group[order]]
        share = before / totals[group].clamp(min=torch.finfo(torch.float64).tiny)
        return (1.0 + self.gamma * (1.0 - share)).to(context.gap.dtype)


@dataclass(frozen=True, kw_only=True)
class SoftOrSelection:
    """w_t = 1 for the share `keep` of tokens of largest 1 - (1 - h~_t)(1 - d~_t), else 0.

    h~ and d~ are entropy and gap, min-max normalised over the trained tokens of the microbatch, entropy cut
    off at its 98 % quantile first.

    Attributes:
        keep: Share of the trained tokens, above 0 and at most 1; 1 keeps the score itself as the weight.

    Source: TIP, arXiv 2604.14084.
    """

    keep: float = 1.0

    def __call__(self, context: TokenContext) -> Tensor:
        """Weigh the tokens."""
        chosen = context.is_trained
        if not bool(chosen.any()):
            return torch.zeros_like(context.gap)
        entropy = context.entropy.clamp(max=float(context.entropy[chosen].quantile(0.98)))
        score = 1.0 - (1.0 - _normalised(entropy, chosen)) * (1.0 - _normalised(context.gap, chosen))
        if self.keep == 1.0:
            return torch.where(chosen, score, 0.0)
        least = score[chosen].quantile(1.0 - self.keep)
        return (chosen & (score >= least)).to(context.gap.dtype)


def _normalised(values: Tensor, chosen: Tensor) -> Tensor:
    low, high = values[chosen].min(), values[chosen].max()
    return ((values - low) / (high - low).clamp(min=1e-8)).clamp(0.0, 1.0)
