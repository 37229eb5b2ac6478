r"""The clipped policy-gradient term on the sampled tokens, and its slope in their log-probability."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sod_kernels._checks import hidden as checks

# At a ratio of e^20 the samples are not the policy's; beyond it the term stays constant, and so finite.
_LOG_RATIO_LIMIT = 20.0


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyGradient:
    r"""A clipped policy-gradient term for `linear_step_kl`, on the sampled tokens.

    With the ratio :math:`r = \exp(\log p(y) - \log p_{old}(y))` and the advantage :math:`A` of a token:

    .. math:: -\min\{r A,\; \mathrm{clip}(r, 1 - clip_{low}, 1 + clip_{high}) A\}

    and where :math:`A < 0` at most :math:`-dual\_clip \cdot A`. The log-ratio is kept within 20 of 0.

    Attributes:
        advantages: Of each token, leading shape, floating, detached; anything where a token is in no step.
        old_log_probs: Log-probability of the sampled token under the policy that drew it, likewise, in nats.
        clip_low: How far below 1 the ratio may go, from 0 to 1.
        clip_high: How far above 1 the ratio may go, at least 0.
        dual_clip: Bound of the ratio where the advantage is negative, above 1; None for no bound.

    Source:
        PPO, arXiv 1707.06347, equation (7); two clip bounds: DAPO, arXiv 2503.14476; dual clip: arXiv
        1912.09729.
    """

    advantages: Tensor
    old_log_probs: Tensor
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = 3.0

    def __post_init__(self) -> None:
        checks.check_policy_gradient(
            self.advantages, self.old_log_probs, self.clip_low, self.clip_high, self.dual_clip
        )


def policy_terms(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> tuple[Tensor, Tensor]:
    """Compute the term of each token and its derivative.

    Args:
        log_probs: Of the sampled tokens, any shape.
        old_log_probs: Same shape, under the policy that drew them.
        advantages: Same shape.
        clip_low: As in `PolicyGradient`.
        clip_high: As in `PolicyGradient`.
        dual_clip: As in `PolicyGradient`.

    Returns:
        Term, and its derivative with respect to `log_probs`; both in the dtype of `log_probs`.
    """
    advantages = advantages.to(log_probs.dtype)
    log_ratio = log_probs - old_log_probs.to(log_probs.dtype)
    ratio = log_ratio.clamp(-_LOG_RATIO_LIMIT, _LOG_RATIO_LIMIT).exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    term = torch.maximum(plain, clipped)
    moves = (plain >= clipped) & (log_ratio.abs() <= _LOG_RATIO_LIMIT)
    if dual_clip is not None:
        bound = torch.where(advantages < 0, -dual_clip * advantages, torch.inf)
        moves = moves & (term <= bound)
        term = torch.minimum(term, bound)
    return term, torch.where(moves, plain, 0.0)
