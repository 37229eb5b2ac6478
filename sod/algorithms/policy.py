"""The clipped policy-gradient surrogate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this size, so that one token cannot overflow."""


@dataclass(frozen=True, kw_only=True)
class ClippedSurrogate:
    """-min(r A, clip(r, 1 - low, 1 + high) A) per token, with r = exp(log p - log p_old).

    For A < 0 the loss is capped at `dual_clip` * |A|, which bounds the push away from a token whose
    probability has grown much since it was sampled.

    Attributes:
        clip_low: The ratio counts down to 1 - clip_low.
        clip_high: And up to 1 + clip_high.
        dual_clip: Cap for negative advantages, above 1; None for none.

    Source: PPO, arXiv 1707.06347, equation (7); the unequal bounds are DAPO's, arXiv 2503.14476; the cap is
    that of arXiv 1912.09729, equation (5).
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = 3.0

    def loss(self, log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss per token.

        Args:
            log_probs: (N,) of the student, differentiable, nats.
            old_log_probs: (N,) at sampling time.
            advantages: (N,), detached.

        Returns:
            (N,) loss, and (N,) bool: whether a bound took the gradient away.
        """
        ratio = (log_probs - old_log_probs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
        plain = -advantages * ratio
        bounded = -advantages * ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)
        loss = torch.maximum(plain, bounded)
        is_clipped = (bounded > plain).detach()
        if self.dual_clip is not None:
            cap = -advantages * self.dual_clip
            is_capped = (advantages < 0) & (loss > cap)
            loss = torch.where(is_capped, cap, loss)
            is_clipped = is_clipped | is_capped.detach()
        return loss, is_clipped
